"""What is particular to AOL: orthonormal kernels pass, the smaller side is scaled, isometric start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import aol
from lipjax.spectral.rescaling import autocorrelation
from tests import oracles

RNG = np.random.default_rng(0)


def test_formula_on_the_output_side():
    kernel = RNG.normal(size=(9, 5)).astype(np.float32)
    expected = kernel / np.sqrt(np.abs(np.float64(kernel).T @ np.float64(kernel)).sum(1))
    got = aol.constrain_dense(aol.Params(kernel, jnp.zeros(5))).kernel
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_formula_on_the_input_side_when_that_is_smaller():
    kernel = RNG.normal(size=(5, 9)).astype(np.float32)
    d = 1 / np.sqrt(np.abs(np.float64(kernel) @ np.float64(kernel).T).sum(1))
    got = aol.constrain_dense(aol.Params(kernel, jnp.zeros(9))).kernel
    np.testing.assert_allclose(got, d[:, None] * kernel, rtol=1e-3)


def test_starts_as_an_isometry():
    square = aol.constrain_dense(aol.init_dense(jax.random.key(0), 6, 6))
    np.testing.assert_allclose(square.kernel, np.eye(6), atol=1e-4)
    for shape in ((8, 5), (5, 8)):
        weights = aol.constrain_dense(aol.init_dense(jax.random.key(0), *shape))
        sigma = oracles.singular_values(weights.kernel)
        np.testing.assert_allclose(sigma, np.ones(5), atol=1e-2)
    conv = aol.constrain_conv(aol.init_conv(jax.random.key(0), 3, 3))
    x = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(aol.apply_conv(conv, x), x, atol=1e-3)


def test_gradient_at_the_identity_has_no_spurious_part():
    """The derivative of |x| at 0 must be 0, or the zeros of the Gram matrix pull at the kernel."""
    params = aol.init_dense(jax.random.key(0), 5, 5)
    mix = RNG.normal(size=(5, 5)).astype(np.float32)
    got = jax.grad(lambda p: jnp.vdot(mix, aol.constrain_dense(p).kernel))(params).kernel
    # d/dW of W diag(1 / |w_i|), in which the off-diagonal sums have derivative 0
    np.testing.assert_allclose(got, mix - np.diag(np.diag(mix)), atol=1e-3)


def test_strides_shrink_the_image():
    weights = aol.constrain_conv(aol.init_conv(jax.random.key(0), 2, 4))
    assert aol.apply_conv(weights, jnp.ones((5, 6, 2)), strides=2).shape == (3, 3, 4)


@pytest.mark.parametrize("shape", [(6, 6), (5, 8), (8, 5)])
def test_the_published_side_is_that_of_the_inputs(shape):
    kernel = RNG.normal(size=shape).astype(np.float32)
    params = aol.Params(kernel, jnp.zeros(shape[1]))
    weights = aol.constrain_dense(params, side="input")
    d = 1 / np.sqrt(np.abs(np.float64(kernel) @ np.float64(kernel).T).sum(1))
    np.testing.assert_allclose(weights.kernel, d[:, None] * kernel, rtol=1e-3)
    assert float(aol.bound(weights).value) <= 1 + 1e-5
    assert float(aol.bound(aol.freeze_dense(params, side="input")).value) <= 1 + 1e-5


@pytest.mark.parametrize("side", ["input", "output"])
def test_sides_of_a_convolution_are_proved(side):
    params = aol.init_conv(jax.random.key(0), 3, 3)
    params = params._replace(kernel=params.kernel + 0.3 * RNG.normal(size=(3, 3, 3, 3)))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    weights = aol.freeze_conv(params, side=side)
    sums = np.abs(np.asarray(autocorrelation(jnp.asarray(turned(params.kernel, side))))).sum(
        (0, 1, 3)
    )
    d = 1 / np.sqrt(sums)
    expected = np.asarray(params.kernel) * (d[:, None] if side == "input" else d)
    np.testing.assert_allclose(weights.kernel, expected, rtol=1e-3)
    assert float(aol.bound(weights).value) <= 1 + 1e-5


def turned(kernel, side):
    return kernel if side == "output" else np.flip(np.asarray(kernel), (0, 1)).swapaxes(2, 3)
