"""Every contraction as a module, alone, as a residual layer, mixed and stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn
from tests import oracles

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
        np.testing.assert_allclose(copy(x), expected, atol=5e-3)
        bound = copy.bound()
        assert bound.kind == "upper" and float(bound.value) <= 1 + 1e-5
    gradient = jax.jit(jax.grad(lambda m: (m(x) ** 2).sum()))(module)
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() for leaf in leaves) and any(leaf.any() for leaf in leaves)


MIXED = [("CayleyDense", nn.ConvexMix), ("SOCConv", nn.ConvexMix)]


@pytest.mark.parametrize("name,form", [(name, nn.Residual) for name in LINEAR] + MIXED)
def test_every_contraction_in_every_form(name, form):
    module, x = form(LINEAR[name](nnx.Rngs(0))), batch(name)
    frozen = nn.freeze(module)
    np.testing.assert_allclose(frozen(x), module(x), atol=1e-2)
    assert float(frozen.bound().value) <= 1 + 1e-5
    jacobian = jax.jit(jax.jacobian(lambda x: module(x)))(x[0])
    assert oracles.norm(np.asarray(jacobian).reshape(x[0].size, -1)) <= 1 + 1e-5
    gradient = jax.grad(lambda m: (m(x) ** 2).sum())(module)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_residual_is_the_formula():
    layer = nn.CayleyDense(5, 3, rngs=nnx.Rngs(0))
    a = np.asarray(layer.weights().kernel)
    x = RNG.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(nn.Residual(layer)(x), x - 2 * np.maximum(x @ a, 0) @ a.T, atol=1e-5)


def test_forms_go_into_stacks():
    stack = nn.Stack(
        lambda rngs: nn.Residual(nn.ReflectorDense(6, rngs=rngs), activation="tanh"),
        3,
        rngs=nnx.Rngs(0),
    )
    x = RNG.normal(size=(2, 6)).astype(np.float32)
    frozen = nn.freeze(stack)
    np.testing.assert_allclose(frozen(x), stack(x), atol=1e-4)
    assert float(frozen.bound().value) <= 1 + 1e-5


def test_what_does_not_fit_is_refused():
    rngs = nnx.Rngs(0)
    for make, word in (
        (lambda: nn.Residual(nn.SandwichConv(3, 3, input_size=4, rngs=rngs)), "linear layer"),
        (lambda: nn.Residual(nn.SLLDense(4, 4, rngs=rngs)), "linear layer"),
        (lambda: nn.Residual(nn.CayleyDense(4, 4, rngs=rngs), activation="abs"), "slope goes down"),
        (lambda: nn.ConvexMix(nn.freeze(nn.CayleyDense(4, 4, rngs=rngs))), "no free parameters"),
        (lambda: nn.SOCConv(3, 3, order=5, rngs=rngs), "order is 5"),
        (lambda: nn.SOCConv(3, 3, 2, rngs=rngs), "kernel_size is 2"),
        (lambda: nn.CayleyConv(3, 3, input_size=0, rngs=rngs), "input_size"),
        (lambda: nn.BjorckDense(3, 3, num_steps=-1, rngs=rngs), "num_steps"),
        (lambda: nn.SandwichDense(3, 3, activation="max_min", rngs=rngs), "mixes channels"),
        (lambda: nn.ConvexMix(nn.CayleyDense(4, 3, rngs=rngs))(jnp.ones((1, 4))), "keep it"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_widths_may_be_named():
    rngs = nnx.Rngs(0)
    for module in (nn.AOLDense, nn.BjorckDense, nn.HouseholderDense, nn.SandwichDense):
        assert module(in_features=4, out_features=3, rngs=rngs)(jnp.ones((2, 4))).shape == (2, 3)


@pytest.mark.parametrize("order", [1, 2])
def test_chains_with_learnt_activations_go_into_stacks(order):
    def pair(rngs):
        return nn.Chain(
            nn.CayleyDense(6, 6, rngs=rngs), nn.Householder(6, order=order, rngs=rngs), "abs"
        )

    stack, x = nn.Stack(pair, 2, rngs=nnx.Rngs(0)), batch("AOLDense")
    rngs = nnx.Rngs(0)
    expected = x
    for _ in range(2):
        layer, activation = (
            nn.CayleyDense(6, 6, rngs=rngs),
            nn.Householder(6, order=order, rngs=rngs),
        )
        expected = jnp.abs(activation(layer(expected)))
    np.testing.assert_allclose(stack(x), expected, atol=1e-5)
    frozen = nn.freeze(stack)
    assert float(frozen.bound().value) <= 1 + 1e-5
    gradient = jax.grad(lambda m: (m(x) ** 3).sum())(stack)
    assert all(leaf.any() and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_what_is_no_chain_is_refused():
    rngs = nnx.Rngs(0)
    for make, word in (
        (lambda: nn.Chain(), "layers is empty"),
        (lambda: nn.Chain(nn.freeze(nn.AOLDense(4, 4, rngs=rngs))), "no free parameters"),
        (lambda: nn.Chain(nn.AOLDense(4, 4, rngs=rngs), "step"), "activation is 'step'"),
        (lambda: nn.Householder(1, rngs=rngs), "channels is 1"),
        (lambda: nn.Householder(4, order=3, rngs=rngs), "order is 3"),
    ):
        with pytest.raises(ValueError, match=word):
            make()
