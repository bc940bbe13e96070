"""The references agree with NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.spectral import conv_spectral_norm, spectral_norm
from tests import oracles

RNG = np.random.default_rng(0)


def test_matrices_real_complex_and_batched():
    for matrix in (RNG.normal(size=(7, 4)), RNG.normal(size=(3, 5)) * 1j):
        small = matrix.astype(np.complex64 if np.iscomplexobj(matrix) else np.float32)
        np.testing.assert_allclose(spectral_norm(small), oracles.norm(small), rtol=1e-5)
    batch = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = oracles.singular_values(batch)[..., 0]
    np.testing.assert_allclose(spectral_norm(batch), expected, rtol=1e-5)


def test_degenerate_matrices():
    assert float(spectral_norm(jnp.zeros((3, 2)))) == 0
    assert np.isnan(spectral_norm(jnp.full((2, 2), jnp.nan)))


def test_known_convolutions():
    laplacian = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)[:, :, None, None]
    np.testing.assert_allclose(
        conv_spectral_norm(laplacian, padding="circular", input_size=8), 8, rtol=1e-5
    )
    zero = 4 + 4 * np.cos(np.pi / 9)
    np.testing.assert_allclose(
        conv_spectral_norm(laplacian, padding="zero", input_size=8), zero, rtol=1e-5
    )


def test_bad_padding_is_named():
    with pytest.raises(ValueError, match="padding is 'any'"):
        conv_spectral_norm(jnp.ones((3, 3, 1, 1)), padding="any", input_size=4)
