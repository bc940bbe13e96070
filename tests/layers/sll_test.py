"""What is particular to SLL: the weights q act, the step follows the formula, reductions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import aol, cpl, forms, sll
from tests import oracles

RNG = np.random.default_rng(0)


def params(n=12, m=8, q=0.0):
    kernel = RNG.normal(size=(n, m)).astype(np.float32)
    bias = RNG.normal(size=m).astype(np.float32)
    return sll.Params(kernel, bias, np.float32(q) * RNG.normal(size=m).astype(np.float32))


def test_step_is_the_formula():
    p = params(q=0.7)
    gram = np.abs(np.float64(p.kernel).T @ np.float64(p.kernel))
    r = np.exp(np.float64(p.log_q))
    np.testing.assert_allclose(sll.constrain_dense(p).step, 2 / (gram @ r / r), rtol=2e-3)


def test_weights_act_in_convolutions_too():
    p = sll.init_conv(jax.random.key(0), 3, 4)
    moved = p._replace(log_q=jnp.array([1.0, -1.0, 0.5, 0.0]))
    assert not np.allclose(sll.constrain_conv(p).step, sll.constrain_conv(moved).step, rtol=0.05)
    gradient = jax.grad(lambda p: sll.constrain_conv(p).step.sum())(p)
    assert np.abs(gradient.log_q).max() > 1e-3


def test_weights_are_redundant_for_relu_and_not_for_tanh():
    p = params(q=0.5)
    r = np.exp(p.log_q - p.log_q.mean())
    folded = sll.Params(p.kernel * r, p.bias * r, np.zeros_like(p.log_q))
    x = RNG.normal(size=(5, 12)).astype(np.float32)
    a, b = (sll.constrain_dense(q) for q in (p, folded))
    np.testing.assert_allclose(sll.apply_dense(a, x), sll.apply_dense(b, x), atol=5e-3)
    gap = sll.apply_dense(a, x, activation="tanh") - sll.apply_dense(b, x, activation="tanh")
    assert np.abs(gap).max() > 0.02


def test_orthonormal_columns_give_a_reflection():
    kernel = np.linalg.qr(RNG.normal(size=(9, 4)))[0].astype(np.float32)
    weights = sll.constrain_dense(sll.Params(kernel, jnp.full(4, 1e3), jnp.zeros(4)))
    jacobian = jax.jacobian(lambda x: sll.apply_dense(weights, x))(jnp.zeros(9))
    np.testing.assert_allclose(jacobian @ jacobian.T, np.eye(9), atol=2e-3)


def test_perron_weights_give_a_uniform_diagonal():
    kernel = np.abs(RNG.normal(size=(9, 5))).astype(np.float32)
    value, vectors = np.linalg.eigh(np.float64(kernel).T @ np.float64(kernel))
    q = np.log(np.abs(vectors[:, -1])).astype(np.float32)
    step = sll.constrain_dense(sll.Params(kernel, jnp.zeros(5), q)).step
    np.testing.assert_allclose(step, np.full(5, 2 / value[-1]), rtol=2e-3)
    both = cpl.constrain_dense(cpl.Params(kernel, jnp.zeros(5)), num_iters=8)
    np.testing.assert_allclose(step, both.step, rtol=3e-3)


@pytest.mark.parametrize("conv", [False, True])
def test_with_equal_weights_it_is_the_residual_form_of_aol(conv):
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 4, 5) if conv else (9, 5)), jnp.float32)
    kind = "conv" if conv else "dense"
    weights = getattr(sll, f"constrain_{kind}")(sll.Params(kernel, jnp.zeros(5), jnp.zeros(5)))
    contraction = getattr(aol, f"constrain_{kind}")(
        aol.Params(kernel, jnp.zeros(5)), side="output"
    ).kernel
    scaled = kernel * jnp.broadcast_to(jnp.sqrt(weights.step / 2), kernel.shape)
    np.testing.assert_allclose(scaled, contraction, rtol=1e-5, atol=1e-6)
    x = jnp.asarray(RNG.normal(size=(5, 6, 4) if conv else (7, 9)), jnp.float32)
    residual = forms.as_residual(forms.linear(contraction, jnp.zeros(5)))
    np.testing.assert_allclose(
        getattr(sll, f"apply_{kind}")(weights, x),
        getattr(forms, f"residual_{kind}")(residual, x),
        rtol=1e-4,
        atol=1e-5,
    )


def test_pointwise_convolution_is_the_dense_layer():
    p = params(5, 7)
    conv = sll.Params(p.kernel[None, None], p.bias, p.log_q)
    x = RNG.normal(size=(4, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(
        sll.apply_conv(sll.constrain_conv(conv), x),
        sll.apply_dense(sll.constrain_dense(p), x),
        atol=2e-3,
    )


def test_scale_of_the_parameters_does_not_matter():
    p = params()
    scaled = sll.Params(p.kernel * 8, p.bias * 8, p.log_q)
    x = RNG.normal(size=12).astype(np.float32)
    np.testing.assert_allclose(
        sll.apply_dense(sll.constrain_dense(p), x),
        sll.apply_dense(sll.constrain_dense(scaled), x),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_zero_column_is_switched_off_with_finite_gradients():
    p = params()
    p = p._replace(kernel=p.kernel * (np.arange(8) != 3))
    assert sll.constrain_dense(p).step[3] == 0
    gradient = jax.grad(lambda p: sll.apply_dense(sll.constrain_dense(p), jnp.ones(12)).sum())(p)
    assert all(np.isfinite(leaf).all() for leaf in gradient)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_gradients_for_kernels_of_any_scale(scale):
    """The layer is unchanged by a common scale of kernel and bias, so its gradient shrinks by it."""
    p = params()

    def gradient(p):
        loss = lambda p: sll.apply_dense(sll.constrain_dense(p), jnp.ones(12)).sum()  # noqa: E731
        return jax.grad(loss)(p).kernel

    scaled = p._replace(kernel=p.kernel * np.float32(scale), bias=p.bias * np.float32(scale))
    np.testing.assert_allclose(
        gradient(scaled) * scale, gradient(p), rtol=1e-2, atol=1e-3 * np.abs(gradient(p)).max()
    )


def test_published_weights_are_standard_normal():
    init = sll.init_dense(jax.random.key(0), 4, 1000, init="published")
    assert abs(np.mean(init.log_q)) < 0.1 and abs(np.std(init.log_q) - 1) < 0.1
    default = sll.init_dense(jax.random.key(0), 4, 1000)
    assert not default.log_q.any()
    np.testing.assert_array_equal(init.kernel, default.kernel)


@pytest.mark.every
@pytest.mark.parametrize(
    "call,word",
    [
        (lambda key: sll.init_dense(key, 0, 3), "features is 0"),
        (lambda key: sll.init_conv(key, 3, 4, kernel_size=(3, 3, 3)), "kernel_size"),
        (lambda key: sll.init_conv(key, 3, 4, dims=4), "dims is 4"),
        (lambda key: sll.init_conv(key, 3, 4, kernel_size=0), "kernel_size is 0"),
    ],
)
def test_bad_sizes_are_named(call, word):
    with pytest.raises(ValueError, match=word):
        call(jax.random.key(0))


def test_a_kernel_beyond_all_steps_is_switched_off():
    params = sll.Params(jnp.full((4, 3), 1e38), jnp.zeros(3), jnp.zeros(3))
    weights = sll.constrain_dense(params)
    x = jnp.array([1.0, -2.0, 300.0, 0.5])
    np.testing.assert_array_equal(sll.apply_dense(weights, x), x)


def test_parameters_of_numpy_are_taken_as_jax_holds_them():
    rng = np.random.default_rng(0)
    params = sll.Params(rng.normal(size=(4, 3)), np.zeros(3), np.zeros(3))
    assert sll.apply_dense(sll.constrain_dense(params), jnp.ones(4)).shape == (4,)


@pytest.mark.parametrize("module", [sll, cpl])
@pytest.mark.parametrize("conv", [False, True])
def test_jitted_steps_of_tiny_kernels_are_no_longer_than_eager_ones(module, conv):
    """Compilers join two divisions by a scale into one by its square, which may vanish."""
    rng = np.random.default_rng(0)
    shape = (3, 3, 4, 4) if conv else (5, 5)
    init = module.init_conv if conv else module.init_dense
    constrain = module.constrain_conv if conv else module.constrain_dense
    params = init(jax.random.key(0), *shape[-2:])
    jitted = jax.jit(constrain)
    for exponent in np.arange(-20.5, -17, 0.25):
        kernel = (rng.normal(size=shape) * 10.0**exponent).astype(np.float32)
        weights = jitted(params._replace(kernel=kernel))
        scaled = np.float64(weights.kernel) * np.sqrt(np.float64(weights.step) / 2)
        matrix = oracles.conv_matrix(scaled, 5, padding="zero") if conv else scaled
        assert oracles.norm(matrix) <= 1 + 1e-6


@pytest.mark.few(1)
@pytest.mark.parametrize("module", [sll, aol])
def test_forward_mode_through_a_dense_constraint(module):
    """Generalized Gauss-Newton products take it."""
    params = module.init_dense(jax.random.key(0), 5, 4)
    params = params._replace(kernel=jax.random.normal(jax.random.key(1), (5, 4)))
    x, v = jnp.linspace(-1, 1, 5), jnp.linspace(1, 2, 4 if module is aol else 5)

    def scalar(params):
        return jnp.vdot(module.apply_dense(module.constrain_dense(params), x), v)

    direction = jax.tree.map(jnp.cos, params)
    forward = jax.jvp(scalar, (params,), (direction,))[1]
    reverse = sum(
        map(jnp.vdot, jax.tree.leaves(jax.grad(scalar)(params)), jax.tree.leaves(direction))
    )
    np.testing.assert_allclose(forward, reverse, rtol=1e-5)
    assert abs(float(forward)) > 0.1
