"""`python -m tools.evaluate` against NumPy, SciPy and scikit-learn, and its refusals."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import small_inception
from PIL import Image
from safetensors.numpy import save_file
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors
from whole_autoencoder import autoencoder

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.evaluation.fdr import mind
from rae_jax.evaluation.image_sets import open_images, stream_pairs
from rae_jax.evaluation.representations import SPACES
from rae_jax.interop.weights import save_weights
from rae_jax.models.representations import PooledVisionTransformer
from rae_jax.sampling.samples import read_samples, write_png_folder, write_samples
from rae_jax.training import sharding
from tools import evaluate
from tools.evaluate import main

CONFIG = "configs/digits.py:tiny"


def some_images(seed, count, size=32):
    """Smooth random pictures, of a brightness that depends on the seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200 + 8 * seed, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets as files, one as a folder too, and a random encoder with features of both."""
    folder = tmp_path_factory.mktemp("sets")
    config = digits.get_config("tiny")
    shapes = sharding.unbox(jax.eval_shape(component(config, "encoder").init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32), shapes)
    save_weights(folder / "encoder", params, {"component": "encoder"})
    images = {"a": some_images(0, 45), "b": some_images(3, 37)}
    model, features = autoencoder(config), {}
    for name, values in images.items():
        write_samples(folder / f"{name}.npz", values)
        tokens = jax.jit(lambda x: model.apply({"params": {"encoder": params}}, x, method="tokens"))(values / 255.0)
        features[name] = np.asarray(tokens, np.float64).mean(axis=1)
    write_png_folder(folder / "b", images["b"])
    return folder, features


def inside(points, manifold):
    """The share of `points` that lie no further from one of the manifold's than its third neighbour there."""
    points, manifold = np.asarray(points), np.asarray(manifold)
    radii = NearestNeighbors(n_neighbors=4).fit(manifold).kneighbors(manifold)[0][:, 3]
    distances = np.linalg.norm(points[:, None] - manifold[None], axis=-1)
    return np.mean((distances <= radii).any(axis=1))


def evaluated(folder, samples, reference, metrics, *options):
    output, paths = folder / "numbers.json", [str(folder / samples), f"--reference={folder / reference}"]
    common = [f"--metrics={metrics}", f"--cache={folder / 'cache'}", f"--output={output}", "--batch_size=16"]
    main([*paths, *common, *options])
    return json.loads(output.read_text())


def test_encoder_metrics_are_numpys_of_the_encoders_features_from_a_file_or_a_folder(sets):
    folder, features = sets
    options = (f"--encoder_config={CONFIG}", f"--encoder={folder / 'encoder'}")
    metrics = "fd_encoder,precision_encoder,recall_encoder"
    results = evaluated(folder, "a.npz", "b.npz", metrics, *options)
    a, b = features["a"], features["b"]
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert results["fd_encoder_45"] == pytest.approx(expected, rel=1e-3)

    assert results["precision_encoder_45"] == pytest.approx(inside(a, b), abs=1.5 / len(a))
    assert results["recall_encoder_45"] == pytest.approx(inside(b, a), abs=1.5 / len(b))
    assert evaluated(folder, "a.npz", "b", metrics, *options) == pytest.approx(results, rel=1e-6)


def test_what_is_computed_of_the_reference_is_kept_and_used_again(sets):
    folder, _ = sets
    options = (f"--encoder_config={CONFIG}", f"--encoder={folder / 'encoder'}")
    before = evaluated(folder, "a.npz", "b.npz", "fd_encoder", *options)
    kept = {file: file.read_bytes() for file in (folder / "cache").glob("b.*.npz")}
    for file in kept:
        with np.load(file) as stored:
            changed = dict(stored)
        if "mean" not in changed:
            continue
        changed["mean"] = changed["mean"] + 10
        np.savez(file, **changed)
    after = evaluated(folder, "a.npz", "b.npz", "fd_encoder", *options)
    assert kept and after["fd_encoder_45"] > before["fd_encoder_45"] + 1000
    for file, content in kept.items():
        file.write_bytes(content)


def test_fdr_and_mind_look_through_timms_files(sets, tmp_path, monkeypatch):
    """A small network under a published name; its vectors are those of `test_representations`."""
    shapes = json.loads((Path(__file__).parents[1] / "models" / "timm_outputs.json").read_text())["mae"]["shapes"]
    rng = np.random.default_rng(0)
    tensors = {name: (0.2 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    small = PooledVisionTransformer(28, 7, width=32, depth=2, num_heads=4, mlp_dim=128)
    space = dataclasses.replace(SPACES["mae_l"], module=small, size=28)
    monkeypatch.setitem(SPACES, "mae_l", space)
    networks, folder = tmp_path / "timm", sets[0]
    networks.mkdir()
    with pytest.raises(SystemExit, match=r"fdr_mae_l need --networks=FOLDER"):
        evaluated(folder, "a.npz", "b.npz", "fdr_mae_l")
    with pytest.raises(SystemExit, match=r"has no vit_large_patch16_224\.mae: a directory of that name"):
        evaluated(folder, "a.npz", "b.npz", "fdr_mae_l", f"--networks={networks}")
    save_file(tensors, networks / "vit_large_patch16_224.mae.safetensors")
    found = evaluated(folder, "a.npz", "b.npz", "fdr_mae_l,mind_mae_l", f"--networks={networks}")
    params = {"mae_l": space.load(networks / "vit_large_patch16_224.mae.safetensors")}
    vectors = jax.jit(space.of_images("mae_l"))
    a, b = (np.asarray(vectors(params, read_samples(folder / f"{n}.npz").images)["vector"]) for n in ("a", "b"))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert found["fdr_mae_l_45"] == pytest.approx(distance / 0.04, rel=1e-3)
    assert found["mind_mae_l_45"] == pytest.approx(mind(a, b), rel=1e-3)


def test_reconstructions_are_compared_pair_by_pair(sets, tmp_path):
    original = some_images(1, 20)
    noisy = np.clip(original + np.random.default_rng(2).integers(-9, 10, original.shape), 0, 255).astype(np.uint8)
    write_samples(tmp_path / "original.npz", original)
    write_samples(tmp_path / "noisy.npz", noisy)
    results = evaluated(tmp_path, "noisy.npz", "original.npz", "psnr,ssim")
    error = np.mean((original / 255.0 - noisy / 255.0) ** 2, axis=(1, 2, 3))
    assert results["psnr"] == pytest.approx(np.mean(-10 * np.log10(error)), rel=1e-5)
    assert 0 < results["ssim"] < 1


def test_a_runs_reconstructions_hold_their_reference_and_one_command_gives_all_numbers(sets, tmp_path):
    folder, _ = sets
    originals, noise = some_images(1, 20), np.random.default_rng(2).integers(-9, 10, (20, 32, 32, 3))
    decoded = np.clip(originals + noise, 0, 255).astype(np.uint8)
    with stream_pairs(tmp_path / "reconstructions.npz", originals.shape) as add:
        add(originals[:13], decoded[:13])
        add(originals[13:], decoded[13:])
    for name, images in {"decoded": decoded, "originals": originals}.items():
        write_samples(tmp_path / f"{name}.npz", images)
    options = (f"--encoder_config={CONFIG}", f"--encoder={folder / 'encoder'}")
    metrics = "rfd_encoder,psnr,ssim,lpips"
    apart = evaluated(tmp_path, "decoded.npz", "originals.npz", metrics, *options)
    output = tmp_path / "together.json"
    main([str(tmp_path / "reconstructions.npz"), f"--metrics={metrics}", f"--output={output}", *options])
    together = json.loads(output.read_text())
    assert together == pytest.approx(apart, rel=1e-4) and together["lpips"] > 0
    main([str(tmp_path / "decoded.npz"), "--metrics=fd_encoder", f"--reference={tmp_path / 'reconstructions.npz'}",
          f"--cache={tmp_path / 'cache'}", f"--output={output}", *options])  # fmt: skip
    assert json.loads(output.read_text())["fd_encoder_20"] == pytest.approx(apart["rfd_encoder_20"], rel=1e-4)


def test_images_are_paired_by_their_names_and_others_are_refused(tmp_path):
    images = some_images(1, 12)
    for folder, name in (("a", "img_{}.png"), ("b", "img_{:02}.png"), ("c", "{:02}_other.png")):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images, 1):
            Image.fromarray(image).save(tmp_path / folder / name.format(i))
    assert evaluated(tmp_path, "a", "b", "psnr") == {"psnr": 100}
    with pytest.raises(SystemExit) as refused:
        evaluated(tmp_path, "a", "c", "psnr")
    for text in ("image 1 of", "is img_1.png", "01_other.png"):
        assert text in str(refused.value)


@pytest.mark.parametrize("names", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
def test_a_reference_of_mean_and_covariance_is_enough_for_fid_and_sfid_says_what_it_lacks(names, sets, tmp_path):
    reference = tmp_path / "statistics.npz"
    np.savez(reference, **dict(zip(names, (np.zeros(2048), np.eye(2048)), strict=True)))
    common = [str(sets[0] / "a.npz"), f"--reference={reference}", "--inception=nowhere.pth"]
    with pytest.raises(SystemExit, match="nowhere"):  # nothing but the network's weights is missing
        main([*common, "--metrics=fid"])
    with pytest.raises(SystemExit, match=r"inception\.pool but none of inception\.spatial \(mu_s, sigma_s\)"):
        main([*common, "--metrics=fid,sfid"])
    with pytest.raises(SystemExit, match=r"statistics\.npz has no images"):
        main([*common, "--metrics=fid,rfid"])


def test_a_set_of_images_is_read_in_parts_as_numpy_reads_it_whole(tmp_path):
    images = some_images(0, 11)
    np.savez_compressed(tmp_path / "x.npz", arr_0=images, arr_1=np.arange(11))
    found = open_images(tmp_path / "x.npz")
    assert found.shape == images.shape
    parts = list(found.batches(4))
    assert [len(part) for part in parts] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(parts), images)


def prepared(folder, kind):
    """A set of images that is wrong in one way."""
    path = folder / kind
    if kind.endswith(".npz"):
        arrays = {"floats.npz": np.zeros((3, 8, 8, 3)), "gray.npz": np.zeros((3, 8, 8), np.uint8)}
        np.savez(path, **({"images": arrays["gray.npz"]} if kind == "other.npz" else {"arr_0": arrays.get(kind)}))
    elif kind == "text":
        path.mkdir()
        (path / "notes.txt").write_text("no image")
    elif kind == "broken":
        path.mkdir()
        (path / "0.png").write_bytes(b"no image")
    elif kind == "sizes":
        path.mkdir()
        for i, size in enumerate((8, 9)):
            Image.new("RGB", (size, 8)).save(path / f"{i}.png")
    elif kind == "empty":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("empty", "has no images"), ("text", "1 other files, such as notes.txt"), ("broken", "no readable image"),
        ("sizes", "1.png is 9 x 8 pixels, 0.png is 8 x 8"), ("missing", "there is no file or folder"),
        ("floats.npz", "are float64 (3, 8, 8, 3), expected uint8"), ("gray.npz", "uint8 (3, 8, 8), expected"),
        ("other.npz", "it holds ['images'], expected arr_0"),
    ],
)  # fmt: skip
def test_images_that_are_none_are_refused_by_name(kind, text, sets, tmp_path):
    path = prepared(tmp_path, kind)
    with pytest.raises(SystemExit) as refused:
        main([str(path), f"--reference={sets[0] / 'a.npz'}", "--metrics=psnr"])
    assert text in str(refused.value) and str(path.name) in str(refused.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--metrics=fidd"], "there are no ['fidd']"),
        (["--metrics=fid"], "need --inception=FILE"),
        (["--metrics=fd_encoder"], "need --encoder_config=FILE"),
        (["--metrics=psnr"], "pairs must be as many and as large"),
        (["--metrics=fd_encoder", f"--encoder_config={CONFIG}"], "give --encoder=DIRECTORY"),
        (["--metrics=fid", "--inception=nowhere.pth"], "nowhere.pth"),
        (["--metrics=psnr", "--batch_size=0"], "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_said_before_any_work(options, text, sets):
    with pytest.raises(SystemExit) as refused:
        main([str(sets[0] / "a.npz"), f"--reference={sets[0] / 'b.npz'}", *options])
    assert text in str(refused.value)


def test_fewer_samples_than_features_are_refused(sets, tmp_path):
    folder, _ = sets
    write_samples(tmp_path / "few.npz", some_images(0, 9))
    with pytest.raises(SystemExit, match=r"few\.npz: fd_encoder over 16 features needs more than 16 samples"):
        main([str(tmp_path / "few.npz"), f"--reference={folder / 'b.npz'}", "--metrics=fd_encoder",
              f"--encoder_config={CONFIG}", f"--encoder={folder / 'encoder'}"])  # fmt: skip


def test_statistics_without_images_give_fid_and_adms_file_all_of_a_published_table(sets, tmp_path, monkeypatch):
    """With a small network in Inception's place: the samples' moments by NumPy, the distance by SciPy."""
    small_inception.install(monkeypatch)
    network = small_inception.SmallInception()
    images = open_images(sets[0] / "a.npz")
    params = jax.jit(network.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))["params"]
    monkeypatch.setattr(evaluate, "Inception", lambda: network)
    monkeypatch.setattr(evaluate, "read_tensors", lambda path: {})
    monkeypatch.setattr(evaluate, "import_inception", lambda tensors, like: params)
    (tmp_path / "inception.pth").touch()
    rng = np.random.default_rng(0)
    stored = rng.normal(size=5), np.cov(rng.normal(size=(5, 30)))
    np.savez(tmp_path / "statistics.npz", mu=stored[0], sigma=stored[1])
    inception = f"--inception={tmp_path / 'inception.pth'}"
    results = evaluated(sets[0], "a.npz", tmp_path / "statistics.npz", "fid", inception)
    (whole,) = images.batches(len(images))
    expected = small_inception.distance(small_inception.moments(params, whole), stored)
    assert results == {"fid_45": pytest.approx(expected, rel=1e-4)}

    # ADM's file: statistics that are not those of its images, which are for precision and recall alone.
    (of_b,) = open_images(sets[0] / "b.npz").batches(37)
    spatial = rng.normal(size=4), np.cov(rng.normal(size=(4, 30)))
    np.savez(tmp_path / "adm.npz", arr_0=of_b, mu=stored[0], sigma=stored[1], mu_s=spatial[0], sigma_s=spatial[1])
    found = evaluated(sets[0], "a.npz", tmp_path / "adm.npz", "recall,sfid,fid,is,precision", inception)
    assert list(found) == ["recall_45", "sfid_45", "fid_45", "is_45", "precision_45"]
    assert found["fid_45"] == results["fid_45"]
    a, b = (jax.jit(network.apply)({"params": params}, x) for x in (whole, of_b))
    rows = np.asarray(a.spatial, np.float64)
    of_samples = rows.mean(0), np.cov(rows.T)
    assert found["sfid_45"] == pytest.approx(small_inception.distance(of_samples, spatial), rel=1e-4)
    assert found["precision_45"] == pytest.approx(inside(a.pool, b.pool), abs=1.5 / 45)
    assert found["recall_45"] == pytest.approx(inside(b.pool, a.pool), abs=1.5 / 37)
