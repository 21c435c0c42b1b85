"""The statistics command on the digits, against NumPy in double precision over all latents at once."""

import jax
import numpy as np
import runs
from whole_autoencoder import autoencoder

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.data.digits import digits as digits_of
from rae_jax.interop.checkpoint_files import read_safetensors
from rae_jax.interop.statistics import import_statistics
from rae_jax.interop.weights import save_weights
from rae_jax.training import sharding


def test_the_command_writes_exact_statistics_in_both_formats(tmp_path):
    config = digits.get_config("tiny")
    encoder = sharding.unbox(jax.jit(component(config, "encoder").init)(jax.random.key(0)))
    save_weights(tmp_path / "encoder", encoder, {"component": "encoder", "config": {}})
    options = [
        "--config=configs/digits.py:tiny", f"--config.encoder.weights={tmp_path / 'encoder'}",
        f"--workdir={tmp_path / 'run'}", f"--official={tmp_path / 'stat.safetensors'}",
    ]  # fmt: skip
    status, output = runs.run_module("tools.latent_statistics", *options, devices=4)
    assert status == 0, output
    images = digits_of("train").images.astype(np.float32) / 255
    tokens = jax.jit(lambda p, x: autoencoder(config).apply({"params": p}, x, method="tokens"))(
        {"encoder": encoder}, images
    )
    tokens = np.asarray(tokens, np.float64)
    ours = component(config, "stats").load(tmp_path / "run" / "stats" / "weights")
    np.testing.assert_allclose(ours["mean"], tokens.mean(0), atol=1e-5)
    np.testing.assert_allclose(ours["variance"], tokens.var(0), rtol=1e-4, atol=1e-7)
    official = import_statistics(read_safetensors(tmp_path / "stat.safetensors"))
    np.testing.assert_array_equal(official.mean, ours["mean"])
    np.testing.assert_array_equal(official.variance, ours["variance"])
    assert not (tmp_path / "run" / "samples.npz").exists()
