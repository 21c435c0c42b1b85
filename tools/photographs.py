"""The photographs that installed packages bring, for commands that need real images and can download none."""

import numpy as np

SCIKIT_IMAGE = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")


def photographs() -> dict[str, np.ndarray]:
    """scikit-image's and scikit-learn's colour photographs by name, uint8 `[H, W, 3]`, of different sizes.

    Raises:
      ValueError: scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError:
        raise ValueError("the photographs are in scikit-image: pip install -r requirements-dev.txt") from None
    from sklearn.datasets import load_sample_images

    images = {name: getattr(skimage.data, name)() for name in SCIKIT_IMAGE}
    return images | dict(zip(("china", "flower"), load_sample_images().images, strict=True))
