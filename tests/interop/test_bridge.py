"""Bridge checkpoints come back bit for bit, and wrong ones are refused."""

import jax
import numpy as np
import pytest
from golden import cases

from rae_jax.interop.bridge import export_bridge, import_bridge
from rae_jax.models.bridge import BridgeDecoder, BridgeEncoder


@cases("rpiae_bridge")
def test_checkpoints_come_back_bit_for_bit_and_fit_the_modules(case):
    constructor, tensors = case.constructor, case.weights
    architecture, params = import_bridge(tensors, num_heads=constructor["n_heads"])
    exported = export_bridge(params, architecture)
    assert exported.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)
    encoder, decoder = BridgeEncoder(**architecture["bridge_encoder"]), BridgeDecoder(**architecture["bridge_decoder"])
    features, z = (np.zeros((1, 4, constructor[size])) for size in ("in_dim", "latent_dim"))
    like = {
        "bridge_encoder": jax.eval_shape(encoder.init, jax.random.key(0), features)["params"],
        "bridge_decoder": jax.eval_shape(decoder.init, jax.random.key(0), z)["params"],
    }
    import_bridge(tensors, num_heads=constructor["n_heads"], like=like)


@cases("rpiae_bridge")
def test_a_feed_forward_layer_of_another_width_is_found(case):
    width, tensors = case.constructor["in_dim"], dict(case.weights)
    other = 7 * width
    tensors["vb_feature_encoder.proj2.0.weight"] = np.zeros((other, width), np.float32)
    tensors["vb_feature_encoder.proj2.0.bias"] = np.zeros(other, np.float32)
    tensors["vb_feature_encoder.proj2.3.weight"] = np.zeros((width, other), np.float32)
    architecture, params = import_bridge(tensors, num_heads=case.constructor["n_heads"])
    encoder = BridgeEncoder(**architecture["bridge_encoder"])
    encoder.apply({"params": params["bridge_encoder"]}, np.zeros((1, 4, width), np.float32))


@cases("rpiae_bridge")
def test_a_missing_and_an_unexpected_tensor_are_both_named(case):
    tensors = dict(case.weights)
    tensors["vb_feature_decoder.out_prj.bias"] = tensors.pop("vb_feature_decoder.out_proj.bias")
    with pytest.raises(ValueError, match=r"(?s)missing.*out_proj.bias.*unexpected.*out_prj.bias"):
        import_bridge(tensors, num_heads=case.constructor["n_heads"])


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no variational bridge"):
        import_bridge({"decoder.decoder_pred.weight": np.zeros((3, 1))})
