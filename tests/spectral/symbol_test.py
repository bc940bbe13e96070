"""The computed symbol against float64, and that the proved bound on its rounding covers it."""

import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.spectral._symbol import _symbol, fourier_matrix, frequencies, symbol_error


@pytest.mark.parametrize("window", [(1, 2), (3, 3), (7, 7)])
@pytest.mark.parametrize("channels", [1, 16])
def test_the_rounding_of_the_symbol(window, channels):
    rng = np.random.default_rng(0)
    taps = rng.normal(size=(1, window[0] * window[1], channels, channels)).astype(np.float32)
    cos, sin = fourier_matrix(frequencies((31, 32)), (31, 32), window)
    parts = _symbol(jnp.asarray(taps), *(jnp.asarray(e, jnp.float32) for e in (cos, sin)))
    computed = np.float64(parts[0]) + 1j * np.float64(parts[1])
    exact = np.einsum("ft,gtio->fgio", cos + 1j * sin, np.float64(taps))
    distance = np.linalg.norm(computed - exact, axis=(2, 3)).max()
    error = float(symbol_error(jnp.asarray(taps)))
    assert 0 < distance <= error <= 200 * distance
