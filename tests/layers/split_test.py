"""Gradients for kernels with the taps shared between input and output, under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from lipjax import spectral
from lipjax.layers import _convolution, _narrow, _split
from tests.layers.narrow_test import _arrays, _plain, _plain_adjoint, check_derivatives

GEOMETRIES = [
    ((5,), (3,), 24, 25),
    ((4, 7), (3, 3), 24, 24),
    ((3, 5), (2, 4), 30, 24),  # even windows reach further on one side
    ((2, 3), (5, 7), 24, 26),  # wider than the image
    ((3, 2, 3), (1, 3, 2), 25, 24),
]


@pytest.mark.few(2)
@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_sums_are_those_of_the_convolution_and_its_adjoint(key, geometry, padding):
    x, y, kernel = _arrays(key, *geometry)
    assert _split.pays(x, kernel) and not _narrow.is_narrow(kernel)
    np.testing.assert_allclose(
        _split.convolved(x, kernel, padding), _plain(x, kernel, padding), atol=2e-5
    )
    np.testing.assert_allclose(
        _split.adjoint(y, kernel, padding), _plain_adjoint(y, kernel, padding), atol=2e-5
    )
    # Negative control: taps of the two axes in each other's place.
    if padding == "circular" and len(kernel.shape) == 4 and kernel.shape[0] == kernel.shape[1]:
        turned = _split.convolved(x, jnp.swapaxes(kernel, 0, 1), padding)
        assert jnp.abs(turned - _plain(x, kernel, padding)).max() > 0.1


@pytest.mark.few(2)
@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_derivatives_are_those_of_the_convolution(key, geometry, padding):
    check_derivatives(*_arrays(key, *geometry), padding, atol=5e-5)


@pytest.mark.slow
def test_second_derivatives_and_batches(key):
    x, _, kernel = _arrays(key, (3, 4), (2, 2), 24, 24)

    def loss(convolve, adjoint):
        return lambda k: jnp.sum(jnp.square(x - adjoint(jnp.tanh(convolve(x, k)), k)))

    ours = loss(_convolution.convolve, lambda y, k: _convolution.adjoint(y, k, x))
    plain = loss(
        functools.partial(_plain, padding="zero"), functools.partial(_plain_adjoint, padding="zero")
    )
    v = jnp.sin(kernel)
    forward, backward = [], []
    for f in (ours, plain):
        gradient = jax.grad(f)
        forward.append(jax.jvp(gradient, (kernel,), (v,))[1])
        backward.append(jax.grad(lambda k, g=gradient: jnp.vdot(g(k), v))(kernel))
    for got, want in (forward, backward):
        np.testing.assert_allclose(got, want, atol=2e-3, rtol=1e-4)
    kernels = jnp.stack([kernel, -2 * kernel])
    looped = jnp.stack([jax.grad(ours)(k) for k in kernels])
    np.testing.assert_allclose(jax.vmap(jax.grad(ours))(kernels), looped, atol=1e-3, rtol=1e-5)
    empty = jax.grad(lambda k: jnp.sum(_convolution.convolve(x[:0], k)))(kernel)
    np.testing.assert_array_equal(empty, 0)


def test_programs_of_gradients_on_cpus_hold_no_slow_convolution(key, monkeypatch):
    x, _, kernel = _arrays(key, (8, 8), (3, 3), 24, 24)

    def program():
        loss = lambda k: jnp.sum(jnp.square(_convolution.convolve(x, k)))  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(kernel)

    assert program().compile().as_text().count(" convolution(") == 1  # the forward pass
    monkeypatch.setattr(_split, "pays", lambda x, kernel: False)
    assert program().compile().as_text().count(" convolution(") == 2  # negative control


@pytest.mark.slow
def test_inside_shard_map_and_for_network_bounds(key):
    x, _, kernel = _arrays(key, (4, 4), (3, 3), 24, 24)
    x = jnp.concatenate([x] * 4)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(_convolution.adjoint(_convolution.convolve(x, kernel), kernel, x)))

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shared = jax.shard_map(
        lambda x, k: lax.psum(loss(x, k), "data"),
        mesh=mesh,
        in_specs=(P("data"), P()),
        out_specs=P(),
    )
    gradients = (jax.jit(jax.grad(f, (0, 1)))(x, kernel) for f in (shared, loss))
    for got, want in zip(*gradients):
        np.testing.assert_allclose(got, want, atol=2e-4)
    bound = spectral.network_bound(lambda x: _convolution.convolve(x, kernel), x[:1])
    exact = spectral.conv_spectral_norm(kernel, padding="zero", input_size=(4, 4))
    assert exact <= bound.value <= 1.2 * exact


@pytest.mark.every
@pytest.mark.parametrize(
    "shape,found",
    [
        ((3, 3, 45, 45), True),
        ((1, 1, 45, 45), False),  # a product already
        ((3, 3, 3, 45), False),
        ((3, 3, 45, 5), False),
    ],
)
def test_where_it_is_faster(shape, found):
    x = jnp.zeros((2, 8, 8, shape[2]))
    assert _split.pays(x, np.zeros(shape)) is found


def test_on_meshes_with_explicit_axes(key):
    x, _, kernel = _arrays(key, (4, 4), (3, 3), 24, 24)
    x = jnp.concatenate([x] * 4)
    gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(_convolution.convolve(x, k))), (0, 1))
    expected = jax.jit(gradient)(x, kernel)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, P("data")), jax.device_put(kernel, P())
        found = jax.jit(gradient)(*placed)
    for got, want in zip(found, expected):
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("count,together", [(6, 3), (7, 7), (1, 1)])
def test_small_images_share_a_product(key, count, together):
    """No product of the gradient has more entries than the copies."""
    x, _, kernel = _arrays(key, (5, 6), (3, 3), 24, 24)
    x = jnp.concatenate([x] * count)[:count]
    loss = lambda f: jax.jit(jax.grad(lambda k: jnp.sum(jnp.sin(f(x, k)))))  # noqa: E731
    program = str(loss(lambda x, k: _split.convolved(x, k, "zero")).trace(kernel).jaxpr)
    assert f"f32[{count // together},72,72]" in program
    np.testing.assert_allclose(
        loss(_convolution.convolve)(kernel),
        loss(lambda x, k: _plain(x, k, "zero"))(kernel),
        rtol=1e-5,
        atol=5e-5,
    )


def test_a_gradient_is_exported_for_any_batch(key):
    _, _, kernel = _arrays(key, (4, 4), (3, 3), 24, 24)
    gradient = jax.jit(
        jax.grad(lambda k, x: jnp.sum(jnp.sin(_convolution.convolve(x, k, padding="circular"))))
    )
    (batch,) = jax.export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, 4, 4, 24), jnp.float32)
    exported = jax.export.export(gradient)(kernel, shape)
    x = jax.random.normal(key, (3, 4, 4, 24))
    np.testing.assert_allclose(exported.call(kernel, x), gradient(kernel, x), atol=1e-4)
