"""Packed Hermitian products: what they compute, and that their proved rounding covers the error."""

import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.spectral._products import apply, first_product, square

RNG = np.random.default_rng(0)


def unpacked(packed):
    packed = np.float64(packed)
    flipped = np.swapaxes(packed, -1, -2)
    return (packed + flipped) / 2 + 0.5j * (packed - flipped)


def packed_matrices(size):
    """Hermitian ones: positive, indefinite, purely imaginary, of very different entries."""
    a = RNG.normal(size=(size, size)) + 1j * RNG.normal(size=(size, size))
    graded = a * np.logspace(0, -6, size)
    hermitian = [
        a.conj().T @ a / size,
        a + a.conj().T,
        1j * (a.imag - a.imag.T),
        graded + graded.conj().T,
    ]
    return jnp.asarray(np.stack([x.real + x.imag for x in hermitian]), jnp.float32)


@pytest.mark.parametrize("size", [1, 2, 17, 130])
def test_the_square_of_a_packed_matrix_and_its_rounding(size):
    packed = packed_matrices(size)
    scale = jnp.full(len(packed), 4.0)
    found, error = square(packed, scale, True)
    exact = unpacked(packed) / 4
    distance = np.linalg.norm(unpacked(found) - exact @ exact, axis=(1, 2))
    size_squared = np.linalg.norm(exact, axis=(1, 2)) ** 2
    assert (distance <= np.float64(error)).all()
    assert (np.float64(error) <= 3.1 * (size + 14) * 2.0**-24 * size_squared).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 20), (300, 7)])
def test_the_first_product_and_its_rounding(shape):
    re, im = (jnp.asarray(RNG.normal(size=(3, *shape)), jnp.float32) for _ in range(2))
    found, error = first_product(re, im)
    exact = np.float64(re) + 1j * np.float64(im)
    gram = np.swapaxes(exact.conj(), 1, 2) @ exact
    distance = np.linalg.norm(unpacked(found) - gram, axis=(1, 2))
    frobenius = np.linalg.norm(exact, axis=(1, 2)) ** 2
    assert (distance <= np.float64(error)).all()
    assert (np.float64(error) <= 1.6 * (min(shape[0], 128) + 18) * 2.0**-24 * frobenius).all()


def test_a_packed_matrix_times_a_vector():
    packed = packed_matrices(20)
    v = jnp.asarray(RNG.normal(size=(len(packed), 20, 2)), jnp.float32)
    found = np.asarray(apply(packed, v, True))
    exact = unpacked(packed) @ (np.float64(v[..., :1]) + 1j * np.float64(v[..., 1:]))
    np.testing.assert_allclose(found[..., :1] + 1j * found[..., 1:], exact, rtol=1e-4, atol=1e-4)
