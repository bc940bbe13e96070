"""Lower bounds: never above the norm, and close to it where power iteration converges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.spectral import conv_enclosure, power_iteration
from tests import oracles

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("complex_ones", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_never_above_the_norm_and_close(key, complex_ones, shape):
    matrices = RNG.normal(size=(200, *shape))
    if complex_ones:
        matrices = matrices + 1j * RNG.normal(size=matrices.shape)
    matrices = matrices.astype(np.complex64 if complex_ones else np.float32)
    truth = oracles.singular_values(matrices)[:, 0]
    lower = np.asarray(power_iteration(key, matrices, num_iters=60), np.float64)
    assert (lower <= truth).all() and (lower >= 0.98 * truth).mean() > 0.97


def test_negative_control_the_plain_quotient_exceeds_the_norm(key):
    """Without the rounding subtracted, float32 power iteration overshoots now and then."""
    matrices = RNG.normal(size=(500, 6, 6)).astype(np.float32)
    truth = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)[:, 0]

    def plain(w):
        v = jnp.ones(6)
        for _ in range(200):
            v = w.T @ (w @ v)
            v = v / jnp.linalg.norm(v)
        return jnp.linalg.norm(w @ v)

    assert (np.asarray(jax.vmap(plain)(matrices), np.float64) > truth).any()
    assert (np.asarray(power_iteration(key, matrices), np.float64) <= truth).all()


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30])
def test_scales_zero_nan_and_infinity(key, scale):
    matrix = (RNG.normal(size=(5, 4)) * scale).astype(np.float32)
    assert float(power_iteration(key, matrix)) <= oracles.norm(matrix)
    assert float(power_iteration(key, jnp.zeros((3, 2)))) == 0
    assert np.isnan(power_iteration(key, jnp.full((2, 2), jnp.nan)))
    assert np.isposinf(power_iteration(key, jnp.full((2, 2), jnp.inf)))


def test_bad_input_is_named(key):
    with pytest.raises(ValueError, match="num_iters is 0"):
        power_iteration(key, jnp.ones((2, 2)), num_iters=0)
    with pytest.raises(ValueError, match="matrix"):
        power_iteration(key, jnp.ones(2))


GEOMETRIES = {
    "plain": ((3, 3, 3, 4), {}),
    "strided": ((3, 3, 2, 4), {"strides": 2}),
    "dilated": ((2, 3, 2, 2), {"dilation": 2}),
    "grouped": ((3, 3, 2, 4), {"groups": 2}),
    "1d": ((5, 3, 2), {}),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_enclosure_of_convolutions_holds_the_norm(name):
    shape, options = GEOMETRIES[name]
    for padding, kernel in itertools.product(
        ("circular", "zero"), RNG.normal(size=(3, *shape)).astype(np.float32)
    ):
        truth = oracles.norm(oracles.conv_matrix(kernel, 6, padding=padding, **options))
        lower, upper = conv_enclosure(kernel, padding=padding, input_size=6, **options)
        assert float(lower) <= truth <= float(upper)
        assert float(lower) >= 0.97 * truth


def test_enclosure_for_every_size_holds_the_supremum():
    kernel = RNG.normal(size=(3, 3, 2, 3)).astype(np.float32)
    lower, upper = conv_enclosure(kernel, padding="any", num_iters=6)
    angles = 2 * np.pi * np.arange(128) / 128
    waves = np.exp(-1j * angles[:, None] * np.arange(3))
    symbols = np.einsum("fs,gt,stio->fgio", waves, waves, kernel.astype(np.float64))
    supremum = oracles.singular_values(symbols).max()
    assert float(lower) <= supremum <= float(upper) <= 1.02 * float(lower)


@pytest.mark.few(1)
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((0, 2), (1, 0)), ((3, 3), (2, 5))])
@pytest.mark.parametrize("strides", [1, 2])
def test_uneven_padding(pads, strides):
    kernels = RNG.normal(size=(6, 3, 2, 2, 3)).astype(np.float32)
    for kernel in kernels:
        matrix = oracles.conv_matrix(kernel, 5, padding=list(pads), strides=strides)
        truth = oracles.norm(matrix)
        lower, upper = conv_enclosure(kernel, padding=pads, input_size=5, strides=strides)
        assert float(lower) <= truth <= float(upper) <= 2 * truth
    nothing = conv_enclosure(jnp.ones((5, 1, 1)), padding=((0, 0),), input_size=3, strides=2)
    assert float(nothing.lower) == 0 and float(nothing.upper) >= 0
    with pytest.raises(ValueError, match="padding is .*2 pairs"):
        conv_enclosure(kernel, padding=((1, 1),), input_size=5)
