"""KL-VAE and rectified coder together, both from scratch (RAC, Table 4).

The KL-VAE has the loss of `objectives/kl_autoencoding.py`, the coder that of `objectives/rectified_coder.py`, and their
sum trains both: what the coder makes of a latent reaches the encoder that made it. The paper says no more than that the
two are trained jointly. Ours: the weights are those of the two losses alone, and the coder's latent comes to the
teacher's, not that to it.
"""

import jax
from ml_collections import ConfigDict

from rae_jax.components.component import Params
from rae_jax.components.latent_spaces import by_name, coder, teacher
from rae_jax.objectives.kl_autoencoding import autoencoder_loss
from rae_jax.objectives.objective import Batch, Metrics, Objective, single_network, stage_key, to_float
from rae_jax.objectives.rectified_coder import coder_loss, coder_pictures
from rae_jax.training.state import TrainState


def make(config: ConfigDict, stage: str) -> Objective:
    """The objective of `stage`, which trains the components "teacher" and "coder"."""
    section, parts = config[stage], by_name(teacher(config), coder(config))
    of_teacher, of_coder, drawn = autoencoder_loss(config), coder_loss(config), coder_pictures(config)
    if set(section.trains) != parts.keys():
        raise ValueError(f"{stage}.trains={tuple(section.trains)} is not {' and '.join(parts)}")

    def init(key: jax.Array) -> Params:
        return {name: part.init(jax.random.fold_in(key, i)) for i, (name, part) in enumerate(parts.items())}

    def loss(params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        del frozen
        teacher_key, coder_key = jax.random.split(key)
        images = to_float(batch)
        autoencoding, terms = of_teacher(params["teacher"], images, teacher_key)
        coding, coder_terms = of_coder(params["coder"], params["teacher"], images, coder_key)
        coder_terms = {f"coder_{name}": value for name, value in coder_terms.items()}
        return autoencoding + coding, terms | coder_terms

    def pictures(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        return drawn(state.ema_params["coder"], state.ema_params["teacher"], to_float(batch))

    return single_network(
        model_init=init,
        loss=loss,
        train=section.train,
        key=stage_key(config.seed, stage),
        frozen={},
        pictures=pictures,
    )
