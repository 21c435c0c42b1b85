"""DiT^DH and LightningDiT from and to official checkpoints: everything comes back, and mistakes are named."""

import jax
import numpy as np
import pytest
from flax.core import meta
from golden import load_case

from rae_jax.interop.dit_dh import export_dit_dh, import_dit_dh
from rae_jax.interop.lightning_dit import export_lightning_dit, import_lightning_dit, mlp_ratio
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.lightning_dit import LightningDiT

DIT_DH = (import_dit_dh, export_dit_dh, DiTDH)
LIGHTNING_DIT = (import_lightning_dit, export_lightning_dit, LightningDiT)
CASES = [
    ("dit_dh_xl_flags", "model.", DIT_DH),
    ("dit_dh_xl_flags", "guidance_model.", DIT_DH),
    ("dit_dh_equal_width_qknorm", "", DIT_DH),
    ("dit_dh_layernorm_gelu", "", DIT_DH),
    ("mf_dit_dh", "", DIT_DH),
    ("sample_euler_dit_dh", "", DIT_DH),
    ("sample_euler_dit_dh_10_steps", "", DIT_DH),
    ("lightning_dit", "model.", LIGHTNING_DIT),
    ("lightning_dit", "guidance_model.", LIGHTNING_DIT),
    ("lightning_dit_patch2", "", LIGHTNING_DIT),
]


@pytest.mark.parametrize(("name", "prefix", "kind"), CASES)
def test_a_checkpoint_fits_its_module_exactly_and_comes_back_as_the_same_tensors(name, prefix, kind):
    import_model, export_model, module = kind
    case = load_case(name)
    official = case.weights_under(prefix)
    architecture, params, carried = import_model(official)

    latents = np.zeros((1, architecture["grid_size"] ** 2, architecture["in_channels"]), np.float32)
    times = [np.ones(1, np.float32)] * (1 + architecture["flow_map"])
    arguments = latents, times[0], np.ones(1, np.int32), *times[1:]
    like = meta.unbox(jax.eval_shape(module(**architecture).init, jax.random.key(0), *arguments)["params"])
    import_model(official, like=like)  # raises unless names and shapes are the module's

    back = export_model(params, architecture, carried)
    assert back.keys() == official.keys()
    for key, w in official.items():
        assert back[key].dtype == w.dtype
        np.testing.assert_array_equal(back[key], w, err_msg=key)


@pytest.mark.parametrize(("name", "prefix", "kind"), CASES)
def test_without_carried_tables_the_export_computes_the_references(name, prefix, kind):
    import_model, export_model, _ = kind
    official = load_case(name).weights_under(prefix)
    architecture, params, carried = import_model(official)
    back = export_model(params, architecture)
    assert back.keys() == official.keys()
    for key, table in carried.items():
        # Positions are equal to the bit; cosines and sines to the last bit or the one before, as libraries differ.
        np.testing.assert_allclose(back[key], table, rtol=0, atol=0 if key == "pos_embed" else 6e-8, err_msg=key)


@pytest.mark.parametrize(("name", "prefix", "kind"), CASES)
def test_the_architecture_is_the_constructors(name, prefix, kind):
    case = load_case(name)
    constructor = case.description["constructor"]
    if prefix.startswith("guidance"):
        constructor = case.description.get("guidance_model_constructor", constructor)
    architecture, _, _ = kind[0](case.weights_under(prefix))
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
    if kind is DIT_DH:
        same |= {"use_pos_embed": "absolute_positions"}
    else:
        same |= {"use_rope": "rope", "learn_sigma": "learn_sigma"}
    assert {ours: architecture[ours] for ours in same.values()} == {same[k]: constructor[k] for k in same}
    for official, ours in (("hidden_size", "width"), ("depth", "depth"), ("num_heads", "num_heads")):
        expected = constructor[official]
        if kind is DIT_DH:
            assert [architecture[ours], architecture[f"head_{ours}"]] == expected
        else:
            assert architecture[ours] == expected
    assert architecture["flow_map"] == (name == "mf_dit_dh")


def test_where_the_head_begins_can_be_told_when_the_file_does_not():
    official = load_case("dit_dh_equal_width_qknorm").weights
    official = {name: w for name, w in official.items() if "_norm." not in name or "norm_final" in name}
    assert import_dit_dh(official)[0]["depth"] == 2
    architecture, params, _ = import_dit_dh(official, head_depth=1)
    assert (architecture["depth"], architecture["head_depth"]) == (3, 1)
    assert {"blocks_2", "head_blocks_0"} <= params.keys()
    with pytest.raises(ValueError, match="leave no backbone before the head"):
        import_dit_dh(official, head_depth=4)


def test_heads_that_the_file_does_not_tell_come_from_the_published_sizes_or_the_caller():
    official = load_case("lightning_dit_patch2").weights
    official = {name: w for name, w in official.items() if "q_norm" not in name and "k_norm" not in name}
    with pytest.raises(ValueError, match="no published model has width 64; give num_heads"):
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


def test_damaged_and_foreign_checkpoints_are_refused_with_names():
    official = dict(load_case("dit_dh_xl_flags").weights_under("model."))
    damaged = dict(official)
    damaged["blocks.1.attn.qkv_weight"] = damaged.pop("blocks.1.attn.qkv.weight")
    with pytest.raises(
        ValueError, match=r"missing    blocks\.1\.attn\.qkv\.weight; nearest: blocks\.1\.attn\.qkv_weight"
    ):
        import_dit_dh(damaged)
    with pytest.raises(ValueError, match=r"there is no enc_feat_rope\.freqs_cos"):
        import_dit_dh(load_case("lightning_dit").weights_under("model."))
    turned = official | {"dec_feat_rope.freqs_sin": -official["dec_feat_rope.freqs_sin"]}
    with pytest.raises(ValueError, match=r"dec_feat_rope\.freqs_sin in the file is not the fixed one"):
        import_dit_dh(turned)
