"""The transform against its definition; the convolution against the dense layer and circular ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import _transfer, cayley
from lipjax.layers._convolution import convolve
from tests import oracles

RNG = np.random.default_rng(0)


def test_definition():
    w = RNG.normal(size=(7, 4)).astype(np.float32)
    u, v = np.float64(w[:4]), np.float64(w[4:])
    a = u - u.T + v.T @ v
    inverse = np.linalg.inv(np.eye(4) + a)
    expected = np.concatenate([inverse @ (np.eye(4) - a), -2 * v @ inverse])
    np.testing.assert_allclose(cayley.transform(jnp.asarray(w)), expected, atol=1e-5)
    np.testing.assert_allclose(expected.T @ expected, np.eye(4), atol=1e-12)


def test_square_results_are_rotations():
    weights = cayley.constrain_dense(cayley.init_dense(jax.random.key(0), 5, 5))
    assert abs(np.linalg.det(np.float64(weights.kernel)) - 1) < 1e-5


def test_the_length_of_the_kernel_does_not_matter_and_the_scale_does():
    params = cayley.init_dense(jax.random.key(0), 6, 4)
    base = cayley.constrain_dense(params).kernel
    longer = cayley.constrain_dense(params._replace(kernel=1e9 * params.kernel)).kernel
    np.testing.assert_allclose(longer, base, atol=1e-6)
    moved = cayley.constrain_dense(params._replace(scale=2 * params.scale)).kernel
    assert np.abs(moved - base).max() > 0.1


def test_a_window_of_one_is_the_dense_layer_at_each_pixel():
    params = cayley.init_conv(jax.random.key(0), 3, 5, kernel_size=1)
    dense = cayley.Params(params.kernel[0, 0], params.bias, params.scale)
    x = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(
        cayley.apply_conv(cayley.constrain_conv(params, input_size=(4, 6)), x),
        cayley.apply_dense(cayley.constrain_dense(dense), x),
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (3, 6)])
@pytest.mark.parametrize("window", [1, 2, 3, (2, 3)])
def test_the_symbol_is_that_of_the_circular_convolution(size, window):
    window = (window, window) if isinstance(window, int) else window
    kernel = RNG.normal(size=(*window, 2, 3)).astype(np.float32)
    x = RNG.normal(size=(*size, 2)).astype(np.float32)
    weights = _transfer.Transfer(_transfer.symbol(jnp.asarray(kernel), size), jnp.zeros(3))
    got = _transfer.apply(weights, x)
    np.testing.assert_allclose(got, convolve(x, kernel, padding="circular"), atol=2e-5)


@pytest.mark.parametrize("channels", [(2, 3), (3, 2)])
def test_convolutions_are_isometries_or_their_adjoints(channels):
    params = cayley.init_conv(jax.random.key(0), *channels)
    weights = cayley.constrain_conv(params, input_size=(4, 5))
    shape = (4, 5, channels[0])
    jacobian = jax.jacobian(lambda x: cayley.apply_conv(weights, x))(jnp.zeros(shape))
    values = oracles.singular_values(np.asarray(jacobian).reshape(20 * channels[1], -1))
    np.testing.assert_allclose(values[: 20 * min(channels)], 1, atol=1e-5)
    assert float(cayley.bound(weights).value) <= 1 + 1e-5


def test_images_of_another_size_are_refused():
    params = cayley.init_conv(jax.random.key(0), 2, 2)
    weights = cayley.constrain_conv(params, input_size=6)
    with pytest.raises(ValueError, match="x has shape.*height 6 and width 10 or 11|height 6"):
        cayley.apply_conv(weights, jnp.ones((6, 8, 2)))
    with pytest.raises(ValueError, match="matrix has shape"):
        cayley.transform(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="input_size"):
        cayley.constrain_conv(params, input_size=0)


@pytest.mark.parametrize("scale", [10.0, 100.0, 1000.0, 1e20])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 16), (16, 4)])
def test_large_scales_of_kernels_near_rank_one_contract(scale, shape):
    """Without the last step the inverse's rounding made 1.07 of a scale of 1000, and NaN of 1e20."""
    rng = np.random.default_rng(0)
    for size in (1e-1, 1e-3, 1e-6):
        kernel = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))
        kernel = np.float32(kernel + size * rng.normal(size=shape))
        weights = cayley.constrain_dense(
            cayley.Params(jnp.asarray(kernel), jnp.zeros(shape[1]), jnp.float32(scale))
        )
        assert oracles.norm(weights.kernel) <= 1 + 2e-6
