"""One file an objective: each gives a loss and one train_step, and `make(config, stage)` builds it from its section."""

from rae_jax.objectives import (
    aligned_velocity,
    bridge,
    cmt,
    end_to_end_tuning,
    kl_autoencoding,
    latent_statistics,
    masked_autoencoding,
    meanflow,
    pivot,
    reconstruction,
    rectified_coder,
    velocity,
)

OBJECTIVES = {
    "bridge": bridge.make,
    "aligned_velocity": aligned_velocity.make,
    "consistency_mid_training": cmt.make,
    "end_to_end_tuning": end_to_end_tuning.make,
    "kl_autoencoding": kl_autoencoding.make,
    "latent_statistics": latent_statistics.make,
    "masked_autoencoding": masked_autoencoding.make,
    "meanflow": meanflow.make,
    "pivot": pivot.make,
    "reconstruction": reconstruction.make,
    "rectified_coder": rectified_coder.make,
    "velocity": velocity.make,
}
