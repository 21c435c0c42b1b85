import io

import cv2
import numpy as np
import pytest
from PIL import Image

from rae_jax.data import decoding
from rae_jax.data.decoding import decode_image


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Smooth in all directions, so that JPEG keeps it closely: uint8 [60, 90, 3]."""
    y, x = np.mgrid[0:60, 0:90]
    return np.stack([40 + 2 * x, 30 + 3 * y, 250 - x - y], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_jpeg_has_the_pixels_that_pillow_gives(photo):
    for subsampling in (0, 2):
        data = encoded(Image.fromarray(photo), "JPEG", quality=80, subsampling=subsampling)
        np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_files_come_back_as_they_were(photo, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(photo), kind, **options)), photo)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_is_spread_over_three_channels(photo, kind):
    grey = photo[..., 0]
    decoded = decode_image(encoded(Image.fromarray(grey), kind))
    assert decoded.shape == (60, 90, 3) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded, np.repeat(grey[..., None], 3, axis=2), atol=3)


def test_one_bit_and_palette_files_become_rgb(photo):
    black_white = photo[..., 0] > 100
    np.testing.assert_array_equal(
        decode_image(encoded(Image.fromarray(black_white), "PNG")),
        np.repeat(black_white[..., None], 3, axis=2) * np.uint8(255),
    )
    few_colours = Image.fromarray(photo).quantize(16)
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(decode_image(encoded(few_colours, kind)), np.asarray(few_colours.convert("RGB")))


def test_transparent_pixels_become_white(photo):
    alpha = np.full((60, 90), 255, np.uint8)
    alpha[:20] = 0
    alpha[20:40] = 51  # one fifth
    decoded = decode_image(encoded(Image.fromarray(np.dstack([photo, alpha])), "PNG"))
    assert (decoded[:20] == 255).all()
    np.testing.assert_allclose(decoded[20:40], 0.2 * photo[20:40] + 0.8 * 255, atol=1)
    np.testing.assert_array_equal(decoded[40:], photo[40:])

    grey = decode_image(encoded(Image.fromarray(np.dstack([photo[..., 0], alpha])), "PNG"))
    assert (grey[:20] == 255).all() and (grey[40:] == photo[40:, :, :1]).all()


def test_a_transparent_palette_or_key_colour_becomes_white():
    black = Image.new("P", (4, 4), 0)
    black.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode_image(encoded(black, "PNG", transparency=0)) == 255).all()
    assert (decode_image(encoded(Image.new("RGB", (4, 4)), "PNG", transparency=(0, 0, 0))) == 255).all()


def test_cmyk_jpegs_show_their_colours(photo):
    data = encoded(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_allclose(decode_image(data), photo, atol=6)
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_the_high_byte(suffix, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (7, 5, channels), dtype=np.uint16)
    deep[0, 0], deep[0, 1] = 65535, 0
    data = cv2.imencode(suffix, deep)[1].tobytes()
    expected = (deep // 256).astype(np.uint8)[..., ::-1]  # OpenCV writes blue first
    np.testing.assert_array_equal(decode_image(data), np.broadcast_to(expected, (7, 5, 3)))


def test_floats_are_refused_because_their_range_is_unknown():
    with pytest.raises(ValueError, match="no fixed range"):
        decode_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_obeyed(photo, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    decoded = decode_image(encoded(Image.fromarray(photo), kind, exif=exif))
    np.testing.assert_allclose(decoded.astype(int), np.rot90(photo, -1), atol=6)


def test_an_animation_gives_its_first_frame(photo):
    frames = [Image.fromarray(photo).quantize(16), Image.new("P", (90, 60))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_errors(photo, kind):
    data = encoded(Image.fromarray(photo), kind)
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("data", [b"", b"hello, I am text\n", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image_are_errors(data):
    with pytest.raises(ValueError, match=f"not a readable image \\({len(data)} bytes\\)"):
        decode_image(data)


def test_jpegs_with_harmless_flaws_are_read_as_pillow_reads_them(photo):
    data = encoded(Image.fromarray(photo), "JPEG", quality=80)
    stray = data[:-2] + b"\x00" * 16 + data[-2:]
    np.testing.assert_array_equal(decode_image(stray), np.asarray(Image.open(io.BytesIO(stray)).convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decompression_bombs_are_refused_from_their_header(photo, kind, monkeypatch):
    data = encoded(Image.fromarray(photo), kind)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 60 * 90 - 1)
    with pytest.raises(ValueError, match="90 x 60 pixels are more than the 5399 allowed"):
        decode_image(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_real_bomb_is_refused():
    data = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(data) < 100_000
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(data)
