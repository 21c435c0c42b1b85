"""Turns encoded image files into RGB arrays, the same way for every data source.

What is done to the many kinds of file:
- JPEG: decoded by simplejpeg, whose pixels equal Pillow's; CMYK, EXIF-tagged and slightly damaged files go to Pillow.
- Orientation: EXIF is obeyed, so an image stands as a viewer shows it.
- Transparency (RGBA, grey with alpha, palette or colour key): composited on white, the page of the web.
- Grey and palette: spread over three channels. CMYK: Pillow's conversion, without colour profiles.
- 16 bits a channel: the high byte is kept. 32-bit integers and floats have no fixed range and are refused.
- Animations: the first frame.
- More than `MAX_PIXELS`: refused from the header, before memory is taken.
"""

import importlib.util
import io

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

MAX_PIXELS = Image.MAX_IMAGE_PIXELS

# Of the names of files that are taken for images, in lower case. Pillow reads AVIF if it was built with it.
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi",
) + ((".avif",) if importlib.util.find_spec("PIL._avif") else ())  # fmt: skip

# An EXIF block lies in the first segments of a JPEG, each of which has at most 64 KiB.
_HEADER_BYTES = 1 << 16


def decode_image(data: bytes) -> np.ndarray:
    """The image in `data`, the bytes of a file, as uint8 `[H, W, 3]`.

    Raises:
      ValueError: `data` is not a whole image of a kind that the module's docstring admits; says why.
    """
    if data.startswith(b"\xff\xd8") and b"Exif\0\0" not in data[:_HEADER_BYTES]:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ("CMYK", "YCCK") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # simplejpeg also stops at flaws that do no harm; Pillow decides what cannot be read
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS} allowed")
            return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise errors of many types for a damaged file
        raise ValueError(f"not a readable image ({len(data)} bytes): {error}") from error


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel have no fixed range; save it with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
