"""`configs/t2i_qwen1_5b_dit2_4b.py` with Qwen2.5-7B and a DiT of 9.8 B, and the same variants.

The DiT's sizes are those whose parameters count 9.73 B, width 4096 and depth 32; its documentation gives others, which
count 8.2. Not run at full size with this code.
"""

from ml_collections import ConfigDict

from configs.t2i_qwen1_5b_dit2_4b import text_to_image


def get_config(variant: str = "") -> ConfigDict:
    return text_to_image("qwen2.5-7b", "9.8B", variant, file="configs/t2i_qwen7b_dit9_8b.py")
