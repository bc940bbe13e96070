"""Pooling never expands, and the ones that should keep norms do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lipjax.layers import pooling
from tests import oracles

SHAPE = (4, 6, 2)
EXACT = {
    "average_pool": functools.partial(pooling.average_pool, window=2),
    "space_to_depth": functools.partial(pooling.space_to_depth, window=2),
    "pad_channels": functools.partial(pooling.pad_channels, channels=5),
    "first_channels": functools.partial(pooling.first_channels, channels=1),
    "l2_pool": functools.partial(pooling.l2_pool, window=2),
    "max_pool": functools.partial(pooling.max_pool, window=2),
}


@pytest.mark.parametrize("name", EXACT)
def test_norm_is_exactly_one(name):
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        jacobian = np.asarray(jax.jacobian(EXACT[name])(x)).reshape(-1, x.size)
        np.testing.assert_allclose(oracles.norm(jacobian), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["space_to_depth", "pad_channels"])
def test_isometries(name):
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(EXACT[name](x)), np.linalg.norm(x), rtol=1e-6)


def test_negative_control_overlapping_maxima_expand():
    """Windows that overlap count one entry several times: there is no stride to get wrong."""
    overlapping = lambda x: jnp.stack([x[i : i + 2].max() for i in range(4)])  # noqa: E731
    a, b = jnp.array([1.0, 2, 1, 2, 1]), jnp.array([1.0, 1, 1, 1, 1])
    gap = jnp.linalg.norm(overlapping(a) - overlapping(b))
    assert gap > 1.2 * jnp.linalg.norm(a - b)


def test_order_of_space_to_depth():
    x = jnp.arange(8.0).reshape(2, 2, 2)
    assert pooling.space_to_depth(x, 2)[0, 0].tolist() == list(range(8))


def test_l2_pool_has_a_zero_gradient_at_zero():
    gradient = jax.grad(lambda x: pooling.l2_pool(x, 2).sum())(jnp.zeros(SHAPE))
    assert not np.asarray(gradient).any()


def test_batches():
    x = np.ones((3, *SHAPE), np.float32)
    assert pooling.average_pool(x, 2).shape == (3, 2, 3, 2)


@pytest.mark.parametrize(
    "call,word",
    [
        (lambda x: pooling.average_pool(x, 4), "window is 4"),
        (lambda x: pooling.average_pool(x, 0), "window is 0"),
        (lambda x: pooling.average_pool(x[0], 2), "x has shape"),
        (lambda x: pooling.pad_channels(x, 1), "channels is 1"),
        (lambda x: pooling.first_channels(x, 3), "channels is 3"),
    ],
)
def test_bad_sizes_are_named(call, word):
    with pytest.raises(ValueError, match=word):
        call(jnp.ones(SHAPE))


@pytest.mark.parametrize("name", ["average_pool", "l2_pool", "max_pool", "space_to_depth"])
def test_works_on_a_batch_sharded_over_an_explicit_mesh(name):
    x = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        y = jax.jit(EXACT[name])(sharded)
        jax.jit(jax.grad(lambda x: jnp.square(EXACT[name](x)).sum()))(sharded)
    assert y.sharding.spec[0] == "data"
    np.testing.assert_allclose(y, EXACT[name](x), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e25])
def test_l2_pool_neither_overflows_nor_underflows(scale):
    x = np.float32(scale) * np.ones((2, 2, 1), np.float32)
    np.testing.assert_allclose(pooling.l2_pool(x, 2), 2 * scale, rtol=1e-6)
