"""What contractions share: derivatives with fewer products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lipjax.layers import _explicit, triangular

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_derivatives_of_what_is_whitened(dtype):
    with jax.enable_x64(True):
        v = jnp.asarray(RNG.normal(size=(2, 5, 3, 2)).astype(np.float64).view(dtype)[..., 0])
        assert v.dtype == dtype
        fn = jax.tree_util.Partial(lambda v: _explicit.whitened(v, 0.1))
        check_grads(fn, (v,), order=2, modes=("fwd", "rev"))
        check_grads(jax.tree_util.Partial(_explicit.gram), (v,), order=2, modes=("fwd", "rev"))


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
