"""What the golden cases `bagel_*` call a sample, in our words."""

from typing import Any

from rae_jax.data.packing import Item, Markers


def markers(constructor: dict[str, Any]) -> Markers:
    tokens = constructor["special_tokens"]
    assert tokens.keys() == {"bos_token_id", "eos_token_id", "start_of_image", "end_of_image"}
    return Markers(tokens["bos_token_id"], tokens["eos_token_id"], tokens["start_of_image"], tokens["end_of_image"])


def pixels_a_latent(constructor: dict[str, Any]) -> int:
    return constructor["latent_patch_size"] * constructor["vae_config"]["downsample"]


def capacity(constructor: dict[str, Any]) -> dict[str, int]:
    """Of the position tables. Positions between those of a table, of an interpolated one, are not ours."""
    assert not constructor["interpolate_pos"]
    semantic = constructor.get("vit_max_num_patch_per_side", 0)
    latent = constructor["max_latent_size"]
    return {"clean": latent, "noised": latent, "semantic": semantic}


def item(constructor: dict[str, Any], planned: dict[str, Any]) -> Item:
    """One entry of a sample's plan."""
    told = dict(planned)
    kind, droppable, loss = told.pop("type"), bool(told.pop("enable_cfg")), bool(told.pop("loss"))
    if kind == "text":
        ids = told.pop("text_ids")
        assert not told.pop("special_token_loss", 0) and not told, told
        return Item("text", ids=ids, droppable=droppable, loss=loss)
    height, width = told.pop("size")
    assert not told, told
    if kind == "vae_image":
        side = pixels_a_latent(constructor)
        return Item("noised" if loss else "clean", grid=(height // side, width // side), droppable=droppable)
    assert kind == "vit_image" and not loss
    side = constructor["vit_config"]["patch_size"]
    return Item("semantic", grid=(height // side, width // side), droppable=droppable)
