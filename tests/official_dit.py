"""The official LightningDiT and DiT^DH, restated in PyTorch as functions of their state dict, to test every option."""

import math

import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]


def linear(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w: Tensors, name: str, x: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    weight, bias = w.get(f"{name}.weight"), w.get(f"{name}.bias")
    if weight is None or bias is not None:
        return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)
    return F.rms_norm(x, x.shape[-1:], weight, epsilon)


def gaussian_fourier(w: Tensors, name: str, t: torch.Tensor) -> torch.Tensor:
    angle = t[:, None] * w[f"{name}.W"] * 2 * math.pi
    features = torch.cat([angle.sin(), angle.cos()], dim=-1)
    return linear(w, f"{name}.mlp.2", F.silu(linear(w, f"{name}.mlp.0", features)))


def patch_embed(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    kernel = w[f"{name}.proj.weight"]
    return F.conv2d(x, kernel, w[f"{name}.proj.bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)


def block(w: Tensors, name: str, x: torch.Tensor, c: torch.Tensor, num_heads: int, rope: str | None) -> torch.Tensor:
    c = c[:, None] if c.ndim == 2 else c
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = linear(w, f"{name}.adaLN_modulation.1", F.silu(c)).chunk(6, -1)

    y = norm(w, f"{name}.norm1", x) * (1 + scale) + shift
    batch, tokens, width = y.shape
    q, k, v = linear(w, f"{name}.attn.qkv", y).reshape(batch, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    if f"{name}.attn.q_norm.weight" in w:
        q, k = (norm(w, f"{name}.attn.{side}_norm", x, 1e-5 if f"{name}.attn.q_norm.bias" in w else 1e-6)
                for side, x in (("q", q), ("k", k)))  # fmt: skip
    if rope is not None:
        cos, sin = w[f"{rope}.freqs_cos"], w[f"{rope}.freqs_sin"]
        q, k = (x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin for x in (q, k))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
    x = x + gate * linear(w, f"{name}.attn.proj", attended)

    y = norm(w, f"{name}.norm2", x) * (1 + mlp_scale) + mlp_shift
    if f"{name}.mlp.w12.weight" in w:
        first, second = linear(w, f"{name}.mlp.w12", y).chunk(2, -1)
        return x + mlp_gate * linear(w, f"{name}.mlp.w3", F.silu(first) * second)
    return x + mlp_gate * linear(w, f"{name}.mlp.fc2", F.gelu(linear(w, f"{name}.mlp.fc1", y), approximate="tanh"))


def final(w: Tensors, x: torch.Tensor, c: torch.Tensor, patch_size: int) -> torch.Tensor:
    """The velocity `[B, C, H, W]`."""
    c = c[:, None] if c.ndim == 2 else c
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, -1)
    x = linear(w, "final_layer.linear", norm(w, "final_layer.norm_final", x) * (1 + scale) + shift)
    side, p = math.isqrt(x.shape[1]), patch_size
    x = x.reshape(x.shape[0], side, side, p, p, -1)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], -1, side * p, side * p)


def lightning_dit(
    w: Tensors, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, *, num_heads: int, depth: int
) -> torch.Tensor:
    """Velocity of `x: [B, C, H, W]`; the second half of the channels is dropped where there are twice as many."""
    channels, patch_size = w["x_embedder.proj.weight"].shape[1:3]
    c = gaussian_fourier(w, "t_embedder", t) + w["y_embedder.embedding_table.weight"][y]
    x = patch_embed(w, "x_embedder", x) + w["pos_embed"]
    for i in range(depth):
        x = block(w, f"blocks.{i}", x, c, num_heads, "feat_rope" if "feat_rope.freqs_cos" in w else None)
    return final(w, x, c, patch_size)[:, :channels]


def dit_dh(
    w: Tensors,
    x: torch.Tensor,
    t: torch.Tensor,
    y: torch.Tensor,
    r: torch.Tensor | None = None,
    *,
    num_heads: tuple[int, int],
    depth: tuple[int, int],
) -> torch.Tensor:
    """Velocity, or with `r` mean velocity, of `x: [B, C, H, W]`."""
    time = gaussian_fourier(w, "t_embedder", t)
    if r is not None:
        time = time + gaussian_fourier(w, "r_embedder", t - r)
    c = F.silu(time + w["y_embedder.embedding_table.weight"][y])
    s = patch_embed(w, "s_embedder", x) + w.get("pos_embed", torch.zeros(()))
    for i in range(depth[0]):
        s = block(w, f"blocks.{i}", s, c, num_heads[0], "enc_feat_rope")
    s = F.silu(time[:, None] + s)
    if "s_projector.weight" in w:
        s = linear(w, "s_projector", s)
    x = patch_embed(w, "x_embedder", x)
    for i in range(depth[0], sum(depth)):
        x = block(w, f"blocks.{i}", x, s, num_heads[1], "dec_feat_rope")
    return final(w, x, s, 1)
