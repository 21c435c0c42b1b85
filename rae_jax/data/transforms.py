"""From a decoded image of any size to the square that a model is trained or evaluated on.

A transform is made once by name (`transform`), pickles into worker processes, and is called with an image and, where it
draws, a NumPy generator. Every resize is Pillow's, as in the reference codes: other libraries' filters give other
pixels.

    none                 the image as it is, which must already be square and of the right size (digits)
    resize               squeezed to the square, bicubic
    center_crop          ADM's centre crop: the papers' evaluation, and latent statistics
    center_crop_flip     the same, and a flip half the time: training of the generators
    random_crop          shorter side to 1.5 times the size, random crop, no flip: training of the decoder
    random_resized_crop  a random part with 20 to 100 % of the area, and a flip half the time: masked autoencoding
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from rae_jax.spelling import nearest

BICUBIC = Image.Resampling.BICUBIC

MAX_ASPECT = 16  # of longer to shorter side; the ends of a longer image are left out

FixedStep = Callable[[np.ndarray], np.ndarray]
RandomStep = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """Fixed steps, then random ones, on an image uint8 `[H, W, 3]`."""

    fixed: tuple[FixedStep, ...] = ()
    random: tuple[RandomStep, ...] = ()

    @property
    def flips(self) -> bool:
        """Whether images are mirrored at random."""
        return random_flip in self.random

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """uint8 `[H, W, 3]` to uint8 `[S, S, 3]`; `rng` is needed only where there are random steps."""
        image = without_ends(image)
        for step in self.fixed:
            image = step(image)
        for step in self.random:
            image = step(image, rng)
        return image


def transform(name: str, image_size: int) -> Transform:
    """The transform `name` of the module's table, giving images of `image_size` pixels.

    Raises:
      ValueError: there is no such transform.
    """
    at_size = functools.partial
    presets = {
        "none": Transform(fixed=(at_size(as_it_is, size=image_size),)),
        "resize": Transform(fixed=(at_size(resize, size=image_size),)),
        "center_crop": Transform(fixed=(at_size(center_crop_adm, size=image_size),)),
        "center_crop_flip": Transform((at_size(center_crop_adm, size=image_size),), (random_flip,)),
        "random_crop": Transform(random=(at_size(random_crop, shorter_side=image_size * 3 // 2, size=image_size),)),
        "random_resized_crop": Transform(random=(at_size(random_resized_crop, size=image_size), random_flip)),
    }
    if name not in presets:
        raise ValueError(f"there is no transform {name!r}{nearest(name, presets)}; there are {', '.join(presets)}")
    return presets[name]


def without_flip(name: str) -> tuple[str, bool]:
    """The transform `name` without its flip, and whether it has one.

    Raises:
      ValueError: there is no such transform, or it draws more than a flip.
    """
    fixed = name.removesuffix("_flip")
    if transform(name, 1).random and (fixed == name or transform(fixed, 1).random):
        raise ValueError(f"the transform {name!r} draws more than a flip, so that an image has more than two latents")
    return fixed, fixed != name


def without_ends(image: np.ndarray) -> np.ndarray:
    """The middle of an image so long that enlarging its shorter side would exhaust memory; any other as it is."""
    height, width = image.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    top, left = max(height - longest, 0) // 2, max(width - longest, 0) // 2
    return image[top : top + longest, left : left + longest]


def as_it_is(image: np.ndarray, size: int) -> np.ndarray:
    """The image itself.

    Raises:
      ValueError: it is not `size` pixels square.
    """
    if image.shape != (size, size, 3):
        raise ValueError(
            f"transform 'none' takes images of {size} x {size} pixels as they are, and got one of shape {image.shape}; "
            "choose 'center_crop' or 'resize', or set image_size to the images' own"
        )
    return image


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[H, W, 3]` to `[size, size, 3]`, bicubic with antialiasing; the aspect ratio is not kept."""
    return np.asarray(Image.fromarray(image).resize((size, size), BICUBIC))


def center_crop_adm(image: np.ndarray, size: int) -> np.ndarray:
    """ADM's centre crop (Dhariwal and Nichol, 2021): uint8 `[H, W, 3]` to `[size, size, 3]`.

    Halved with a box filter while the shorter side is at least twice `size`, then resized by bicubic interpolation
    until the shorter side is `size`, then cropped in the middle.
    """
    if min(image.shape[:2]) != size:  # at scale 1 Pillow would copy it, slowly
        picture = Image.fromarray(image)
        while min(picture.size) >= 2 * size:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        scale = size / min(picture.size)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), BICUBIC)
        image = np.asarray(picture)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def random_crop(image: np.ndarray, rng: np.random.Generator, shorter_side: int, size: int) -> np.ndarray:
    """A uniformly placed `[size, size, 3]` crop of the image with its shorter side resized to `shorter_side`.

    Bicubic with antialiasing. Only the crop is resized; its pixels differ from those of resizing everything by no more
    than the order in which Pillow rounds (two passes, 8 bits between them).
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    new_height, new_width = height * shorter_side // shorter, width * shorter_side // shorter
    top = int(rng.integers(new_height - size, endpoint=True))
    left = int(rng.integers(new_width - size, endpoint=True))
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return np.asarray(Image.fromarray(image).resize((size, size), BICUBIC, box=box))


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A random part of the image squeezed to `[size, size, 3]`, bicubic with antialiasing.

    The part's share of the area is uniform in `scale`, its aspect ratio log-uniform in `ratio`; where ten draws do not
    fit into the image, the largest central part with an admitted aspect ratio is taken.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(rng.integers(height - h, endpoint=True)), int(rng.integers(width - w, endpoint=True))
            break
    else:
        h, w = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
        top, left = (height - h) // 2, (width - w) // 2
    return resize(image[top : top + h, left : left + w], size)


def draw_flip(rng: np.random.Generator) -> bool:
    """Whether to flip: half the time."""
    return bool(rng.integers(2))


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image, mirrored left to right half the time."""
    return image[:, ::-1] if draw_flip(rng) else image
