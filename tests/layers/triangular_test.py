"""QR and Cholesky: against NumPy, with derivatives that stay finite where the factor is singular."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lipjax.layers import triangular
from tests import oracles

RNG = np.random.default_rng(0)


def params(matrix):
    matrix = jnp.asarray(matrix)
    return triangular.Params(matrix, jnp.zeros(matrix.shape[1], matrix.dtype))


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_qr_has_a_positive_diagonal(shape):
    matrix = RNG.normal(size=shape).astype(np.float32)
    q, r = np.linalg.qr(np.float64(matrix if shape[0] >= shape[1] else matrix.T))
    q = q * np.sign(np.diagonal(r))
    expected = q if shape[0] >= shape[1] else q.T
    kernel = triangular.constrain_dense(params(matrix)).kernel
    np.testing.assert_allclose(kernel, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["qr", "cholesky"])
def test_derivatives(method):
    with jax.enable_x64(True):
        matrix = jnp.asarray(RNG.normal(size=(6, 4)))
        fn = jax.tree_util.Partial(
            lambda w: triangular.constrain_dense(params(w), method=method).kernel
        )
        check_grads(fn, (matrix,), order=1, modes=("fwd", "rev"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qr", "cholesky"])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_second_derivatives(method, shape):
    def loss(w):
        return (triangular.constrain_dense(params(w), method=method).kernel ** 3).sum()

    with jax.enable_x64(True):
        matrix, along = jnp.asarray(RNG.normal(size=(2, *shape)))
        turned = jax.jit(jax.grad(lambda w: jnp.vdot(jax.grad(loss)(w), along)))(matrix)
        ahead, behind = (jax.grad(loss)(matrix + step * along) for step in (1e-5, -1e-5))
        np.testing.assert_allclose(turned, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-5)
        twice = jax.jacrev(jax.jacrev(loss))(matrix)
        np.testing.assert_allclose(jnp.tensordot(twice, along, 2), turned, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["qr", "cholesky"])
@pytest.mark.parametrize("case", ["zero", "rank one", "zero column", "repeated column"])
def test_singular_kernels(method, case):
    base = RNG.normal(size=(6, 4)).astype(np.float32)
    matrix = {
        "zero": 0 * base,
        "rank one": np.outer(base[:, 0], base[0]),
        "zero column": base * [1, 0, 1, 1],
        "repeated column": base[:, [0, 1, 1, 2]],
    }[case].astype(np.float32)
    weights = triangular.constrain_dense(params(matrix), method=method)
    assert oracles.norm(weights.kernel) <= 1 + 1e-6
    if method == "qr":  # no column is lost, whatever the sign of a zero
        np.testing.assert_allclose(weights.kernel.T @ weights.kernel, np.eye(4), atol=1e-5)
    slope = jax.grad(lambda w: triangular.constrain_dense(params(w), method=method).kernel.sum())
    assert np.isfinite(slope(jnp.asarray(matrix))).all()


@pytest.mark.parametrize("shape", [(1024, 1024), (512, 1024)])
def test_qr_of_a_thousand_columns_does_not_expand(shape):
    """The rounding of the factorization alone is 1.2e-5 there."""
    weights = triangular.constrain_dense(params(np.ones(shape, np.float32)))
    assert oracles.norm(weights.kernel) <= 1 + 1e-5


def test_cholesky_contracts_by_its_epsilon():
    matrix = RNG.normal(size=(6, 4))
    gram = matrix.T @ matrix
    eps = triangular.EPS * np.trace(gram) / 4
    values = np.linalg.eigvalsh(gram)
    expected = np.sqrt(values / (values + eps))
    kernel = triangular.constrain_dense(params(np.float32(matrix)), method="cholesky").kernel
    np.testing.assert_allclose(np.sort(oracles.singular_values(kernel)), expected, atol=1e-5)
    assert expected.max() < 1


def test_unknown_methods_are_named():
    with pytest.raises(ValueError, match="method is 'lu'"):
        triangular.constrain_dense(params(np.eye(2, dtype=np.float32)), method="lu")
