"""Every contraction as a module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn

RNG = np.random.default_rng(0)
DENSE = {
    name: lambda rngs, name=name: getattr(nn, name)(6, 6, rngs=rngs)
    for name in (
        "SpectralDense BjorckDense CayleyDense HouseholderDense QRDense CholeskyDense SkewDense "
        "AOLDense RescaledDense"
    ).split()
} | {"ReflectorDense": lambda rngs: nn.ReflectorDense(6, rngs=rngs)}
CONV = {
    "SpectralConv": lambda rngs: nn.SpectralConv(3, 3, rngs=rngs),
    "AOLConv": lambda rngs: nn.AOLConv(3, 3, rngs=rngs),
    "BCOPConv": lambda rngs: nn.BCOPConv(3, 3, rngs=rngs),
    "SOCConv": lambda rngs: nn.SOCConv(3, 3, rngs=rngs),
    "CayleyConv": lambda rngs: nn.CayleyConv(3, 3, input_size=(4, 5), rngs=rngs),
    "ReflectorConv": lambda rngs: nn.ReflectorConv(3, input_size=(4, 5), rngs=rngs),
}
SANDWICH = {
    "SandwichDense": lambda rngs: nn.SandwichDense(6, 6, rngs=rngs),
    "SandwichConv": lambda rngs: nn.SandwichConv(3, 3, input_size=(4, 5), rngs=rngs),
}
LINEAR = DENSE | CONV


def batch(name):
    shape = (2, 4, 5, 3) if name in CONV or name == "SandwichConv" else (2, 6)
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", LINEAR | SANDWICH)
def test_one_function_free_constrained_and_frozen(name):
    module, x = (LINEAR | SANDWICH)[name](nnx.Rngs(0)), batch(name)
    expected = jax.jit(lambda m, x: m(x))(module, x)
    for copy in (nn.constrain(module), nn.freeze(module)):
        np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(copy, x), expected, atol=5e-3)
        bound = copy.bound()
        assert bound.kind == "upper" and float(bound.value) <= 1 + 1e-5
    gradient = jax.jit(jax.grad(lambda m: (m(x) ** 2).sum()))(module)
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() for leaf in leaves) and any(leaf.any() for leaf in leaves)


def test_what_does_not_fit_is_refused():
    rngs = nnx.Rngs(0)
    for make, word in (
        (lambda: nn.SOCConv(3, 3, order=5, rngs=rngs), "order is 5"),
        (lambda: nn.SOCConv(3, 3, 2, rngs=rngs), "kernel_size is 2"),
        (lambda: nn.CayleyConv(3, 3, input_size=0, rngs=rngs), "input_size"),
        (lambda: nn.BjorckDense(3, 3, num_steps=-1, rngs=rngs), "num_steps"),
        (lambda: nn.Householder(1, rngs=rngs), "channels is 1"),
        (lambda: nn.Householder(4, order=3, rngs=rngs), "order is 3"),
        (lambda: nn.SandwichDense(3, 3, activation="max_min", rngs=rngs), "mixes channels"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_widths_may_be_named():
    rngs = nnx.Rngs(0)
    for module in (nn.AOLDense, nn.BjorckDense, nn.HouseholderDense, nn.SandwichDense):
        assert module(in_features=4, out_features=3, rngs=rngs)(jnp.ones((2, 4))).shape == (2, 3)
