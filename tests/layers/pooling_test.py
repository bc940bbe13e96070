"""Pooling never expands, and the ones that should keep norms do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lipjax.layers import pooling
from tests import oracles

SHAPE = (4, 6, 4)
EXACT = {
    "average_pool": functools.partial(pooling.average_pool, window=2),
    "space_to_depth": functools.partial(pooling.space_to_depth, window=2),
    "pad_channels": functools.partial(pooling.pad_channels, channels=5),
    "first_channels": functools.partial(pooling.first_channels, channels=1),
    "l2_pool": functools.partial(pooling.l2_pool, window=2),
    "max_pool": functools.partial(pooling.max_pool, window=2),
    "global_average": pooling.global_average,
    "center": pooling.center,
    "depth_to_space": functools.partial(pooling.depth_to_space, window=2),
    "upsample": functools.partial(pooling.upsample, factor=3),
    "repeat_channels": functools.partial(pooling.repeat_channels, repeats=3),
}


@pytest.mark.parametrize("name", EXACT)
def test_norm_is_exactly_one(name):
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        jacobian = np.asarray(jax.jacobian(EXACT[name])(x)).reshape(-1, x.size)
        np.testing.assert_allclose(oracles.norm(jacobian), 1, atol=1e-6)


def matrix(fn, shape=SHAPE):
    """The linear map, materialised."""
    return np.asarray(jax.jacobian(fn)(jnp.zeros(shape))).reshape(-1, int(np.prod(shape)))


@pytest.mark.parametrize(
    "unscaled, norm",
    [
        (lambda x: pooling.upsample(x, 3) * 3, 3.0),
        (lambda x: jnp.concatenate([x, x, x], -1), 3**0.5),
        (lambda x: x.sum((0, 1)), 24**0.5),
        (lambda x: x.mean((0, 1)), 24**-0.5),  # sound, and a waste
        (lambda x: x + x.mean((0, 1), keepdims=True), 2.0),
    ],
)
def test_negative_control_unscaled_versions_have_another_norm(unscaled, norm):
    np.testing.assert_allclose(oracles.norm(matrix(unscaled)), norm, rtol=1e-6)


@pytest.mark.parametrize("name", ["depth_to_space", "upsample", "repeat_channels"])
def test_all_singular_values_of_isometries_are_one(name):
    values = oracles.singular_values(matrix(EXACT[name]))
    np.testing.assert_allclose(values, 1, atol=1e-6)


def test_center_is_the_orthogonal_projection_onto_mean_zero():
    projection = matrix(pooling.center)
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-6)
    np.testing.assert_allclose(projection, projection.T, atol=1e-6)
    assert np.linalg.matrix_rank(projection) == 24 * 4 - 4
    assert np.abs(pooling.center(jnp.full(SHAPE, 7.0))).max() < 1e-6


def test_depth_to_space_undoes_space_to_depth():
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 5)).astype(np.float32)
    for window in (1, 2):
        deep = pooling.space_to_depth(x, window)
        assert (pooling.depth_to_space(deep, window) == x).all()
    y = np.random.default_rng(0).normal(size=(2, 3, 18)).astype(np.float32)
    assert pooling.depth_to_space(y, 3).shape == (6, 9, 2)
    assert (pooling.space_to_depth(pooling.depth_to_space(y, 3), 3) == y).all()
    by_columns = y.reshape(2, 3, 2, 3, 3).transpose(0, 3, 1, 4, 2).reshape(6, 9, 2)
    assert (pooling.depth_to_space(y, 3) != by_columns).any()  # PyTorch's order of the channels


def test_upsample_is_the_transpose_of_average_pool_and_undone_by_it():
    small = (2, 3, 2)
    up = matrix(lambda x: pooling.upsample(x, 2), small)
    np.testing.assert_allclose(up, matrix(EXACT["average_pool"], (4, 6, 2)).T, atol=1e-7)
    x = np.random.default_rng(0).normal(size=small).astype(np.float32)
    np.testing.assert_allclose(pooling.average_pool(pooling.upsample(x, 2), 2), x, rtol=1e-6)


def test_global_average_is_average_pool_over_everything():
    x = np.random.default_rng(0).normal(size=(6, 6, 2)).astype(np.float32)
    whole = pooling.average_pool(x, 6)[0, 0]
    np.testing.assert_allclose(pooling.global_average(x), whole, rtol=1e-5, atol=1e-6)
    assert pooling.global_average(np.ones((5, *SHAPE), np.float32)).shape == (5, 4)


@pytest.mark.parametrize("name", ["space_to_depth", "pad_channels", "upsample", "repeat_channels"])
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
    assert pooling.average_pool(x, 2).shape == (3, 2, 3, 4)


@pytest.mark.every
@pytest.mark.parametrize(
    "call,word",
    [
        (lambda x: pooling.average_pool(x, 4), "window is 4"),
        (lambda x: pooling.average_pool(x, 0), "window is 0"),
        (lambda x: pooling.average_pool(x[0], 2), "x has shape"),
        (lambda x: pooling.pad_channels(x, 1), "channels is 1"),
        (lambda x: pooling.first_channels(x, 5), "channels is 5"),
        (lambda x: pooling.depth_to_space(x, 3), "window is 3; its square must divide the 4"),
        (lambda x: pooling.depth_to_space(x[0, 0], 1), "x has shape"),
        (lambda x: pooling.upsample(x, 0), "factor is 0"),
        (lambda x: pooling.upsample(x[0], 2), "x has shape"),
        (lambda x: pooling.repeat_channels(x, 1.5), "repeats is 1.5"),
        (lambda x: pooling.global_average(x[0]), "x has shape"),
        (lambda x: pooling.center(x[0]), "x has shape"),
    ],
)
def test_bad_sizes_are_named(call, word):
    with pytest.raises(ValueError, match=word):
        call(jnp.ones(SHAPE))


@pytest.mark.parametrize("name", sorted(set(EXACT) - {"pad_channels", "first_channels"}))
def test_works_on_a_batch_sharded_over_an_explicit_mesh(name):
    x = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        y = jax.jit(EXACT[name])(sharded)
        jax.jit(jax.grad(lambda x: jnp.square(EXACT[name](x)).sum()))(sharded)
    assert y.sharding.spec[0] == "data"
    np.testing.assert_allclose(y, EXACT[name](x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e25])
def test_l2_pool_neither_overflows_nor_underflows(scale):
    x = np.float32(scale) * np.ones((2, 2, 1), np.float32)
    np.testing.assert_allclose(pooling.l2_pool(x, 2), 2 * scale, rtol=1e-6)


ON_IMAGES = {
    "average_pool": (2,), "l2_pool": (2,), "max_pool": (2,), "space_to_depth": (2,),
    "depth_to_space": (1,), "upsample": (2,), "global_average": (), "center": (),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("name", ON_IMAGES)
def test_lists_and_integers_are_arrays_and_others_are_named(name):
    fn, options = getattr(pooling, name), ON_IMAGES[name]
    image = [[[1.0], [2.0]], [[3.0], [4.0]]]
    expected = fn(jnp.asarray(image), *options)
    np.testing.assert_array_equal(fn(image, *options), expected)
    np.testing.assert_allclose(fn(jnp.asarray(image, jnp.int32), *options), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="x is 'image'; it must be an array"):
        fn("image", *options)
    with pytest.raises(ValueError, match="x has shape .*; it must have at least 3 axes"):
        fn(1.0, *options)


@pytest.mark.parametrize("name", ["pad_channels", "first_channels", "repeat_channels"])
def test_numbers_of_channels_are_integers(name):
    fn = getattr(pooling, name)
    named = "repeats" if name == "repeat_channels" else "channels"
    with pytest.raises(ValueError, match=f"{named} is 2.0; it must be an integer"):
        fn(jnp.ones(2), 2.0)
    with pytest.raises(ValueError, match="x has shape .*; it must have at least 1 axes"):
        fn(1.0, 2)
    np.testing.assert_array_equal(fn([1.0, 2.0], 2), fn(jnp.array([1.0, 2.0]), 2))
