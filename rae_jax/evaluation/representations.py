"""The networks beside Inception that RAEv2 compares sets of images through: FDr6 and MIND (`fdr.py`).

An image is resized to the network's side by bicubic interpolation with antialiasing on the scale 0 to 255, normalised
by the network's own mean and deviation, and becomes one vector. Networks compute in bfloat16, as RAEv2's evaluator.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.evaluation.metrics import OfImages, Params
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.interop.timm import import_network
from rae_jax.models.representations import ConvNeXtV2, PooledVisionTransformer
from rae_jax.models.vit import IMAGENET_MEAN, IMAGENET_STD

HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Space:
    """One network, and what it is shown.

    Attributes:
      published: timm's name of the network and its weights.
      module: the network.
      size: side of the images that it sees, pixels.
      mean, std: of its pixels in [0, 1].
    """

    published: str
    module: PooledVisionTransformer | ConvNeXtV2
    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def of_images(self, name: str) -> OfImages:
        """`(params, images uint8 [B, H, W, 3]) -> {"vector": [B, D]}`; the parameters are `params[name]`."""

        def vectors(params: Params, images: jax.Array) -> dict[str, jax.Array]:
            shape = (images.shape[0], self.size, self.size, 3)
            x = jax.image.resize(images.astype(jnp.float32), shape, "cubic-pytorch", antialias=True)
            x = (x - 255 * np.float32(self.mean)) / (255 * np.float32(self.std))
            return {"vector": self.module.apply({"params": params[name]}, x).astype(jnp.float32)}

        return vectors

    def load(self, path: str | Path) -> Params:
        """The network's parameters from timm's file, or the directory that holds it.

        Raises:
          ValueError: it is another network's; all differences are listed.
        """
        image = jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)
        like = jax.eval_shape(self.module.init, jax.random.key(0), image)["params"]
        return import_network(self.module, read_tensors(path), like)


def _large(patch_size: int, image_size: int, **other: Any) -> PooledVisionTransformer:
    sizes = dict(width=1024, depth=24, num_heads=16, mlp_dim=4096)
    return PooledVisionTransformer(image_size, patch_size, **sizes, **other, dtype=jnp.bfloat16)


_CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
_SO400M = PooledVisionTransformer(
    256, 16, 1152, 27, 16, 4304, cls_token=False, activation="gelu_tanh", pooling="attention", dtype=jnp.bfloat16
)
SPACES = {
    "convnext_v2": Space(
        "convnextv2_base.fcmae_ft_in22k_in1k", ConvNeXtV2(dtype=jnp.bfloat16), 224
    ),
    "dinov2_l": Space("vit_large_patch14_dinov2.lvd142m", _large(14, 518, layer_scale=True), 256),
    "mae_l": Space("vit_large_patch16_224.mae", _large(16, 224), 224),
    "siglip2_so400m": Space("vit_so400m_patch16_siglip_256.v2_webli", _SO400M, 256, HALF, HALF),
    "clip_l": Space(
        "vit_large_patch14_clip_224.openai", _large(14, 224, pre_norm=True, norm_epsilon=1e-5), 256, **_CLIP
    ),
}  # fmt: skip
