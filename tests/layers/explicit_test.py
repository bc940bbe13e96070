"""What contractions share: derivatives with fewer products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lipjax.layers import _explicit, bjorck, cayley, reflector, triangular

RNG = np.random.default_rng(0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_derivatives_of_what_is_whitened(dtype):
    with jax.enable_x64(True):
        v = jnp.asarray(RNG.normal(size=(2, 5, 3, 2)).astype(np.float64).view(dtype)[..., 0])
        assert v.dtype == dtype
        fn = jax.tree_util.Partial(lambda v: _explicit.whitened(v, 0.1))
        check_grads(fn, (v,), order=2, modes=("fwd", "rev"))
        for made in (_explicit.gram, _explicit.gram_of_steps):
            check_grads(jax.tree_util.Partial(made), (v,), order=2, modes=("fwd", "rev"))


def test_a_straightened_isometry_moves_as_by_the_step_itself():
    """Along the orthonormal matrices, as QR moves; not across them, which is why it is for these."""
    with jax.enable_x64(True):
        w, move = jnp.asarray(RNG.normal(size=(2, 6, 4)))
        q, along = jax.jvp(lambda w: triangular._orthonormal(w)[0], (w,), (move,))
        _, by_step = jax.jvp(_explicit.bjorck_step, (q,), (along,))
        _, as_is = jax.jvp(_explicit.straightened, (q,), (along,))
        np.testing.assert_allclose(as_is, by_step, atol=1e-12)
        _, across = jax.jvp(_explicit.bjorck_step, (q,), (q,))
        assert abs(across).max() < 1e-12 < abs(jax.jvp(_explicit.straightened, (q,), (q,))[1]).max()


def test_one_answer_for_a_batch():
    found = jax.vmap(lambda x: _explicit.at_most(x, 2.0))(jnp.array([1.0, 3.0]))
    assert not found.any()
    assert jax.vmap(lambda x: _explicit.at_most(x, 3.0))(jnp.array([1.0, 3.0])).all()


@pytest.mark.parametrize("rows", [7, 32, 33, 1000])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_the_diagonal_of_a_gram_matrix_is_exact_to_the_last_digits(rows, dtype):
    """Sums of squares of one size: rounding always in the same direction adds up in one long sum."""
    w = jnp.full((2, rows, 3), 0.1, jnp.float32).astype(dtype)
    exact = rows * np.float64(np.float32(0.1)) ** 2 * np.ones((2, 3))
    found = np.asarray(jax.jit(_explicit.gram_of_steps)(w)).diagonal(axis1=1, axis2=2)
    assert np.abs(found / exact - 1).max() < 5e-7
    one_by_one = np.float32(0)
    for _ in range(1000):
        one_by_one += np.float32(0.1) ** 2
    assert (
        abs(one_by_one / (1000 * np.float64(np.float32(0.1)) ** 2) - 1) > 5e-6
    )  # negative control
    other = jax.random.normal(jax.random.key(0), (rows, 5)).astype(dtype)
    expected = np.conj(np.asarray(other, complex)).T @ np.asarray(other, complex)
    np.testing.assert_allclose(
        _explicit.gram_of_steps(other), expected, rtol=1e-5, atol=1e-5 * rows**0.5
    )


@pytest.mark.parametrize("module", [triangular, cayley, bjorck, reflector])
def test_a_thousand_numbers_of_one_sign(module):
    """Their sums were off by 1e-5 and more, always to one side, and the norms with them."""
    size = (1000,) if module is reflector else (1000, 32)
    params = module.init_dense(jax.random.key(0), *size)
    staircase = jnp.tril(jnp.ones(params.kernel.shape), -1)
    made = jax.jit(module.constrain_dense)(params._replace(kernel=staircase)).kernel
    assert np.linalg.norm(np.asarray(made, np.float64), 2) <= 1 + 3e-6


@pytest.mark.parametrize("rows,value", [(1000, 1.6), (500, 1.28333)])
@pytest.mark.parametrize("module", [triangular, cayley, bjorck, reflector])
def test_columns_that_are_alike(module, rows, value):
    """A Gram matrix whose diagonal is better than the rest has negative eigenvalues here."""
    size = (rows,) if module is reflector else (rows, 2)
    params = module.init_dense(jax.random.key(0), *size)
    params = params._replace(kernel=jnp.full((rows, 2), value))
    scales = [None]
    if module is cayley:
        scales = [f * jnp.linalg.norm(params.kernel) for f in (1.0, 2.0, 4.0, 6.0, 8.0)]
    for scale in scales:
        params = params if scale is None else params._replace(scale=scale)
        made = jax.jit(module.constrain_dense)(params).kernel
        values = np.linalg.svd(np.asarray(made, np.float64), compute_uv=False)
        assert values.max() <= 1 + 1e-5 and values.min() >= (0 if module is bjorck else 0.999)
