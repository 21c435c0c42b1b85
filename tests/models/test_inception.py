"""The FID Inception network against a PyTorch one with random weights, written here from the published architecture."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rae_jax.data.sources import open_source
from rae_jax.evaluation.frechet import Moments, frechet_distance
from rae_jax.interop.inception_fid import INCEPTION_CARRIED, INCEPTION_RULES, import_inception
from rae_jax.interop.layout import export_params, import_params
from rae_jax.models.inception import Inception, resize_bilinear_tf1


def resize_as_tensorflow_1(x: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear resize of `[B, C, H, W]` by explicit lookup of the four neighbours of each output pixel."""

    def neighbours(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at = torch.arange(size) * (n / size)
        low = at.floor().long()
        return low, (low + 1).clamp(max=n - 1), at - low

    y0, y1, dy = neighbours(x.shape[2])
    x0, x1, dx = neighbours(x.shape[3])
    top = x[:, :, y0][..., x0] * (1 - dx) + x[:, :, y0][..., x1] * dx
    bottom = x[:, :, y1][..., x0] * (1 - dx) + x[:, :, y1][..., x1] * dx
    return top * (1 - dy[:, None]) + bottom * dy[:, None]


class ConvBN(nn.Module):
    def __init__(self, c_in, c_out, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


# Each block is a list of branches. A branch is a list of layers (name, width, kernel, stride, padding) in sequence; a
# list in place of a layer holds parallel ones; "avg", "max" (both 3 x 3, same size) and "down" are pools.
def same(name, width, *kernel):
    kernel = kernel or (1,)
    kernel = kernel * 2 if len(kernel) == 1 else kernel
    return name, width, kernel, 1, tuple(k // 2 for k in kernel)


def halve(name, width):
    return name, width, (3, 3), 2, 0


def tower(prefix, *layers):
    return [same(f"{prefix}_{i}", *layer) for i, layer in enumerate(layers, start=1)]


def block_a(pool):
    return [
        [same("branch1x1", 64)],
        tower("branch5x5", (48,), (64, 5)),
        tower("branch3x3dbl", (64,), (96, 3), (96, 3)),
        ["avg", same("branch_pool", pool)],
    ]


def block_c(c):
    return [
        [same("branch1x1", 192)],
        tower("branch7x7", (c,), (c, 1, 7), (192, 7, 1)),
        tower("branch7x7dbl", (c,), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)),
        ["avg", same("branch_pool", 192)],
    ]


def block_e(pool):
    return [
        [same("branch1x1", 320)],
        [same("branch3x3_1", 384), [same("branch3x3_2a", 384, 1, 3), same("branch3x3_2b", 384, 3, 1)]],
        [
            *tower("branch3x3dbl", (448,), (384, 3)),
            [same("branch3x3dbl_3a", 384, 1, 3), same("branch3x3dbl_3b", 384, 3, 1)],
        ],
        [pool, same("branch_pool", 192)],
    ]


BLOCKS = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": [
        [halve("branch3x3", 384)],
        [*tower("branch3x3dbl", (64,), (96, 3)), halve("branch3x3dbl_3", 96)],
        ["down"],
    ],
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": [
        [same("branch3x3_1", 192), halve("branch3x3_2", 320)],
        [*tower("branch7x7x3", (192,), (192, 1, 7), (192, 7, 1)), halve("branch7x7x3_4", 192)],
        ["down"],
    ],
    "Mixed_7b": block_e("avg"),
    "Mixed_7c": block_e("max"),
}
POOLS = {
    "avg": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "max": lambda x: F.max_pool2d(x, 3, 1, 1),
    "down": lambda x: F.max_pool2d(x, 3, 2),
}


class Mixed(nn.Module):
    def __init__(self, c_in, branches):
        super().__init__()
        self.branches = branches
        self.c_out = sum(self.build(branch, c_in) for branch in branches)

    def build(self, branch, c):
        for layer in branch:
            if isinstance(layer, list):
                c = sum(self.build([parallel], c) for parallel in layer)
            elif isinstance(layer, tuple):
                name, width, *convolution = layer
                self.add_module(name, ConvBN(c, width, *convolution))
                c = width
        return c

    def run(self, branch, x):
        for layer in branch:
            if isinstance(layer, list):
                x = torch.cat([self.run([parallel], x) for parallel in layer], 1)
            else:
                x = POOLS[layer](x) if isinstance(layer, str) else getattr(self, layer[0])(x)
        return x

    def forward(self, x):
        return torch.cat([self.run(branch, x) for branch in self.branches], 1)


class TorchInception(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvBN(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = ConvBN(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBN(80, 192, 3)
        c = 192
        for name, branches in BLOCKS.items():
            block = Mixed(c, branches)
            self.add_module(name, block)
            c = block.c_out
        self.fc = nn.Linear(c, 1008)

    def forward(self, x):
        x = (resize_as_tensorflow_1(x, 299) - 128) * 0.0078125
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in BLOCKS:
            if name == "Mixed_6d":
                spatial = self.Mixed_6d.branch1x1(x)[:, :7]
            x = getattr(self, name)(x)
        pool = x.mean((2, 3))
        return pool, spatial.permute(0, 2, 3, 1).flatten(1), pool @ self.fc.weight.T


@pytest.fixture(scope="module")
def reference() -> TorchInception:
    torch.manual_seed(0)
    model = TorchInception().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def tensors(reference: TorchInception) -> dict[str, np.ndarray]:
    return {name: w.numpy() for name, w in reference.state_dict().items()}


@pytest.fixture(scope="module")
def structure():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "uint8")
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def test_pool_spatial_and_logit_features_equal_the_pytorch_network(reference, tensors, structure):
    params = import_inception(tensors, structure)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 53, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    actual = jax.jit(Inception().apply)({"params": params}, images)
    assert [x.shape for x in actual] == [(2, 2048), (2, 2023), (2, 1008)]
    for name, ours, theirs in zip(actual._fields, actual, expected, strict=True):
        theirs = theirs.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max(), err_msg=name)


@pytest.mark.slow
def test_the_fid_of_real_images_agrees_with_that_of_the_pytorch_network(reference, tensors, structure):
    params = import_inception(tensors, structure)
    run = jax.jit(Inception().apply)
    ours, theirs = [], []
    for split in ("train", "test"):
        source = open_source("digits", split, "", max_unreadable_share=0.0, check_images=0)
        images = np.stack([source[i]["image"] for i in range(40)])
        ours.append(np.concatenate([run({"params": params}, part).pool for part in np.split(images, 5)]))
        with torch.no_grad():
            parts = np.split(images, 5)
            theirs.append(torch.cat([reference(torch.from_numpy(x).permute(0, 3, 1, 2).float())[0] for x in parts]))
    actual = frechet_distance(*(Moments.of(features).gaussian() for features in ours))
    # With fewer images than features, the root's trace is the nuclear norm of the product of the centred features.
    a, b = (features.double().numpy() for features in theirs)
    centred = [x - x.mean(axis=0) for x in (a, b)]
    variances = sum(np.sum(x**2) / (len(x) - 1) for x in centred)
    root = np.linalg.norm(centred[0] @ centred[1].T, "nuc") / (len(a) - 1)
    assert actual == pytest.approx(np.sum((a.mean(0) - b.mean(0)) ** 2) + variances - 2 * root, rel=1e-3)


def test_a_checkpoint_with_a_missing_tensor_is_refused_by_name(tensors, structure):
    del (partial := dict(tensors))["Mixed_6d.branch7x7_2.bn.running_var"]
    with pytest.raises(ValueError, match=r"missing +Mixed_6d\.branch7x7_2\.bn\.running_var"):
        import_inception(partial, structure)


def test_a_checkpoint_goes_back_out_as_it_came_in(tensors):
    params, carried = import_params(tensors, INCEPTION_RULES, INCEPTION_CARRIED)
    exported = export_params(params, INCEPTION_RULES, carried)
    assert exported.keys() == tensors.keys()
    assert all(np.array_equal(exported[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("shape", [(8, 8), (17, 31), (299, 299), (400, 512)])
def test_resizing_reads_the_neighbours_that_tensorflow_1_reads(shape):
    images = np.random.default_rng(1).uniform(0, 255, (1, *shape, 3)).astype(np.float32)
    expected = resize_as_tensorflow_1(torch.from_numpy(images).permute(0, 3, 1, 2), 299)
    actual = resize_bilinear_tf1(images, 299)
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1), atol=2e-3)
