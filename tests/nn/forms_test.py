"""Every contraction as a residual layer, mixed, chained and stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn
from lipjax.layers import activations
from tests import oracles
from tests.marks import slow
from tests.nn import modules
from tests.nn.contractions_test import RNG, batch

jitted = jax.jit(lambda module, x: module(x))
MIXED = [("CayleyDense", nn.ConvexMix), ("SOCConv", nn.ConvexMix)]


ALWAYS = ("BjorckDense", "CayleyDense", "QRDense", "AOLDense", "BCOPConv", "SOCConv", "CayleyConv")


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name,form",
    [(name, nn.Residual) if name in ALWAYS else slow(name, nn.Residual) for name in modules.LINEAR]
    + MIXED,
)
def test_every_contraction_in_every_form(name, form):
    module, x = form(modules.make(name)), batch(name)
    frozen = nn.freeze(module)
    np.testing.assert_allclose(jitted(frozen, x), jitted(module, x), atol=1e-2)
    assert float(frozen.bound().value) <= 1 + 1e-5
    jacobian = jax.jit(jax.jacobian(lambda x: module(x)))(x[0])
    assert oracles.norm(np.asarray(jacobian).reshape(x[0].size, -1)) <= 1 + 1e-5
    gradient = jax.jit(jax.grad(lambda m: (m(x) ** 2).sum()))(module)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_residual_is_the_formula():
    layer = nn.CayleyDense(5, 3, rngs=nnx.Rngs(0))
    a = np.asarray(layer.weights().kernel)
    x = RNG.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(nn.Residual(layer)(x), x - 2 * np.maximum(x @ a, 0) @ a.T, atol=1e-5)


@pytest.mark.parametrize("strides", [2, (1, 2)])
def test_residuals_of_strided_convolutions_keep_the_shape(strides):
    layer = nn.Residual(nn.AOLConv(3, 12, strides=strides, rngs=nnx.Rngs(0)))
    x = batch("AOLConv")
    assert layer(x).shape == x.shape
    jacobian = jax.jit(jax.jacobian(lambda x: layer(x)))(x[0])
    norm = oracles.norm(np.asarray(jacobian).reshape(x[0].size, -1))
    assert norm <= 1 + 1e-5 and layer.bound().value <= 1 + 1e-5


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


@pytest.mark.few(1)
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
    gradient = jax.jit(jax.grad(lambda m: (m(x) ** 3).sum()))(stack)
    assert all(leaf.any() and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_activations_in_chains_may_be_modules():
    x = RNG.normal(size=(2, 6)).astype(np.float32)
    for module, name in ((nn.MaxMin(), "max_min"), (nn.FullSort(), "full_sort")):
        a, b = (nn.Chain(nn.AOLDense(6, 6, rngs=nnx.Rngs(0)), s) for s in (module, name))
        np.testing.assert_array_equal(a(x), b(x))
    chain = nn.Chain(nn.GroupSort(3), nn.AOLDense(6, 6, rngs=nnx.Rngs(0)), nn.GroupSort(3))
    y = np.asarray(nn.freeze(chain)(x)).reshape(2, 2, 3)
    assert (np.diff(y) >= 0).all()
    layer = nn.AOLDense(6, 6, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="layers has the same layer .AOLDense. twice"):
        nn.Chain(layer, layer)


def test_no_module_with_parameters_is_taken_for_the_activation_that_it_has():
    """It was left out without a word, and the chain's bound was proved without it."""
    linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    linear.activation = activations.RELU

    def layer(rngs):
        return nn.AOLDense(4, 4, rngs=rngs)

    with pytest.raises(ValueError, match="layers has a Linear"):
        nn.Chain(linear)
    for make in (
        lambda: nn.Stack(layer, 2, between=linear, rngs=nnx.Rngs(0)),
        lambda: nn.SLLDense(4, 4, activation=linear, rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match="about whose slopes nothing is known"):
            make()


def test_a_mix_whose_share_is_no_number_has_no_bound():
    mix = nn.freeze(nn.ConvexMix(nn.AOLDense(4, 4, rngs=nnx.Rngs(0))))
    mix.explicit = type(mix.explicit)((mix.weights()[0], jnp.array(jnp.nan)))
    assert mix.bound().value == np.inf


def test_what_does_not_fit_is_refused():
    rngs = nnx.Rngs(0)
    for make, word in (
        (lambda: nn.Residual(nn.SandwichConv(3, 3, input_size=4, rngs=rngs)), "linear layer"),
        (lambda: nn.Residual(nn.SLLDense(4, 4, rngs=rngs)), "linear layer"),
        (lambda: nn.Residual(nn.CayleyDense(4, 4, rngs=rngs), activation="abs"), "slope goes down"),
        (lambda: nn.Residual(nn.NormalizedHead(4, 3, rngs=rngs)), "linear layer"),
        (lambda: nn.ConvexMix(nn.freeze(nn.CayleyDense(4, 4, rngs=rngs))), "no free parameters"),
        (lambda: nn.ConvexMix(nn.CayleyDense(4, 3, rngs=rngs))(jnp.ones((1, 4))), "keep it"),
        (lambda: nn.Chain(), "layers is empty"),
        (lambda: nn.Chain([nn.AOLDense(4, 4, rngs=rngs)]), "layers has a list"),
        (lambda: nn.Chain(nnx.Linear(4, 4, rngs=rngs)), "layers has a Linear"),
        (lambda: nn.SLLDense(4, 4, rngs=0), "rngs is 0; it must be flax.nnx.Rngs"),
        (
            lambda: nn.Stack(
                lambda rngs: nn.AOLDense(4, 4, rngs=rngs),
                2,
                between=nn.Residual(nn.CayleyDense(4, 4, rngs=rngs)),
                rngs=rngs,
            ),
            "between is a Residual, which has parameters",
        ),
        (
            lambda: nn.Householder(4, rngs=rngs)(jnp.ones((1, 4), jnp.bfloat16)),
            "x has dtype bfloat16",
        ),
        (lambda: nn.Chain(nn.freeze(nn.AOLDense(4, 4, rngs=rngs))), "no free parameters"),
        (lambda: nn.Chain(nn.AOLDense(4, 4, rngs=rngs), "step"), "activation is 'step'"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_bounds_of_chains_and_mixes_are_upper_ones():
    """A sigmoid has slopes of at most 1/4: 1 is not its constant."""
    mixes = [nn.ConvexMix(nn.Chain("relu")), nn.ConvexMix(nn.Householder(4, rngs=nnx.Rngs(0)))]
    for module in (nn.Chain("sigmoid"), *mixes):
        assert module.bound().kind == "upper" and 1 <= float(module.bound().value) <= 1 + 1e-5
    for module in mixes:
        with pytest.raises(ValueError, match="not under jit"):
            jax.jit(lambda m: m.bound().value)(module)


def test_classes_in_place_of_layers_are_named():
    for make, name in [
        (lambda: nn.Residual(nn.AOLDense), "layer has the class AOLDense; pass a layer"),
        (lambda: nn.ConvexMix(nn.SLLDense), "layer has the class SLLDense; pass a layer"),
        (lambda: nn.Chain(nn.MaxMin), "layers has the class MaxMin; pass a layer"),
    ]:
        with pytest.raises(ValueError, match=name):
            make()
