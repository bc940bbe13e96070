"""Sharded in, sharded out: batches and stacks over 8 emulated devices give the same numbers."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import families


@pytest.fixture(scope="module")
def mesh():
    assert len(jax.devices()) == 8
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("layer", families.by_name(families.LAYERS))
def test_layers_on_a_sharded_batch(layer, mesh):
    params = layer.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(16, *layer.shape)).astype(np.float32)

    @jax.jit
    def gradient(params, x):
        def loss(params):
            y = layer.apply(layer.constrain(params), x)
            return (y**2).mean(), y

        (_, y), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, y

    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, P()))
    grads, y = gradient(replicated, sharded)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), y.ndim)
    expected_grads, expected = gradient(params, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("row", families.by_name(families.BOUNDS + families.CONTRACTIONS))
def test_bounds_of_a_sharded_stack(row, mesh):
    arrays = families.arrays(row.shape)
    sharded = jax.device_put(arrays, NamedSharding(mesh, P("data")))
    results = jax.jit(jax.vmap(row.fn))(sharded)
    expected = jax.jit(jax.vmap(row.fn))(arrays)
    np.testing.assert_allclose(results, expected, rtol=1e-5, atol=1e-30)


def test_a_gram_matrix_sharded_by_rows_is_still_a_bound(mesh):
    from lipjax.spectral import dominating_diagonal, gram_iteration
    from tests import oracles

    matrix = np.random.default_rng(0).normal(size=(64, 24)).astype(np.float32)
    sharded = jax.device_put(matrix, NamedSharding(mesh, P("data")))
    assert float(gram_iteration(sharded)) >= oracles.norm(matrix)
    t = np.asarray(dominating_diagonal(sharded))
    exact = matrix.astype(np.float64)
    assert oracles.dominates(t, exact.T @ exact) >= -1e-15
