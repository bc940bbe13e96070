"""Convolutions of 3 x 3 by tiles: the numbers, their rounding, and every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from lipjax import spectral
from lipjax.layers import _convolution, _winograd
from tests.layers.narrow_test import _arrays, _plain, _plain_adjoint, check_derivatives

WINDOW = _winograd.WINDOW
SIZES = [(8, 8), (9, 10), (7, 12), (11, 13), (3, 40), (1, 1), (2, 5)]
PAID = [(12, 12), (9, 10), (7, 15)]


@pytest.mark.few(2)
@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_sums_are_those_of_the_convolution_and_its_adjoint(key, size, padding):
    x, y, kernel = _arrays(key, size, WINDOW, 5, 6)
    found = _winograd.convolved(x, kernel, padding)
    np.testing.assert_allclose(found, _plain(x, kernel, padding), atol=1e-5)
    np.testing.assert_allclose(
        _winograd.adjoint(y, kernel, padding), _plain_adjoint(y, kernel, padding), atol=1e-5
    )
    if min(size) > 2:  # negative controls: the other padding, and taps of the axes exchanged
        other = {"zero": "circular", "circular": "zero"}[padding]
        assert jnp.abs(found - _plain(x, kernel, other)).max() > 0.1
        turned = _winograd.convolved(x, jnp.swapaxes(kernel, 0, 1), padding)
        assert jnp.abs(turned - found).max() > 0.1


@pytest.mark.few(2)
@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("size", PAID, ids=str)
def test_derivatives_are_those_of_the_convolution(key, size, padding):
    x, y, kernel = _arrays(key, size, WINDOW, 24, 25)
    assert _winograd.pays(x, kernel) and _winograd.pays(y, kernel)
    check_derivatives(x, y, kernel, padding, atol=2e-4)  # of gradients up to 30


def test_rounding_is_about_that_of_a_plain_convolution(key, monkeypatch):
    x, _, kernel = _arrays(key, (32, 32), WINDOW, 48, 48)
    with jax.enable_x64(True):
        exact = np.asarray(_plain(x.astype(jnp.float64), kernel.astype(jnp.float64), "zero"))

    def error(values):
        return np.linalg.norm(np.asarray(values, np.float64) - exact) / np.linalg.norm(exact)

    ours, plain = error(_winograd.convolved(x, kernel, "zero")), error(_plain(x, kernel, "zero"))
    assert ours <= min(3.5 * plain, 1e-6)
    usual = _winograd._matrices((0.0, 1.0, -1.0, 2.0, -2.0))
    for name, matrix in zip(("_INPUT", "_FILTER", "_OUTPUT"), usual):
        monkeypatch.setattr(_winograd, name, matrix)
    usual = _winograd.convolved.__wrapped__(x, kernel, "zero")
    assert error(usual) > 1.5 * ours  # negative control


def test_isometries_keep_lengths(key):
    """What the proofs of orthogonal layers rest on: the Jacobian under differentiation has norm 1."""
    turn = jnp.linalg.qr(jax.random.normal(key, (32, 32)))[0]
    kernel = jnp.zeros((*WINDOW, 32, 32)).at[0, 2].set(turn)
    x = jax.random.normal(key, (2, 12, 12, 32))
    convolve = functools.partial(_convolution.convolve, kernel=kernel, padding="circular")
    y, pull = jax.vjp(convolve, x)
    _, push = jax.linearize(convolve, x)
    length = np.linalg.norm(np.float64(x))
    for moved in (y, push(x), *pull(x)):
        assert abs(np.linalg.norm(np.float64(moved)) / length - 1) < 5e-7
    np.testing.assert_allclose(pull(y)[0], x, atol=5e-5)


@pytest.mark.slow
def test_second_derivatives_and_batches(key):
    x, _, kernel = _arrays(key, (12, 12), WINDOW, 24, 24)

    def loss(convolve, adjoint):
        return lambda k: jnp.sum(jnp.square(x - adjoint(jnp.tanh(convolve(x, k)), k)))

    ours = loss(_convolution.convolve, lambda y, k: _convolution.adjoint(y, k, x))
    plain = loss(
        functools.partial(_plain, padding="zero"), functools.partial(_plain_adjoint, padding="zero")
    )
    v = jnp.sin(kernel) / 10
    forward, backward = [], []
    for f in (ours, plain):
        gradient = jax.grad(f)
        forward.append(jax.jit(lambda k, g=gradient: jax.jvp(g, (k,), (v,))[1])(kernel))
        backward.append(jax.jit(jax.grad(lambda k, g=gradient: jnp.vdot(g(k), v)))(kernel))
    for got, want in (forward, backward):
        np.testing.assert_allclose(got, want, atol=1e-2, rtol=1e-3)
    kernels = jnp.stack([kernel, -2 * kernel])
    looped = jnp.stack([jax.grad(ours)(k) for k in kernels])
    np.testing.assert_allclose(jax.vmap(jax.grad(ours))(kernels), looped, atol=2e-2, rtol=1e-4)
    images = jax.vmap(jax.grad(lambda x: jnp.sum(jnp.sin(_convolution.convolve(x, kernel)))))
    together = jax.grad(lambda x: jnp.sum(jnp.sin(_plain(x, kernel, "zero"))))
    np.testing.assert_allclose(images(x), together(x), atol=1e-5)
    empty = jax.grad(lambda k: jnp.sum(_convolution.convolve(x[:0], k)))(kernel)
    np.testing.assert_array_equal(empty, 0)


def test_programs_of_gradients_on_cpus_hold_no_convolution(key, monkeypatch):
    x, _, kernel = _arrays(key, (12, 12), WINDOW, 24, 24)

    def program():
        loss = lambda x, k: jnp.sum(jnp.square(_convolution.convolve(x, k)))  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1)))

    assert program().lower(x, kernel).compile().as_text().count(" convolution(") == 0
    exported = jax.export.export(program(), platforms=("cuda",))(x, kernel)
    assert exported.mlir_module().count("stablehlo.convolution") == 3
    monkeypatch.setattr(_winograd, "pays", lambda x, kernel: False)  # negative control
    assert program().lower(x, kernel).compile().as_text().count(" convolution(") >= 2


def test_values_alone_are_a_plain_convolution(key):
    """The program that is evaluated, certified and exported is not another one."""
    x, _, kernel = _arrays(key, (12, 12), WINDOW, 24, 24)
    np.testing.assert_array_equal(
        jax.jit(_convolution.convolve)(x, kernel),
        jax.jit(_plain, static_argnums=2)(x, kernel, "zero"),
    )
    bound = spectral.network_bound(lambda x: _convolution.convolve(x, kernel), x[:1])
    exact = spectral.conv_spectral_norm(kernel, padding="zero", input_size=(12, 12))
    assert exact <= bound.value <= 1.2 * exact


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
def test_on_meshes(key, explicit):
    x, _, kernel = _arrays(key, (16, 16), WINDOW, 24, 24)
    x = jnp.concatenate([x] * 4)

    def loss(x, kernel):
        return jnp.sum(jnp.sin(_convolution.adjoint(_convolution.convolve(x, kernel), kernel, x)))

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    expected = gradient(x, kernel)
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, P("data")), jax.device_put(kernel, P())
        found = [gradient(*placed)]
    if not explicit:
        shared = jax.shard_map(
            lambda x, k: lax.psum(loss(x, k), "data"),
            mesh=mesh,
            in_specs=(P("data"), P()),
            out_specs=P(),
        )
        found.append(jax.jit(jax.grad(shared, (0, 1)))(x, kernel))
    for got in found:
        for g, w in zip(got, expected):
            np.testing.assert_allclose(g, w, atol=5e-4, rtol=1e-4)


def _split_by_height(spec):
    """The gradient for a kernel of 8 channels, too few for tiles, and what it is on one device."""
    x, _, kernel = _arrays(jax.random.key(0), (16, 16), WINDOW, 8, 8)
    gradient = jax.grad(lambda k, x: jnp.sum(jnp.sin(_convolution.convolve(x, k))))
    expected = jax.jit(gradient)(kernel, x)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(kernel, P()), jax.device_put(x, spec)
        return jax.jit(gradient)(*placed), expected


def test_parts_of_images_without_copies():
    found, expected = _split_by_height(P("b", "a"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_xla_counts_the_copies_of_parts_of_images():
    """What README warns of. When this fails, XLA does so no longer, and README need not say it."""
    found, expected = _split_by_height(P(None, "a"))
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-4, atol=1e-4)


@pytest.mark.every
@pytest.mark.parametrize(
    "images,kernel,found",
    [
        ((32, 32, 32, 45), (3, 3, 45, 45), True),
        ((1, 16, 16, 24), (3, 3, 24, 64), True),
        ((1, 8, 8, 24), (3, 3, 24, 64), False),  # 4 tiles
        ((128, 2, 2, 24), (3, 3, 24, 64), False),  # a quarter of each tile
        ((32, 1, 32, 24), (3, 3, 24, 24), False),
        ((32, 32, 32, 3), (3, 3, 3, 45), False),
        ((32, 32, 32, 45), (3, 3, 45, 5), False),
        ((32, 32, 32, 45), (5, 5, 45, 45), False),
        ((32, 32, 45), (3, 45, 45), False),
        ((0, 32, 32, 45), (3, 3, 45, 45), False),
    ],
)
def test_where_it_is_faster(images, kernel, found):
    assert _winograd.pays(jnp.zeros(images), np.zeros(kernel)) is found


def test_a_gradient_is_exported_for_any_batch(key):
    _, _, kernel = _arrays(key, (8, 8), WINDOW, 24, 24)
    gradient = jax.jit(
        jax.grad(lambda k, x: jnp.sum(jnp.sin(_convolution.convolve(x, k, padding="circular"))))
    )
    (batch,) = jax.export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, 8, 8, 24), jnp.float32)
    exported = jax.export.export(gradient)(kernel, shape)
    x = jax.random.normal(key, (5, 8, 8, 24))
    np.testing.assert_allclose(exported.call(kernel, x), gradient(kernel, x), atol=1e-4)
