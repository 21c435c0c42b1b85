"""DiT^DH and LightningDiT from and to official checkpoints: everything comes back, and mistakes are named."""

import jax
import numpy as np
import pytest
from flax.core import meta
from golden import cases, networks
from golden_modules import DIT_DH, LIGHTNING_DIT, format_of, network, untold

from rae_jax.interop.dit_dh import import_dit_dh
from rae_jax.interop.lightning_dit import import_lightning_dit, mlp_ratio

TRANSFORMERS = ("dit_dh", "mf_dit_dh", "sample_euler_dit_dh", "mf_losses", "lightning_dit")


@networks(*TRANSFORMERS)
def test_a_checkpoint_fits_its_module_exactly_and_comes_back_as_the_same_tensors(case, prefix):
    official, constructor = case.weights_under(prefix), case.networks[prefix]
    kind = format_of(constructor)
    model, _, params, architecture, carried = network(case, prefix)

    latents = np.zeros((1, architecture["grid_size"] ** 2, architecture["in_channels"]), np.float32)
    times = [np.ones(1, np.float32)] * (1 + architecture["flow_map"])
    arguments = latents, times[0], np.ones(1, np.int32), *times[1:]
    like = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"])
    kind.read(official, **untold(constructor), like=like)  # raises unless names and shapes are the module's

    back = kind.write(params, architecture, carried)
    assert back.keys() == official.keys()
    for key, w in official.items():
        assert back[key].dtype == w.dtype
        np.testing.assert_array_equal(back[key], w, err_msg=key)


@networks(*TRANSFORMERS)
def test_without_carried_tables_the_export_computes_the_references(case, prefix):
    _, _, params, architecture, carried = network(case, prefix)
    back = format_of(case.networks[prefix]).write(params, architecture)
    assert back.keys() == case.weights_under(prefix).keys()
    for key, table in carried.items():
        # Positions are equal to the bit; cosines and sines to the last bit or the one before, as libraries differ.
        np.testing.assert_allclose(back[key], table, rtol=0, atol=0 if key == "pos_embed" else 6e-8, err_msg=key)


@networks(*TRANSFORMERS)
def test_the_architecture_is_the_constructors(case, prefix):
    constructor, architecture = case.networks[prefix], network(case, prefix).architecture
    same = {
        "input_size": "grid_size",
        "patch_size": "patch_size",
        "in_channels": "in_channels",
        "mlp_ratio": "mlp_ratio",
        "num_classes": "num_classes",
        "use_qknorm": "qk_norm",
        "use_swiglu": "swiglu",
        "use_rmsnorm": "rms_norm",
    }
    dit_dh = format_of(constructor) is DIT_DH
    if dit_dh:
        same |= {"use_pos_embed": "absolute_positions"}
    else:
        same |= {"use_rope": "rope", "learn_sigma": "learn_sigma"}
    assert {ours: architecture[ours] for ours in same.values()} == {same[k]: constructor[k] for k in same}
    for official, ours in (("hidden_size", "width"), ("depth", "depth"), ("num_heads", "num_heads")):
        expected = constructor[official]
        if dit_dh:
            assert [architecture[ours], architecture[f"head_{ours}"]] == expected
        else:
            assert architecture[ours] == expected
    what = case.description["weights_prefixes"][prefix] if prefix else case.description["source"]
    assert architecture["flow_map"] == ("DiTwDDTHead_MF" in what)


@cases("dit_dh", where=lambda case: len(set(case.constructor["hidden_size"])) == 1)
def test_where_the_head_begins_can_be_told_when_the_file_does_not(case):
    official = case.weights_under(next(iter(case.networks)))
    official = {name: w for name, w in official.items() if "q_norm." not in name and "k_norm." not in name}
    blocks = sum(case.constructor["depth"])
    assert import_dit_dh(official)[0]["depth"] == blocks - 2
    architecture, params, _ = import_dit_dh(official, head_depth=1)
    assert (architecture["depth"], architecture["head_depth"]) == (blocks - 1, 1)
    assert {f"blocks_{blocks - 2}", "head_blocks_0"} <= params.keys()
    with pytest.raises(ValueError, match="leave no backbone before the head"):
        import_dit_dh(official, head_depth=blocks)


@cases("lightning_dit", where=lambda case: not case.constructor["use_rope"])
def test_heads_that_the_file_does_not_tell_come_from_the_published_sizes_or_the_caller(case):
    official = case.weights_under(next(iter(case.networks)))
    official = {name: w for name, w in official.items() if "q_norm" not in name and "k_norm" not in name}
    with pytest.raises(
        ValueError, match=f"no published model has width {case.constructor['hidden_size']}; give num_heads"
    ):
        import_lightning_dit(official)
    assert import_lightning_dit(official, num_heads=4)[0]["num_heads"] == 4


@pytest.mark.parametrize("ratio", [1.0, 2.0, 2.5, 3.0, 3.3, 4.0])
@pytest.mark.parametrize("swiglu", [False, True])
def test_the_feed_forward_ratio_is_recovered_up_to_what_it_decides(ratio, swiglu):
    def hidden(width, ratio):
        return int(2 / 3 * int(width * ratio)) if swiglu else int(width * ratio)

    widths = {width: hidden(width, ratio) for width in (48, 64)}
    found = mlp_ratio(widths, swiglu)
    assert {width: hidden(width, found) for width in widths} == widths
    assert found == pytest.approx(ratio, abs=0.05)


@networks("dit_dh")
def test_damaged_checkpoints_are_refused_with_names(case, prefix):
    official, options = case.weights_under(prefix), untold(case.networks[prefix])
    last = f"blocks.{sum(case.networks[prefix]['depth']) - 1}.attn.qkv"
    damaged = dict(official)
    damaged[f"{last}_weight"] = damaged.pop(f"{last}.weight")
    with pytest.raises(ValueError, match=rf"missing    {last}\.weight; nearest: {last}_weight"):
        import_dit_dh(damaged, **options)
    turned = official | {"dec_feat_rope.freqs_sin": -official["dec_feat_rope.freqs_sin"]}
    with pytest.raises(ValueError, match=r"dec_feat_rope\.freqs_sin in the file is not the fixed one"):
        import_dit_dh(turned, **options)


@networks("dit_dh", "lightning_dit")
def test_positions_that_were_trained_are_parameters(case, prefix):
    official, form = case.weights_under(prefix), format_of(case.networks[prefix])
    if "pos_embed" not in official:
        pytest.skip("a network without positions at its input")
    moved = official | {"pos_embed": official["pos_embed"] + 1e-3}
    architecture, params, carried = form.read(moved, **untold(case.networks[prefix]))
    assert architecture["trained_tables"] and "pos_embed" not in carried
    np.testing.assert_array_equal(form.write(params, architecture, carried)["pos_embed"], moved["pos_embed"])
    model = form.module(**architecture)
    z = np.zeros((1, architecture["grid_size"] ** 2, architecture["in_channels"]), np.float32)
    t = np.zeros(1, np.float32)
    arguments = z, t, np.zeros(1, np.int32), *[t] * architecture["flow_map"]
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, meta.unbox(shapes)) == jax.tree.map(np.shape, params)


@networks("lightning_dit")
def test_a_foreign_checkpoint_is_refused_with_the_names_that_it_has_not(case, prefix):
    assert format_of(case.networks[prefix]) is LIGHTNING_DIT
    with pytest.raises(ValueError, match=r"there is no enc_feat_rope\.freqs_cos"):
        import_dit_dh(case.weights_under(prefix))
