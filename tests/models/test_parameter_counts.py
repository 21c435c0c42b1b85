"""The full-size models have as many parameters as the papers say, by abstract shapes: nothing is allocated."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from rae_jax.models import decoder, dit_dh, dit_in_context, lightning_dit
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.dit_in_context import DiTInContext
from rae_jax.models.embeddings import sincos_table
from rae_jax.models.lightning_dit import LightningDiT


def count(model: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Parameters of `model` called on arrays of `shapes`; labels are the third."""
    arguments = [
        jax.ShapeDtypeStruct((1, *shape), jnp.int32 if place == 2 else jnp.float32)
        for place, shape in enumerate(shapes)
    ]
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), *arguments)))


def diffusion_transformer(family: type[nn.Module], sizes: dict[str, int], channels: int, flow_map: bool = False) -> int:
    """With the fixed position table, which the references count too."""
    model = family(grid_size=16, in_channels=channels, num_classes=1000, flow_map=flow_map, scan=True, **sizes)
    return count(model, (256, channels), (), (), *[()] * flow_map) + sincos_table(16, sizes["width"]).size


def test_dit_dh_xl_has_839_million():  # RAE
    assert round(diffusion_transformer(DiTDH, dit_dh.SIZES["XL"], 768) / 1e6) == 839


def test_the_flow_map_dit_dh_xl_has_841_million():  # MF-RAE
    assert round(diffusion_transformer(DiTDH, dit_dh.SIZES["XL"], 768, flow_map=True) / 1e6) == 841


def test_the_in_context_dit_xl_has_875_2_million_on_the_latents_of_dinov3_l():  # RAEv2
    model = DiTInContext(grid_size=16, in_channels=1024, num_classes=1000, scan=True, **dit_in_context.SIZES["XL"])
    assert round(count(model, (256, 1024), (), ()) / 1e6, 1) == 875.2


def test_lightning_dit_xl_has_676_million_on_the_latents_of_dinov2_s():  # RAE; on those of DINOv2-B a million more
    assert round(diffusion_transformer(LightningDiT, lightning_dit.SIZES["XL"], 384) / 1e6) == 676


def test_the_decoder_vit_xl_has_415_million():  # RAE; B and L are the sizes of the Vision Transformers that they are
    z = (256, 768)
    sizes = {name: ViTDecoder(grid_size=16, patch_size=16, scan=True, **size) for name, size in decoder.SIZES.items()}
    assert {name: round(count(model, z) / 1e6) for name, model in sizes.items()} == {"b": 86, "l": 304, "xl": 415}


def test_the_bridge_has_4_24_and_43_17_million():  # RPiAE
    assert count(BridgeEncoder(latent_channels=64), (256, 768)) / 1e6 == pytest.approx(4.24, abs=0.005)
    assert count(BridgeDecoder(width=768, scan=True), (256, 64)) / 1e6 == pytest.approx(43.17, abs=0.005)


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_every_dit_dh_has_as_many_as_its_layers_add_up_to(size):
    sizes, channels = dit_dh.SIZES[size], 768
    width, head = sizes["width"], sizes["head_width"]

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def block(width: int) -> int:
        hidden = 4 * width * 2 // 3
        attention, feed_forward = linear(width, 4 * width), linear(width, 2 * hidden) + linear(hidden, width)
        return attention + feed_forward + linear(width, 6 * width) + 2 * width

    time_and_label = 256 + linear(512, width) + linear(width, width) + 1001 * width
    embeddings = linear(channels, width) + 256 * width + linear(channels, head) + linear(width, head)
    blocks = sizes["depth"] * block(width) + sizes["head_depth"] * block(head)
    final = head + linear(head, 2 * head) + linear(head, channels)
    total = time_and_label + embeddings + blocks + final
    assert diffusion_transformer(DiTDH, sizes, channels) == total
    # AutoGuidance's small model, S, is less than a quarter of XL.
    assert round(total / 1e6) == {"S": 196, "B": 294, "L": 622, "XL": 839}[size]
