"""Files and configs that are not what they should be: each ends in a result or in an error that names the file.

Found by chance, with hypothesis: valid inputs of every kind are made and then damaged, and read as a run would read
them. The default run tries a few of each; `BAD_INPUTS=2000 python -m pytest -m slow tests/test_bad_input.py` so many.
"""

import io
import json
import os
import pickle
import resource
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import digits
from rae_jax.data.decoding import decode_image
from rae_jax.data.sources import open_source
from rae_jax.data.transforms import transform
from rae_jax.evaluation.image_sets import open_images
from rae_jax.evaluation.reference import read_statistics
from rae_jax.experiment.configuration import check
from rae_jax.experiment.workdir import ConfigError
from rae_jax.interop.checkpoint_files import read_tensors, write_safetensors
from rae_jax.interop.weights import Origin, check_weights, save_weights
from rae_jax.sampling.samples import read_samples

MANY = int(os.environ.get("BAD_INPUTS", "300"))
SECONDS, BYTES = 10, 2**30  # of one input, and of memory for all of a test's


def tries(number):
    """`number` inputs, the same ones in every run."""
    return settings(
        max_examples=number, deadline=1000 * SECONDS, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


def result_or_error(read, path):
    """What `read(path)` gives, or None if it raised an error that names the file."""
    try:
        return read(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error), f"{type(error).__name__} does not name the file: {error}"


@st.composite
def damaged(draw, whole):
    """Bytes of the strategy `whole`, as they are or cut, with bytes changed, or with others in front."""
    data = draw(whole)
    how = draw(st.sampled_from(("as it is", "cut", "changed", "in front", "doubled")))
    if how == "cut":
        return data[: draw(st.integers(0, max(len(data) - 1, 0)))]
    if how == "in front":
        return draw(st.binary(min_size=1, max_size=8)) + data
    if how == "doubled":
        return data[: len(data) // 2] + data
    if how == "changed" and data:
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 6))):
            # Headers are where it hurts, and they are at the beginning or, in zip files, at the end.
            span = draw(st.sampled_from((len(changed), min(len(changed), 64))))
            place = draw(st.integers(0, span - 1))
            place = len(changed) - 1 - place if draw(st.booleans()) else place
            changed[place] = draw(st.integers(0, 255))
        return bytes(changed)
    return data


FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
}


@st.composite
def image_files(draw):
    """Files of images of many kinds and sizes, down to one pixel, some turned by EXIF, some animated."""
    kind = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[kind]))
    size = draw(st.sampled_from(((1, 1), (1, 3000), (3000, 1), (17, 9), (40, 64))))
    noise = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 255, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    image = Image.fromarray(noise[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    options = {}
    if draw(st.booleans()) and kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        options["exif"] = exif
    if draw(st.booleans()) and kind in ("GIF", "WEBP", "TIFF", "PNG") and mode == "RGB":
        options |= {"save_all": True, "append_images": [image.rotate(180)]}
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def huge_png(width, height):
    """A few bytes that claim to be an image of `width` x `height`."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
            + chunk(b"IEND", b""))  # fmt: skip


TRANSFORMS = [transform(name, 32) for name in ("resize", "center_crop_flip", "random_crop", "random_resized_crop")]


def tried_images(data):
    try:
        image = decode_image(data)
    except ValueError:
        return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    for square in TRANSFORMS:
        assert square(image, np.random.default_rng(0)).shape == (32, 32, 3)


def tried_folders(content):
    """A folder of one class of images, and the same files as a set of images to evaluate."""
    with tempfile.TemporaryDirectory() as folder:
        for i, (data, ending) in enumerate(content):
            (Path(folder) / "class").mkdir(exist_ok=True)
            (Path(folder) / "class" / f"{i}{ending}").write_bytes(data)
        source = result_or_error(
            lambda path: open_source("folder", "train", str(path), max_unreadable_share=1.0), Path(folder)
        )
        if source is not None:
            assert result_or_error(lambda path: source[0], Path(folder)) is None or source[0]["image"].ndim == 3
        images = result_or_error(open_images, Path(folder) / "class")
        if images is not None:
            result_or_error(lambda path: [part.shape for part in images.batches(2)], Path(folder) / "class")


names = st.sampled_from(("train", "test", "val", "a", "b", ".hidden", "ß 猫", "train.png"))


def tried_trees(paths):
    """A folder with images, other files and folders anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        for parts, is_file in paths:
            path = Path(folder, *parts)
            try:
                if is_file:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (3, 3)).save(path.with_name(path.name + ".png"))
                else:
                    path.mkdir(parents=True, exist_ok=True)
            except OSError:
                pass  # a file is where a folder should be
        for split in ("train", "test"):
            for share in (0.0, 0.3):
                source = result_or_error(
                    lambda path, s=split, h=share: open_source("folder", s, str(path), held_out_share=h), Path(folder)
                )
                if source is not None:
                    assert all(0 <= source[i]["label"] < max(source.num_classes, 1) for i in range(len(source)))


@st.composite
def npz_files(draw):
    """Archives of arrays of the right and of wrong names, dtypes and shapes, pickled objects among them."""
    arrays = {
        name: np.zeros(draw(st.sampled_from(((2, 4, 4, 3), (4,), (), (0, 4, 4, 3), (3, 3)))),
                       draw(st.sampled_from(("u1", "i4", "f8", "O", "U3"))))
        for name in draw(st.sets(st.sampled_from(("arr_0", "arr_1", "labels", "mu", "sigma", "mu_s", "sigma_s"))))
    }  # fmt: skip
    file = io.BytesIO()
    draw(st.sampled_from((np.savez, np.savez_compressed)))(file, **arrays)
    return file.getvalue()


def npz_that_claims(shape):
    """An archive whose header claims an array of bytes of `shape`, with a few bytes in it."""
    member, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("arr_0.npy", member.getvalue() + bytes(100))
    return file.getvalue()


def tried_npz(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        path.write_bytes(data)
        result_or_error(read_samples, path)
        result_or_error(read_statistics, path)
        images = result_or_error(open_images, path)
        if images is not None:
            result_or_error(lambda path: [part.shape for part in images.batches(2)], path)


OFFICIAL_NAMES = (  # one or two of each kind of checkpoint, enough for it to be recognised
    "s_embedder.proj.weight", "r_embedder.W", "x_embedder.proj.weight", "y_embedder.embedding_table.weight", "var",
    "mean", "decoder_pred.weight", "decoder.decoder_pred.weight", "vb_feature_encoder.to_moments.weight",
    "encoder.encoder.norm.weight", "decoder.decoder_layers.0.attention.to_q.weight", "lin0.model.1.weight",
    "Conv2d_1a_3x3.conv.weight", "encoder.layer.0.layer_scale1.lambda1", "layer.0.attention.q_proj.weight",
    "encoder.layers.0.layer_norm1.weight", "encoder.layer.0.layernorm_before.weight", "dino.patch_embed.proj.weight",
    "heads.0.weight", "encoder.down_blocks.0.resnets.0.conv1.weight",
)  # fmt: skip


class RunsCode:
    """Unpickled without care, it leaves a file."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


MARKER = str(Path(tempfile.gettempdir()) / f"executed-by-a-checkpoint-{os.getpid()}")


@st.composite
def weight_files(draw):
    """`(ending, bytes)` of safetensors and torch files, some of which would run code."""
    torch = pytest.importorskip("torch")
    ending = draw(st.sampled_from((".safetensors", ".pt", ".bin")))
    file = io.BytesIO()
    if ending == ".safetensors":
        with tempfile.TemporaryDirectory() as folder:
            tensors = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4)}
            for name in draw(st.sets(st.sampled_from(OFFICIAL_NAMES), max_size=3)):
                tensors[name] = np.zeros(draw(st.sampled_from(((), (4,), (2, 3), (0, 2), (2, 3, 2, 2)))), np.float32)
            write_safetensors(Path(folder) / "x.safetensors", tensors)
            file.write((Path(folder) / "x.safetensors").read_bytes())
    else:
        content = draw(st.sampled_from((
            {"model": {"a": torch.zeros(2, 3)}}, {"a": torch.zeros(2), "code": RunsCode()}, [1, 2], {"a": "text"}, None,
        )))  # fmt: skip
        if draw(st.booleans()):
            torch.save(content, file, _use_new_zipfile_serialization=draw(st.booleans()))
        else:
            pickle.dump(content, file)
    return ending, draw(damaged(st.just(file.getvalue())))


def tried_weights(content):
    ending, data = content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{ending}"
        path.write_bytes(data)
        result_or_error(read_tensors, path)
        result_or_error(
            lambda path: check_weights(path, {"a": np.zeros((2, 3))}, Origin(str(path), "the config")),
            path,
        )
    assert not Path(MARKER).exists()


descriptions = st.fixed_dictionaries({}, optional={
    "kind": st.sampled_from(("dit_dh", "lpips", "dinov2", "no kind", 3)),
    "architecture": st.sampled_from(({}, {"width": 2}, {"decoder": {}}, [], None, "x")),
}).map(lambda value: json.dumps(value).encode())  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def tried_weights_directories(content):
    """A directory of weights whose description, or tensors, are something else."""
    description, tensors = content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        save_weights(path, {"a": np.zeros((2, 3), np.float32)}, {"component": "flow"})
        if description is not None:
            (path / "weights.json").write_bytes(description)
        if tensors is not None:
            (path / "weights.safetensors").write_bytes(tensors)
        result_or_error(
            lambda path: check_weights(path, {"a": np.zeros((2, 3))}, Origin(str(path), "the config")),
            path,
        )


def tried_indices(content):
    """A sharded checkpoint with any index."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors.index.json").write_bytes(content)
        result_or_error(read_tensors, Path(folder))


image_bytes = st.one_of(damaged(image_files()), st.binary(max_size=200))
damaged_json = damaged(json_values.map(lambda value: json.dumps(value).encode()))
KINDS = {  # name -> (how they are made, how they are tried, how many by default)
    "images": (image_bytes, tried_images, 60),
    "folders of images": (
        st.lists(st.tuples(image_bytes, st.sampled_from((".jpg", ".png", ".tiff", ".txt"))), max_size=4), tried_folders,
        20,
    ),
    "folders of labels": (
        st.lists(st.tuples(st.lists(names, min_size=1, max_size=4), st.booleans()), max_size=8), tried_trees, 20
    ),
    "archives of arrays": (damaged(npz_files()), tried_npz, 40),
    "weights": (weight_files(), tried_weights, 40),
    "directories of weights": (
        st.tuples(st.none() | descriptions | damaged_json | st.binary(max_size=40), st.none() | st.binary(max_size=40)),
        tried_weights_directories, 20,
    ),
    "indices of shards": (
        st.one_of(damaged_json, json_values.map(lambda value: json.dumps({"weight_map": value}).encode())),
        tried_indices, 20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_ends_in_a_result_or_an_error_that_names_the_file(kind):
    inputs, tried, number = KINDS[kind]
    tries(number)(given(inputs)(tried))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_very_many_inputs_end_in_a_result_or_an_error_that_names_the_file(kind):
    inputs, tried, _ = KINDS[kind]
    tries(MANY)(given(inputs)(tried))()


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (30_000, 30_000), (0, 5)])
def test_an_image_that_claims_to_be_huge_is_refused_before_it_takes_memory(size):
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(huge_png(*size))


@pytest.mark.parametrize("shape", [(10**6, 10**4, 10**4, 3), (2**40, 2**20, 1, 3), (10**5, 256, 256, 3), (2, 4, 4, 3)])
def test_an_archive_that_claims_more_than_it_holds_is_an_error_or_gives_what_it_has(shape):
    tried_npz(npz_that_claims(shape))


VALUES = st.one_of(st.integers(-3, 70), st.floats(), st.text(max_size=4), st.booleans(), st.just(()), st.just((1.0,)))


def fields_of(section, prefix=""):
    for name, value in section.items():
        yield from fields_of(value, f"{prefix}{name}.") if hasattr(value, "items") else [prefix + name]


def tried_configs(change):
    field, value = change
    config = digits.get_config("tiny")
    try:
        config.update_from_flattened_dict({field: value})
    except (TypeError, ValueError):
        return  # as on the command line: another type
    try:
        check(config, file="x.py", num_devices=1)
    except ConfigError as error:
        assert str(error).startswith("x.py: ")


CHANGES = st.tuples(st.sampled_from(sorted(fields_of(digits.get_config("tiny")))), VALUES)


@pytest.mark.slow
def test_a_config_with_any_value_in_any_field_passes_or_is_refused():
    tries(MANY // 10)(given(CHANGES)(tried_configs))()
