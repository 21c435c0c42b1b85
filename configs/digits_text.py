"""The laptop experiment of text to image: scenes of digits that are painted from prompts and asked about, on a CPU.

    python -m rae_jax.main --config=configs/digits_text.py
    python -m rae_jax.main --config=configs/digits_text.py --mode=sample --prompt="a red two at the top left"

An encoder is pretrained on the scenes and frozen, a decoder inverts it, the latents' statistics are measured; then a
small language model is trained from nothing, together with the DiT that its hidden states condition, on requests and
questions, half and half. It takes 25 minutes on two cores, and then paints 99 % of the prompts and answers 91 % of the
questions.
"""

from ml_collections import ConfigDict

from configs import architectures, base, variants
from configs.digits import shorten, shrink_autoencoder, stage


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `configs/digits_text.py:tiny` is the same pipeline in seconds, for tests: nothing is learnt.

    Further variants: "features", RAEv2's generator on the features of a frozen language model, here an untrained one;
    "understanding", without generation; "kl", in the latents of a KL-VAE, which is trained first;
    "unguided"; "unshifted". "few_steps" goes on to a flow map that paints in one step and in two.
    """
    words = variants.words_of(
        variant,
        ("tiny",),
        ("understanding", "features", "few_steps"),
        ("kl",),
        ("unguided",),
        ("unshifted",),
        file="configs/digits_text.py",
    )
    config = base.get_config()
    config.stages = ("encoder", "decoder", "stats", "text_to_image")

    config.data.source = "scenes"
    config.data.test_split = "test"
    config.data.image_size = 32
    config.data.num_workers = 0
    config.cpu_devices = 2

    # 16 tokens of 64 channels, four a cell.
    config.encoder.input_size = 32
    config.encoder.image_mean = (0.1, 0.1, 0.1)
    config.encoder.image_std = (0.25, 0.25, 0.25)
    config.encoder.model = architectures.vision_transformer(image_size=32, patch_size=8, width=64, depth=4, num_heads=4)
    config.encoder.head = ConfigDict(dict(width=64, depth=2, num_heads=4, mlp_dim=256))
    config.encoder.mask_ratio = 0.5
    config.encoder.covariance_weight = 0.1  # or the latents are of colours before all else, and digits learnt late
    stage(config.encoder.train, steps=1000, batch_size=64, learning_rate=2e-3, ema_decay=0.995)

    config.decoder.model = architectures.vit_decoder(patch_size=8, width=64, depth=3, num_heads=4, mlp_dim=256)
    config.decoder.noise_tau = 0.3
    # Of 1,000 steps of 64, as long, an eighth of the digits came back as others: 22.5 dB in place of 29.3.
    stage(config.decoder.train, steps=2200, batch_size=32, learning_rate=2e-3, ema_decay=0.995)

    config.stats.train.transform = "none"
    config.stats.train.batch_size = 200

    config.language_model.tokenizer = "scenes"
    config.language_model.context = 80
    # Wide heads with keys of their own and a high base: a digit must match its word, however far it stands from it.
    config.language_model.model = architectures.language_model(
        vocabulary=448, width=96, depth=3, num_heads=4, num_kv_heads=4, head_dim=48, hidden=256, rope_theta=1e6
    )
    config.adapters.spatial_merge = 2  # a cell's four tokens as one: a single one does not tell its digit
    config.adapters.condition_std = 0.1
    config.text_dit.model = architectures.text_dit(width=128, depth=4, num_heads=4)
    config.flow.shift_base = 64  # a shift of 4: more of the times at which the prompt decides
    config.text_to_image.loss_chunk = 80
    config.text_to_image.question_share = 0.5
    stage(config.text_to_image.train, steps=5300, batch_size=32, learning_rate=2.5e-3, ema_decay=0.998)
    config.text_to_image.train.optimizer.name = "muon"
    stage_optimizer(config, learning_rate=2.5e-3)
    config.text_to_image.train.pictures_every = 1000

    config.sampling.num_samples = 600
    config.sampling.batch_size = 100
    config.sampling.guidance_scale = 2.0
    config.sampling.answer_tokens = 16

    config.evaluation.scenes = True

    if "understanding" in words:
        config.stages = ("encoder", "text_to_image")
        config.text_to_image.trains = ("language_model", "adapters")
        config.text_to_image.question_share = 1.0
    if "kl" in words:
        config.autoencoder, config.latent_patch_size = "kl", 4  # as many tokens as the encoder gives
        config.stages = ("encoder", "teacher", "stats", "text_to_image")
        config.teacher.model = architectures.kl_vae(
            channels=(16, 32), latent_channels=4, num_groups=8, middle_attention=False
        )
        stage(config.teacher.train, steps=2000, batch_size=64, learning_rate=1e-3, ema_decay=0.995)
    if "unguided" in words:
        config.sampling.guidance_scale = 1.0
    if "unshifted" in words:
        config.flow.shift_base = 16 * 64
    if "few_steps" in words:
        few_steps(config, "text_dit")
        config.flow_map.guided, config.flow_map.largest_guidance_scale = True, 4.0
    if "features" in words:
        config.stages = (*config.stages[:-1], "flow")
        config.language_model.weights = "random"
        config.flow.family, config.flow.prediction, config.flow.t_eps = "dit_in_context", "x", 0.05
        config.flow.model = architectures.dit_in_context(
            width=128, depth=4, num_heads=4, head_width=128, head_depth=2, head_num_heads=4, base_depth=2,
            condition_tokens=40, context_width=config.language_model.model.width,
        )  # fmt: skip
        config.flow.num_classes = 0
        config.evaluation.scenes = False  # nothing answers questions
        stage(config.flow.train, steps=3000, batch_size=64, learning_rate=2e-3, ema_decay=0.998)
    if "tiny" in words:
        shrink(config)
    return config


def stage_optimizer(config: ConfigDict, *, learning_rate: float) -> None:
    """The DiT's optimizer: the language model's with another rate."""
    config.text_to_image.image_optimizer = config.text_to_image.train.optimizer.copy_and_resolve_references()
    config.text_to_image.image_optimizer.learning_rate = learning_rate
    config.text_to_image.image_optimizer.final_learning_rate = learning_rate / 10


def few_steps(config: ConfigDict, teacher: str) -> None:
    """Adds consistency mid-training and MeanFlow distillation of the component `teacher` (MF-RAE)."""
    config.stages = (*config.stages, "mid_training", "flow_map")
    config.mid_training.initial = teacher
    config.mid_training.pairs = 16
    stage(config.mid_training.train, steps=300, batch_size=16, learning_rate=2e-3, ema_decay=0.99)
    config.flow_map.unequal_share = 0.75
    # With 2e-3 for twice the steps fewer prompts are painted in one step.
    stage(config.flow_map.train, steps=600, batch_size=32, learning_rate=3e-4, ema_decay=0.995)
    config.flow_map.train.max_gradient_norm = 1e4


def shrink(config: ConfigDict) -> None:
    """Makes every part small and every stage short."""
    shrink_autoencoder(config)
    config.cpu_devices = 1  # compiles sooner
    config.language_model.model.width, config.language_model.model.depth = 16, 1
    config.language_model.model.num_heads, config.language_model.model.num_kv_heads = 2, 1
    config.language_model.model.head_dim, config.language_model.model.hidden = 8, 16
    config.text_dit.model.width, config.text_dit.model.depth, config.text_dit.model.num_heads = 16, 1, 2
    config.text_dit.model.condition_width = 16
    if config.flow.model:
        config.flow.model.width, config.flow.model.depth, config.flow.model.num_heads = 16, 2, 2
        config.flow.model.head_width, config.flow.model.head_depth, config.flow.model.head_num_heads = 16, 1, 2
        config.flow.model.context_width, config.flow.model.base_depth = 16, 1
    for name in config.stages:
        shorten(config[name].train)
    stage_optimizer(config, learning_rate=1e-3)
    config.text_to_image.train.pictures_every = 0
    config.mid_training.trajectory_steps, config.mid_training.pairs = 3, 2
    config.stats.train.batch_size = 256
    config.sampling.num_samples = 12
    config.sampling.num_steps = 4
    config.lpips.weights = config.lpips_alexnet.weights = ""
