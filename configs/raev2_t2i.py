"""RAEv2 from text: the in-context generator on DINOv3-L's latents, told by the features of a frozen Qwen3-0.6B.

    python -m rae_jax.main --config=configs/raev2_t2i.py:k7 --config.flow.mixture="((DIR, 1.0),)" \\
        --config.language_model.weights=QWEN_DIR --config.language_model.tokenizer=QWEN_DIR \\
        --config.encoder.weights=FILE --config.decoder.weights=FILE --config.stats.weights=FILE

Words after the colon as of `configs/raev2_dinov3l.py`, whose latents, generator and optimizer these are. A caption is
its raw text, up to 256 tokens; their features are 256 tokens of the sequence, of which padding is not seen, and so
nothing of the empty text, which stands for one caption in ten. Captions are what `python -m tools.prepare_captions` has
written; the release trains on BLIP3o's journeydb, long and short captions, 36 million. 200,000 steps, guided by 6.
Reported by the paper, on SigLIP 2-B's latents: GenEval 62.4, DPG-Bench 81.7. Nothing of it has been run at full size
with this code.
"""

from ml_collections import ConfigDict

from configs import architectures, raev2_dinov3l, variants
from rae_jax.models.language_model import SIZES as LANGUAGE_MODELS

WORDS = 256


def get_config(variant: str = "k7") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: there is no such variant.
    """
    words = variants.words_of(variant, raev2_dinov3l.LAYERS, file="configs/raev2_t2i.py")
    config = raev2_dinov3l.get_config(words[0] if words else "k7")
    config.stages = ("flow",)
    told = LANGUAGE_MODELS["qwen3-0.6b"]
    config.language_model.dtype = "float32"
    config.language_model.model = architectures.language_model(**told, scan=True)
    config.flow.model.context_width = told["width"]
    config.flow.model.condition_tokens = WORDS
    config.flow.num_classes = 0
    train = config.flow.train
    train.transform = "resize"
    train.epochs, train.steps = 0.0, 200_000
    train.optimizer.warmup_epochs, train.optimizer.warmup_steps = 0.0, 50_000
    train.optimizer.decay_end_epoch, train.optimizer.decay_end_step = 0.0, 150_000
    config.sampling.num_steps = 50
    config.sampling.guidance_scale = 6.0
    config.sampling.internal_guidance_scale = 1.0
    return config
