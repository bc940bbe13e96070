"""The normalized head: unit columns, and a bound for all logits together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import head
from tests import oracles


def test_columns_have_norm_one_and_zero_stays():
    params = head.init_dense(jax.random.key(0), 6, 4)
    params = params._replace(kernel=params.kernel.at[:, 2].set(0))
    for weights in (head.constrain_dense(params), head.freeze_dense(params)):
        norms = np.linalg.norm(np.float64(weights.kernel), axis=0)
        np.testing.assert_allclose(norms, [1, 1, 0, 1], atol=1e-6)
    gradient = jax.grad(lambda p: head.constrain_dense(p).kernel.sum())(params)
    assert np.isfinite(gradient.kernel).all()


def test_the_map_to_all_logits_expands_and_the_bound_says_so():
    kernel = jnp.ones((1, 5))
    weights = head.constrain_dense(head.Params(kernel, jnp.zeros(5)))
    bound = head.bound(weights)
    assert np.sqrt(5) * (1 - 1e-6) <= oracles.norm(weights.kernel) <= bound.value < 2.25
    assert bound.kind == "upper"


@pytest.mark.parametrize("size", [1e-37, 1e30, 1e38])
def test_columns_of_any_size_are_divided(size):
    params = head.Params(jnp.full((4, 3), size, jnp.float32), jnp.zeros(3))
    np.testing.assert_allclose(head.constrain_dense(params).kernel, 0.5, rtol=1e-6)
    np.testing.assert_allclose(head.freeze_dense(params).kernel, 0.5, rtol=1e-6)
    slope = jax.grad(lambda p: head.constrain_dense(p).kernel[0, 0])(params).kernel
    assert np.isfinite(slope).all()
