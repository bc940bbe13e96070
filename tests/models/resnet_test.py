"""ResNet-18 from the arrays of a state dict: equal to PyTorch's where that is installed, bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.models import resnet
from lipjax.spectral import network_bound
from tests import oracles

RNG = np.random.default_rng(0)


def state_dict(width=4, window=3):
    """Arrays with the names and shapes of torchvision's resnet18, narrower."""
    arrays = {}

    def conv(name, c_out, c_in, k):
        scale = np.sqrt(2 / (c_in * k * k))
        arrays[f"{name}.weight"] = scale * RNG.normal(size=(c_out, c_in, k, k))

    def norm(name, c):
        arrays[f"{name}.weight"] = RNG.uniform(0.5, 1.5, c)
        arrays[f"{name}.bias"] = RNG.normal(size=c)
        arrays[f"{name}.running_mean"] = RNG.normal(size=c)
        arrays[f"{name}.running_var"] = RNG.uniform(0.5, 2, c)

    conv("conv1", width, 3, window)
    norm("bn1", width)
    c_in = width
    for stage in range(4):
        c_out = width * 2**stage
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            conv(f"{name}.conv1", c_out, c_in, 3)
            norm(f"{name}.bn1", c_out)
            conv(f"{name}.conv2", c_out, c_out, 3)
            norm(f"{name}.bn2", c_out)
            if stage and not block:
                conv(f"{name}.downsample.0", c_out, c_in, 1)
                norm(f"{name}.downsample.1", c_out)
            c_in = c_out
    arrays["fc.weight"] = RNG.normal(size=(10, c_in)) / np.sqrt(c_in)
    arrays["fc.bias"] = RNG.normal(size=10)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


@pytest.mark.slow
@pytest.mark.parametrize("window,size", [(3, 17), (7, 65)])
def test_bounded_as_it_stands(window, size):
    fn = resnet.from_state_dict(state_dict(window=window))
    x = jnp.asarray(RNG.random((1, size, size, 3)), jnp.float32)
    found = network_bound(fn, x)
    kinds = [layer.kind for layer in found.layers]
    assert kinds.count("conv") == 20 and kinds.count("dense") == 1
    assert kinds.count("pool") == (2 if window == 7 else 1)
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda z: fn(z)[0]))(x)).reshape(10, -1)
    assert oracles.norm(jacobian) <= float(found.value)


def test_equals_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    arrays = state_dict()
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}

    def norm(x, name):
        parts = [tensors[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *parts)

    def conv(x, name, stride=1):
        kernel = tensors[f"{name}.weight"]
        return torch.nn.functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = torch.from_numpy(RNG.random((2, 3, 16, 16)).astype(np.float32))
    y = torch.relu(norm(conv(x, "conv1"), "bn1"))
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            z = torch.relu(norm(conv(y, f"{name}.conv1", stride), f"{name}.bn1"))
            z = norm(conv(z, f"{name}.conv2"), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in tensors:
                y = norm(conv(y, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            y = torch.relu(y + z)
    expected = y.mean((2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]
    ours = resnet.from_state_dict(arrays)(jnp.asarray(x.numpy().transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-3, atol=1e-3)


def test_missing_and_misshapen_arrays_are_named():
    arrays = state_dict()
    wrong = arrays | {"fc.weight": arrays["fc.weight"][0]}
    with pytest.raises(ValueError, match="fc.weight"):
        resnet.from_state_dict(wrong)
    del arrays["layer2.1.bn2.running_var"]
    with pytest.raises(ValueError, match="no 'layer2.1.bn2.running_var'"):
        resnet.from_state_dict(arrays)
    with pytest.raises(ValueError, match="x has shape"):
        resnet.from_state_dict(state_dict())(jnp.ones((1, 8, 8, 4)))
