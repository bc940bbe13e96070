"""Every contraction as a module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn
from tests.nn import modules

RNG = np.random.default_rng(0)


def batch(name):
    return RNG.normal(size=(2, *modules.sample(name))).astype(np.float32)


@pytest.mark.parametrize("name", [n for n in modules.LAYERS if n != "NormalizedHead"])
def test_one_function_free_constrained_and_frozen(name):
    module, x = modules.make(name), batch(name)
    expected = jax.jit(lambda m, x: m(x))(module, x)
    for copy in (nn.constrain(module), nn.freeze(module)):
        np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(copy, x), expected, atol=5e-3)
        bound = copy.bound()
        assert bound.kind == "upper" and float(bound.value) <= 1 + 1e-5
    gradient = jax.jit(jax.grad(lambda m: (m(x) ** 3).sum()))(module)
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() for leaf in leaves) and any(leaf.any() for leaf in leaves)


def test_what_does_not_fit_is_refused():
    rngs = nnx.Rngs(0)
    for make, word in (
        (lambda: nn.SOCConv(3, 3, order=5, rngs=rngs), "order is 5"),
        (lambda: nn.BCOPConv(3, 3, (3, 1), rngs=rngs), "kernel_size is .3, 1."),
        (lambda: nn.SOCConv(3, 3, 2, rngs=rngs), "kernel_size is 2"),
        (lambda: nn.CayleyConv(3, 3, input_size=0, rngs=rngs), "input_size"),
        (lambda: nn.BjorckDense(3, 3, num_steps=-1, rngs=rngs), "num_steps"),
        (lambda: nn.Householder(1, rngs=rngs), "channels is 1"),
        (lambda: nn.Householder(4, order=3, rngs=rngs), "order is 3"),
        (lambda: nn.SandwichDense(3, 3, activation="max_min", rngs=rngs), "mixes channels"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_block_convolutions_take_strides_and_pairs_as_the_others_do():
    one, two = (
        nn.BCOPConv(2, 8, size, strides=strides, rngs=nnx.Rngs(0))
        for size, strides in ((3, 2), ((3, 3), (2, 2)))
    )
    x = RNG.normal(size=(1, 4, 4, 2)).astype(np.float32)
    assert one(x).shape == (1, 2, 2, 8)
    np.testing.assert_array_equal(one(x), two(x))


def test_widths_may_be_named():
    rngs = nnx.Rngs(0)
    for module in (nn.AOLDense, nn.BjorckDense, nn.HouseholderDense, nn.SandwichDense):
        assert module(in_features=4, out_features=3, rngs=rngs)(jnp.ones((2, 4))).shape == (2, 3)


@pytest.mark.parametrize("name", modules.LAYERS)
def test_batches_may_be_empty(name):
    module, shape = modules.make(name), modules.sample(name)
    assert module(jnp.ones((0, *shape))).shape == (0, *shape)


@pytest.mark.slow
def test_what_divides_in_training_may_be_chosen_and_frozen_weights_are_sound():
    """An estimate from below makes layers that expand a little until they are frozen."""
    too_small = lambda kernel: 0.9 * jnp.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)  # noqa: E731
    for module in (nn.SpectralDense, nn.SpectralConv):
        layer = module(20, 20, norm=too_small, rngs=nnx.Rngs(0))
        assert float(layer.bound().value) > 1.1
        assert float(nn.freeze(layer).bound().value) <= 1 + 1e-5
        kernel = RNG.normal(size=layer.free.get_value().kernel.shape).astype(np.float32)
        bounds = []
        for num_iters in (1, 8):
            other = module(20, 20, num_iters=num_iters, rngs=nnx.Rngs(0))
            other.free = nnx.Param(other.free.get_value()._replace(kernel=jnp.asarray(kernel)))
            bounds.append(float(other.bound().value))
        assert bounds[0] < 0.995 < bounds[1] <= 1 + 1e-5  # more products, less slack
