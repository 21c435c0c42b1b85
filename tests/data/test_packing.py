"""Packs against Bagel's own, and the filling of packs against its rule."""

import itertools

import numpy as np
import pytest
from golden import cases
from golden_packs import capacity, item, markers

from rae_jax.data.packing import GIVEN, NO_LABEL, Budget, Group, Item, Markers, PackFilling, arrange, buffers, pack
from rae_jax.models.pack import Places, visible

MARKERS = Markers(90, 91, 92, 93)
NOTHING = {"text": 0.0, "semantic": 0.0, "clean": 0.0}


def official_names(packed):
    """The tensors of the official `to_tensor`, by name."""
    text, latent, semantic = packed.indexes("text"), packed.indexes("clean", "noised"), packed.indexes("semantic")
    labelled = np.flatnonzero(packed.labels != NO_LABEL)
    starts = np.flatnonzero(packed.kind == "semantic")
    images = [n - 2 for n, m in zip(packed.split_lengths, split_kinds(packed), strict=True) if m == "semantic"]
    return {
        "packed_text_ids": packed.ids[text],
        "packed_text_indexes": text,
        "packed_position_ids": packed.places.rotary,
        "packed_vae_token_indexes": latent,
        "packed_latent_position_ids": packed.position[latent],
        "packed_timesteps": packed.normal[latent],
        "mse_loss_indexes": latent[packed.normal[latent] > GIVEN],
        "packed_vit_token_indexes": semantic,
        "packed_vit_position_ids": packed.position[starts],
        "vit_token_seqlens": images,
        "packed_label_ids": packed.labels[labelled],
        "ce_loss_indexes": labelled,
        "ce_loss_weights": packed.label_weights[labelled],
        "attention_mask": visible(packed.places, packed.places),
        "sample_lens": packed.sample_lengths,
        "split_lens": packed.split_lengths,
        "attn_modes": packed.modes,
        "patchified_vae_latent_shapes": packed.grids,
    }


def split_kinds(packed):
    """The kind of the token after the first of each split."""
    starts = np.cumsum([0, *packed.split_lengths[:-1]])
    return [packed.kind[start + 1] for start in starts]


@cases("bagel_packing")
def test_packs_are_the_official_ones(case):
    calls = case.calls(r"PackedDataset\.pack_sequence.*")
    assert len(calls) == len(case.description["calls"])
    for call in calls:
        inputs = dict(call.inputs)
        samples = [[item(case.constructor, planned) for planned in s["plan"]] for s in inputs.pop("samples")]
        dropout = inputs.pop("dropout")
        dropout = {"text": dropout["text"], "clean": dropout["vae"], "semantic": dropout["vit"]}
        uniform, normal = iter(inputs.pop("uniform_draws")), iter(inputs.pop("normal_draws"))
        assert not inputs, inputs
        arranged = [arrange(sample, dropout, uniform) for sample in samples]
        packed = pack(arranged, markers(case.constructor), capacity=capacity(case.constructor), normals=normal)
        assert next(uniform, None) is None and next(normal, None) is None  # every draw was asked for
        ours = official_names(packed)
        assert call.outputs
        for name, expected in call.outputs.items():
            if isinstance(expected, list):
                assert ours[name] == expected, name
            elif np.issubdtype(expected.dtype, np.integer):
                np.testing.assert_array_equal(ours[name], expected, err_msg=name)
            else:
                case.assert_close(ours[name], expected)


def edit(ids=(5, 6), side=2):
    values = np.arange(side**2 * 3, dtype=np.float32).reshape(-1, 3)
    return [
        Item("clean", grid=(side, side), values=values, droppable=True),
        Item("text", ids=ids, droppable=True),
        Item("noised", grid=(side, side), values=-values),
    ]


def packed_edits(count=2, **changes):
    arranged = [arrange(edit(**changes), NOTHING, itertools.repeat(0.5)) for _ in range(count)]
    return pack(arranged, MARKERS, capacity={"clean": 4, "noised": 4}, normals=itertools.count(0.25, 0.5))


def test_buffers_hold_every_token_of_a_pack_and_padding_that_nobody_sees():
    packed = packed_edits()
    held = buffers(packed, {"text": 20, "clean": 8, "noised": 11})
    assert held.keys() == {"text", "clean", "noised"}
    for kind, arrays in held.items():
        at, count = packed.indexes(kind), int(arrays["mask"].sum())
        assert count == len(at) and arrays["mask"][:count].all()
        np.testing.assert_array_equal(arrays["places"].rotary[:count], packed.places.rotary[at])
    np.testing.assert_array_equal(held["text"]["ids"][: len(packed.indexes("text"))], packed.ids[packed.kind == "text"])
    for kind in ("clean", "noised"):
        np.testing.assert_array_equal(held[kind]["values"][:8], packed.values[kind])
    both = Places(*(np.concatenate(each) for each in zip(*(held[kind]["places"] for kind in held), strict=True)))
    seen = visible(both, both)
    real = np.concatenate([held[kind]["mask"] for kind in held])
    assert not seen[np.ix_(real, ~real)].any() and not seen[np.ix_(~real, real)].any()
    assert np.diag(seen).all()  # a softmax over nothing is not a number
    at = np.concatenate([packed.indexes(kind) for kind in held])
    np.testing.assert_array_equal(seen[np.ix_(real, real)], visible(packed.places, packed.places)[np.ix_(at, at)])


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"a pack has 8 noised tokens, its buffer is of 7"):
        buffers(packed_edits(), {"text": 20, "clean": 8, "noised": 7})
    with pytest.raises(ValueError, match="5 x 5 clean tokens; the table of positions has room for 4 x 4"):
        packed_edits(side=5)
    with pytest.raises(ValueError, match="cannot hold a sample of 200"):
        Budget(expected=50, maximum=100, per_sample=200)
    with pytest.raises(ValueError, match="has a loss and may be dropped"):
        Item("noised", grid=(2, 2), droppable=True)
    with pytest.raises(ValueError, match="kind 'picture'"):
        Item("picture")
    with pytest.raises(ValueError, match=r"\['no'\] are none of"):
        Places.of_splits([2], ["no"], [0], np.zeros(2))


def as_written(groups, budget, seed, count):
    """The packs that the official loop makes, written down once more line by line."""

    def shares():
        for number in itertools.count(1):
            yield np.random.default_rng((seed, number)).random()

    weights = np.cumsum([g.weight for g in groups]) / sum(g.weight for g in groups)
    draws, position, waiting, packs, current, length = shares(), [0] * len(groups), [], [], [], 0

    def following(group):
        position[group] += 1
        return group, position[group] - 1

    def size(sample, dropped):
        return sum(groups[sample[0]].sizes(sample[1])[dropped].values())

    while len(packs) < count:
        if length == 0:
            for number, group in enumerate(groups):
                while group.mandatory:
                    sample = following(number)
                    if size(sample, 0) < budget.per_sample:
                        current.append(sample)
                        length += size(sample, 1)
                        break
        if length < budget.prefer_buffer_before and waiting:
            sample, waited = waiting.pop(0), True
        else:
            n = next(draws)
            sample, waited = following(next(i for i, share in enumerate(weights) if n < share)), False
        if size(sample, 0) > budget.per_sample:
            continue
        if length + size(sample, 0) > budget.maximum:
            if len(waiting) < budget.buffer and not waited:
                waiting.append(sample)
            else:
                packs.append(current)
                current, length = [], 0
            continue
        current.append(sample)
        length += size(sample, 1)
        if length >= budget.expected:
            packs.append(current)
            current, length = [], 0
    return packs


def groups_of(*specs):
    def sizes(scale, position):
        whole = int(np.random.default_rng((scale, position)).integers(scale // 2, scale))
        return {"text": whole, "noised": 8}, {"text": whole if position % 3 else 2, "noised": 8}

    return [Group(lambda p, scale=scale: sizes(scale, p), weight, mandatory) for scale, weight, mandatory in specs]


BUDGET = Budget(expected=100, maximum=120, per_sample=60, buffer=2, prefer_buffer_before=50)


def test_packs_are_filled_by_the_official_rule():
    groups = groups_of((30, 1.0, False), (70, 2.0, True))
    filling = PackFilling(groups, BUDGET, seed=3)
    ours = list(itertools.islice(filling, 60))
    assert ours == as_written(groups, BUDGET, 3, 60)
    lengths = [sum(sum(groups[g].sizes(p)[1].values()) for g, p in chosen) for chosen in ours]
    assert max(lengths) <= BUDGET.maximum and np.mean(lengths) > 80
    assert {g for chosen in ours for g, _ in chosen[:1]} == {1}  # the mandatory group begins


def test_no_buffer_overflows():
    groups = groups_of((30, 1.0, False))
    budget = Budget(expected=100, maximum=120, per_sample=60, maximum_of={"noised": 24, "text": 60})
    for chosen in itertools.islice(PackFilling(groups, budget, seed=0), 40):
        used = [groups[g].sizes(p)[1] for g, p in chosen]
        assert sum(u["noised"] for u in used) <= 24 and sum(u["text"] for u in used) <= 60


def test_filling_continues_exactly():
    groups = groups_of((30, 1.0, False), (70, 2.0, False))
    whole = PackFilling(groups, BUDGET, seed=3)
    first = [next(whole)]
    while not whole.get_state()["waiting"]:  # until some samples wait, which is the hard part
        first.append(next(whole))
    state = whole.get_state()
    other = PackFilling(groups, BUDGET, seed=3)
    other.set_state(state)
    assert list(itertools.islice(other, 20)) == list(itertools.islice(whole, 20))
    assert first != list(itertools.islice(PackFilling(groups, BUDGET, seed=4), len(first)))
