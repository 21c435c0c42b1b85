"""The architectures that an experiment may choose: every field of each, with its published value.

A function returns what a component's section has as `model`; any field can be changed by keyword.
"""

from ml_collections import ConfigDict


def vision_transformer(
    *, image_size: int, patch_size: int, width: int, depth: int, num_heads: int, **changes: object
) -> ConfigDict:
    """Every field of the encoder's architecture; the defaults are a plain ViT with a class token."""
    fields = dict(
        image_size=image_size,  # of the position table; 0: positions are rotary
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=4 * width,
        num_registers=0,
        cls_token=True,
        layer_scale=False,
        activation="gelu",  # "gelu" (exact), "gelu_tanh", "swiglu"
        qkv_bias=True,
        key_bias=True,  # False: the key alone has none
        positions="learned",  # or "sincos", "rotary"
        position_interpolation="bicubic",  # or "bicubic_antialias", "bilinear_antialias" (SigLIP 2 NaFlex)
        rope_theta=100.0,  # of rotary positions
        stored_periods=False,  # True: their periods are in the file, rounded, as in Meta's own; RAEv2 has these
        layers=(),  # blocks, from 0, whose tokens are averaged, plus the deepest's mean token (RAEv2); (): the last
        norm_epsilon=1e-6,
        scan=False,  # one stacked block instead of one after the other: compiles faster
        remat="none",  # "full" or "dots": recompute in the backward pass instead of keeping
    )
    return _with(fields, changes)


def vit_decoder(
    *, patch_size: int, width: int, depth: int, num_heads: int, mlp_dim: int, **changes: object
) -> ConfigDict:
    """Every field of the ViT decoder's architecture."""
    fields = dict(
        patch_size=patch_size,  # of the image; times the grid it gives the image size
        grid_size=0,  # patches along each side; 0: as many as latents, others are resampled bilinearly to that many
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        norm_epsilon=1e-12,
        trained_tables=False,  # True: the positions are parameters, as in dit_dh
        scan=False,
        remat="none",
    )
    return _with(fields, changes)


def language_model(
    *, width: int, depth: int, num_heads: int, num_kv_heads: int, head_dim: int, hidden: int, vocabulary: int,
    **changes: object,
) -> ConfigDict:  # fmt: skip
    """Every field of a language model's architecture; the defaults are Qwen2.5's, of which `SIZES` names some."""
    fields = dict(
        vocabulary=vocabulary,
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,  # of keys and values
        head_dim=head_dim,
        hidden=hidden,  # width of the feed-forward layers
        qkv_bias=True,
        qk_norm=False,  # True, without the biases: Qwen3
        tied=True,  # the head is the table
        rope_theta=1e6,
        norm_epsilon=1e-6,
        scan=False,
        remat="none",
    )
    return _with(fields, changes)


def text_dit(*, width: int, depth: int, num_heads: int, **changes: object) -> ConfigDict:
    """Every field of the architecture of a DiT that is told a vector for each token; the defaults are Scale-RAE's."""
    fields = dict(
        width=width,
        depth=depth,
        num_heads=num_heads,
        condition_width=width,
        patch_size=1,  # latents along a side that become one token
        mlp_ratio=4.0,
        qk_norm=False,
        swiglu=True,
        rms_norm=True,
        rope=True,
        trained_tables=False,  # as in dit_dh
        fused_attention=True,
        scan=False,
        remat="none",
    )
    return _with(fields, changes)


def mixture_of_transformers(
    *, width: int, depth: int, num_heads: int, num_kv_heads: int, head_dim: int, hidden: int, vocabulary: int,
    **changes: object,
) -> ConfigDict:  # fmt: skip
    """Every field of a mixture of transformers' architecture; the defaults are Bagel's, for 16 x 16 latents."""
    fields = dict(
        vocabulary=vocabulary,
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,  # of keys and values
        head_dim=head_dim,
        hidden=hidden,  # width of the feed-forward layers
        qkv_bias=True,
        qk_norm=True,
        rope_theta=1e6,
        norm_epsilon=1e-6,
        latent_capacity=16,  # rows and columns of the table of positions
        language_head="",  # of next tokens: "own", or "tied" to the table; "": none
        freeze_understanding=False,  # no gradient through texts
        wide_head=False,  # True: the velocity by DiT^DH's head, of the sizes below, and not by a linear layer
        head_width=2048,
        head_depth=2,
        head_num_heads=16,
        fused_attention=True,  # in bfloat16 on TPUs, a kernel that computes nothing of what is hidden
        scan=False,
        remat="none",
    )
    return _with(fields, changes)


def sit(*, width: int, depth: int, num_heads: int, **changes: object) -> ConfigDict:
    """SiT (Ma et al., 2024) as a `lightning_dit`: the original DiT's blocks on patches of 2 x 2 latents.

    One thing differs: times are embedded by random Fourier features, as everywhere here, not by fixed frequencies.
    """
    original = dict(patch_size=2, swiglu=False, rms_norm=False, rope=False, learn_sigma=True)
    return lightning_dit(width=width, depth=depth, num_heads=num_heads, **original | changes)


def kl_vae(*, channels: tuple[int, ...], latent_channels: int, **changes: object) -> ConfigDict:
    """Every field of the KL-VAE's architecture; the defaults are Stable Diffusion's."""
    fields = dict(
        channels=channels,  # of each level; the latent's side is the image's, halved between levels
        latent_channels=latent_channels,
        blocks_per_level=2,
        encoder_attention_levels=(),
        decoder_attention_levels=(),
        middle_attention=True,
        num_groups=32,
        quant=True,
        post_quant=True,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    return _with(fields, changes)


def rectified_coder(*, channels: tuple[int, ...], **changes: object) -> ConfigDict:
    """Every field of the rectified coder's architecture; `models/coder.py: SCALES` names the papers' sizes."""
    fields = dict(
        channels=channels,
        state_channels=4,
        learned_projector=True,  # or average pooling
        patch_size=1,  # pixels, of the squares that the last layer makes
        positions=False,
        blocks_per_level=2,
        middle_attention=True,
        num_groups=32,
    )
    return _with(fields, changes)


def dit_dh(
    *, width: int, depth: int, num_heads: int, head_width: int = 2048, head_depth: int = 2, head_num_heads: int = 16,
    **changes: object,
) -> ConfigDict:  # fmt: skip
    """Every field of DiT^DH's architecture; the defaults are the published ones."""
    fields = dict(
        width=width,
        depth=depth,
        num_heads=num_heads,
        head_width=head_width,
        head_depth=head_depth,
        head_num_heads=head_num_heads,
        patch_size=1,
        mlp_ratio=4.0,
        qk_norm=False,
        swiglu=True,
        rms_norm=True,
        absolute_positions=True,
        trained_tables=False,  # True: positions and Fourier frequencies are parameters, as in RAE's trainer of December
        fused_attention=True,  # one kernel on TPUs, cuDNN's on GPUs that have it; plain operations elsewhere
        scan=False,
        remat="none",
    )
    return _with(fields, changes)


def dit_in_context(
    *, width: int, depth: int, num_heads: int, head_width: int = 2048, head_depth: int = 2, head_num_heads: int = 16,
    **changes: object,
) -> ConfigDict:  # fmt: skip
    """Every field of the architecture of RAEv2's generator; the defaults are the published ones."""
    fields = dict(
        width=width,
        depth=depth,
        num_heads=num_heads,
        head_width=head_width,
        head_depth=head_depth,
        head_num_heads=head_num_heads,
        base_depth=8,  # blocks before the early output; 0: there is none
        time_tokens=4,
        condition_tokens=8,  # of the class; or how many words a text has
        context_width=0,  # of a text's features in "language_model", which is frozen; 0: the condition is a class
        patch_size=1,
        mlp_ratio=4.0,
        alignment_depth=0,  # blocks before the tokens that REPA aligns (8)
        alignment_features=0,  # width of the encoder's tokens, which those are to be after a projection; 0: no REPA
        trained_frequencies=True,  # the Fourier frequencies of times are parameters like others, as released
        fused_attention=True,  # one kernel on TPUs, cuDNN's on GPUs that have it; plain operations elsewhere
        scan=False,
        remat="none",
    )
    return _with(fields, changes)


def lightning_dit(*, width: int, depth: int, num_heads: int, **changes: object) -> ConfigDict:
    """Every field of LightningDiT's architecture; the defaults are the published ones."""
    fields = dict(
        width=width,
        depth=depth,
        num_heads=num_heads,
        patch_size=1,
        mlp_ratio=4.0,
        qk_norm=False,
        swiglu=True,
        rms_norm=True,
        rope=True,
        learn_sigma=False,
        trained_tables=False,  # as in dit_dh
        fused_attention=True,  # one kernel on TPUs, cuDNN's on GPUs that have it; plain operations elsewhere
        scan=False,
        remat="none",
    )
    return _with(fields, changes)


def _with(fields: dict[str, object], changes: dict[str, object]) -> ConfigDict:
    section = ConfigDict(fields)
    section.lock()
    section.update(changes)
    return section
