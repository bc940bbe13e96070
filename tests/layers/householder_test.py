"""Products of reflections: the compact form against the product written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import householder
from tests import oracles

RNG = np.random.default_rng(0)


def product(vectors):
    size = len(vectors)
    total = np.eye(size)
    for v in np.float64(vectors).T:
        if v.any():
            total = total @ (np.eye(size) - 2 * np.outer(v, v) / (v @ v))
    return total


@pytest.mark.parametrize("shape,count", [((6, 6), 6), ((7, 4), 3), ((4, 7), 9), ((5, 5), 1)])
def test_equals_the_product(shape, count):
    params = householder.init_dense(jax.random.key(0), *shape, num_reflections=count)
    params = params._replace(kernel=params.kernel.at[:, 0].multiply(1e20).at[:, -1].multiply(1e-20))
    expected = product(params.kernel)[: shape[0], : shape[1]]
    np.testing.assert_allclose(householder.constrain_dense(params).kernel, expected, atol=1e-5)


def test_zero_vectors_reflect_nothing_with_finite_gradients():
    params = householder.init_dense(jax.random.key(0), 5, 5, num_reflections=3)
    zeroed = params._replace(kernel=params.kernel.at[:, 1].set(0))
    np.testing.assert_allclose(
        householder.constrain_dense(zeroed).kernel, product(zeroed.kernel), atol=1e-5
    )
    for kernel in (zeroed.kernel, jnp.zeros((5, 3))):
        slope = jax.grad(
            lambda k: householder.constrain_dense(params._replace(kernel=k)).kernel[0, 1]
        )
        assert np.isfinite(slope(kernel)).all()
    assert (
        householder.constrain_dense(params._replace(kernel=jnp.zeros((5, 3)))).kernel == jnp.eye(5)
    ).all()


@pytest.mark.parametrize("size", [64, 256])
def test_many_random_reflections_keep_norms(size):
    """Without the last step the rounding of the triangular factor makes 1.00016 of 256."""
    weights = householder.constrain_dense(householder.init_dense(jax.random.key(0), size, size))
    values = oracles.singular_values(weights.kernel)
    np.testing.assert_allclose(values, 1, atol=2e-6)


def test_determinant_is_the_parity_of_the_reflections():
    for count in (1, 2, 3):
        params = householder.init_dense(jax.random.key(0), 4, 4, num_reflections=count)
        kernel = np.float64(householder.constrain_dense(params).kernel)
        assert abs(np.linalg.det(kernel) - (-1) ** count) < 1e-5


def test_negative_control_without_normalization_it_is_not_orthogonal():
    v = RNG.normal(size=(5, 2))
    wrong = np.eye(5)
    for column in v.T:
        wrong = wrong @ (np.eye(5) - 2 * np.outer(column, column))
    assert np.linalg.norm(wrong, 2) > 2


def test_the_triangular_factor_is_solved_for_also_where_its_inverse_is_large():
    """Inverted in halves, by products, it loses 3e-4 of a norm here, and 1e-2 of a gradient."""
    size = 200
    vectors = np.diag(0.9 ** np.arange(size)) @ (
        np.eye(size) - 0.43 * np.triu(np.ones((size, size)), 1)
    )

    def made(kernel):
        params = householder.Params(kernel, jnp.zeros(size), jnp.zeros((size, 0)))
        return householder.constrain_dense(params).kernel

    kernel = np.asarray(made(jnp.asarray(vectors, jnp.float32)))
    values = np.linalg.svd(np.float64(kernel), compute_uv=False)
    assert 1 - 4e-6 < values[-1] and values[0] < 1 + 4e-6
    with jax.enable_x64(True):
        exact = np.asarray(made(jnp.asarray(np.float64(np.float32(vectors)))))
    assert np.linalg.norm(kernel - exact, 2) < 2e-3  # of float32 products, by the processor
