"""One file an objective: each gives a loss and one train_step, and `make(config, stage)` builds it from its section."""

from rae_jax.objectives import latent_statistics, masked_autoencoding, reconstruction, velocity

OBJECTIVES = {
    "latent_statistics": latent_statistics.make,
    "masked_autoencoding": masked_autoencoding.make,
    "reconstruction": reconstruction.make,
    "velocity": velocity.make,
}
