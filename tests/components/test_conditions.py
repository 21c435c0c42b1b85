"""What a generator is told: which classes are sampled, what stands for none, and what is dropped in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rae_jax.components.conditions import ClassCondition, PromptCondition, drop
from rae_jax.data.tokenizer import open_tokenizer


def test_permuted_labels_are_as_even_as_can_be_in_an_order_that_the_seed_fixes():
    assert sorted(ClassCondition(3).chosen(7).tolist()) == [0, 0, 0, 1, 1, 2, 2]
    labels = ClassCondition(1000).chosen(50_000)
    assert np.bincount(labels).tolist() == [50] * 1000
    for part in labels.reshape(10, 5000):  # of which the inception score is computed
        assert len(np.unique(part)) > 980  # 994.8 expected; in order of class it would be 100
    np.testing.assert_array_equal(labels, ClassCondition(1000).chosen(50_000))
    assert (ClassCondition(1000, seed=1).chosen(50_000) != labels).any()
    assert ClassCondition(10).chosen(10).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]  # the same for ever


def test_a_random_label_is_fixed_by_seed_and_index_alone():
    told = ClassCondition(10, "random", seed=5)
    few, many = told.chosen(40), told.chosen(4000)
    np.testing.assert_array_equal(few, many[:40])
    assert (ClassCondition(10, "random", seed=6).chosen(40) != few).any()
    counts = np.bincount(many, minlength=10)
    assert counts.sum() == 4000 and np.abs(counts - 400).max() < 100  # five standard deviations


def test_unconditional_samples_are_all_of_the_null_label_and_say_nothing_of_it():
    told = ClassCondition(10, "unconditional")
    assert told.chosen(3).tolist() == [10] * 3 and set(told.shown().tolist()) == {10}
    assert told.arrays(told.chosen(3)) == {} and told.groups(told.chosen(3)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, "even"), r"sampling\.labels='even' is not one of"),
        ((0, "permuted"), "there are no classes; set it to 'unconditional'"),
        ((-1, "permuted"), r"flow\.num_classes=-1 is neither"),
    ],
)
def test_another_choice_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassCondition(*arguments)


def test_what_a_user_asks_for_is_a_class_that_there_is():
    told = ClassCondition(10)
    assert told.asked(["3", "7"]).tolist() == [3, 7]
    for words in (["10"], ["-1"], ["cat"], ["1", ""]):
        with pytest.raises(ValueError, match=r"there are no classes .*, but 0 to 9"):
            told.asked(words)


def test_pictures_have_a_row_for_each_class_in_order():
    groups = ClassCondition(10).groups(np.array([7, 2, 7, 2, 2]))
    assert [(caption, members.tolist()) for caption, members in groups] == [("2", [1, 3, 4]), ("7", [0, 2])]


def test_a_share_of_the_rows_is_dropped_whole_whatever_the_condition_is_made_of():
    rows = 4000
    asked = {"label": jnp.arange(rows), "text": jnp.ones((rows, 3, 2))}
    null = {"label": jnp.full(rows, -1), "text": jnp.zeros((rows, 3, 2))}
    told = drop(jax.random.key(0), asked, null, 0.25)
    dropped = np.asarray(told["label"]) == -1
    assert abs(dropped.mean() - 0.25) < 0.03  # four standard deviations
    np.testing.assert_array_equal(told["label"][~dropped], np.arange(rows)[~dropped])
    np.testing.assert_array_equal(told["text"], np.broadcast_to(~dropped[:, None, None], (rows, 3, 2)))
    for probability, expected in ((0.0, asked), (1.0, null)):
        jax.tree.map(np.testing.assert_array_equal, drop(jax.random.key(1), asked, null, probability), expected)


def told_prompts(*prompts, context=40):
    return PromptCondition(prompts, open_tokenizer(), context)


def test_prompts_are_laid_out_up_to_where_the_image_begins():
    told = told_prompts("a red cube", "a café", "", context=120)
    asked = told.chosen(4)
    assert told.words(asked) == ["a red cube", "a café", "", "a red cube"]
    for ids, length in zip(asked["ids"], asked["length"], strict=True):
        assert ids[length - 1] == told.tokenizer.image_start
        assert (ids[length:] == told.tokenizer.padding).all()
    assert asked["dropped"].tolist() == [False, False, True, False]
    assert told.null(asked)["dropped"].all()
    assert told.arrays(asked)["prompts"].tolist() == told.words(asked)
    groups = [(name, members.tolist()) for name, members in told.groups(asked)]
    assert groups == [("a red cube", [0, 3]), ("a café", [1]), ("", [2])]
    shapes = {name: (value.shape[1:], value.dtype) for name, value in told.example.items()}
    assert shapes == {name: (value.shape[1:], value.dtype) for name, value in asked.items()}


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="room is for 40"):
        told_prompts("a red cube").chosen(1)
