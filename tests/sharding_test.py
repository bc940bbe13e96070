"""Sharded in, sharded out: batches and stacks over 8 emulated devices give the same numbers."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lipjax import attacks
from lipjax.spectral import (
    conv_enclosure,
    conv_gram_iteration,
    gram_iteration,
    network_bound,
    power_iteration,
)
from tests import families


@pytest.fixture(scope="module")
def mesh():
    assert len(jax.devices()) == 8
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.few(1)
@pytest.mark.parametrize("layer", families.one_in_three(families.LAYERS))
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


@pytest.mark.few(2)
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


def shard_mapped(fn, mesh, *args):
    """`fn` on each device's part of the leading axis, with JAX's check of what varies on."""
    fn = jax.shard_map(fn, mesh=mesh, in_specs=(P("data"),) * len(args), out_specs=P("data"))
    return jax.jit(fn)(*args)


ONE_OF_EACH_KIND = (
    "sll_conv",
    "aol_conv",
    "bjorck_residual",
    "skew_conv",
    "cayley_conv",
    "sandwich_conv",
)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "layer", families.by_name([row for row in families.LAYERS if row.name in ONE_OF_EACH_KIND])
)
def test_layers_inside_shard_map(layer, mesh):
    weights = layer.constrain(layer.init(jax.random.key(0)))
    x = np.random.default_rng(0).normal(size=(16, *layer.shape)).astype(np.float32)
    got = shard_mapped(lambda x: layer.apply(weights, x), mesh, x)
    np.testing.assert_allclose(got, layer.apply(weights, x), atol=1e-5)


ADAPTIVE = {
    "gram_iteration": ((5, 4), lambda w: gram_iteration(w, num_iters="auto")),
    "power_iteration": ((5, 4), lambda w: power_iteration(jax.random.key(0), w)),
    "conv_gram_iteration": (
        (3, 3, 2, 2),
        lambda k: conv_gram_iteration(k, padding="any", num_iters="auto"),
    ),
    "conv_enclosure": (
        (3, 3, 2, 2),
        lambda k: conv_enclosure(k, padding="zero", input_size=5).lower,
    ),
    "network_bound": (
        (5, 4),
        lambda w: network_bound(lambda x: jax.nn.relu(x @ w), np.ones((1, 5), np.float32)).value,
    ),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_loops_of_unknown_length_inside_shard_map(name, mesh):
    shape, fn = ADAPTIVE[name]
    arrays = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    got = shard_mapped(lambda part: fn(part[0])[None], mesh, arrays)
    expected = [fn(array) for array in arrays]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_attacks_inside_shard_map(mesh):
    weights = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(16, 6)).astype(np.float32)
    label = np.argmax(x @ weights, -1)
    key = jax.random.key(0)

    def attacked(x, label):
        found = attacks.pgd(
            key, lambda x: x @ weights, x, label, eps=1.0, num_steps=5, num_restarts=2
        )
        options = dict(num_steps=3, num_bisections=2, max_eps=5.0)
        nearest = attacks.minimal_distance(key, lambda x: x @ weights, x, label, **options)
        fn = attacks.lipschitz_lower_bound
        return found.distance, nearest, fn(key, lambda x: x @ weights, x).value[None]

    distance, nearest, lower = shard_mapped(attacked, mesh, x, label)
    assert distance.shape == nearest.shape == (16,) and lower.shape == (8,)
    assert (
        np.isfinite(nearest).sum() > 8 and (lower <= np.linalg.norm(weights, 2) * (1 + 1e-5)).all()
    )


def test_steps_with_micro_batches_inside_shard_map(mesh):
    import optax

    from lipjax import training

    def loss_fn(w, batch, key):
        return ((batch @ w) ** 2).mean(), {}

    update = training.make_update(loss_fn, optax.sgd(0.1), num_microbatches=2)
    state = training.init_state(jax.random.key(0), np.ones((3, 1), np.float32), optax.sgd(0.1))
    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    got = shard_mapped(lambda x: update(state, x)[1]["loss"][None], mesh, x)
    expected = [((part @ np.ones((3, 1))) ** 2).mean() for part in x.reshape(8, 4, 3)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_explicit_meshes_by_way_of_auto_axes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    arrays = np.random.default_rng(0).normal(size=(8, 5, 4)).astype(np.float32)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(arrays, NamedSharding(mesh, P("data")))
        fn = jax.sharding.auto_axes(
            lambda w: gram_iteration(w, num_iters="auto"), out_sharding=P("data")
        )
        got = jax.jit(fn)(sharded)
        assert got.sharding.spec == P("data")
    np.testing.assert_allclose(got, gram_iteration(arrays, num_iters="auto"), rtol=1e-5)
