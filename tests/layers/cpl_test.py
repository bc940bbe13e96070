"""What is particular to CPL: the step is twice the inverse squared norm, from above."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import cpl, sll
from tests import oracles

RNG = np.random.default_rng(0)


def test_step_is_two_over_the_squared_norm_and_never_more():
    kernels = RNG.normal(size=(50, 12, 8)).astype(np.float32)
    params = cpl.Params(kernels, np.zeros((50, 8), np.float32))
    steps = jax.vmap(lambda p: cpl.constrain_dense(p, num_iters=8))(params).step
    longest = 2 / oracles.singular_values(kernels)[:, 0] ** 2
    assert (np.float64(steps) <= longest[:, None]).all()
    np.testing.assert_allclose(steps, np.broadcast_to(longest[:, None], (50, 8)), rtol=2e-3)


def test_negative_control_power_iteration_makes_it_expand():
    """One step of power iteration, as in training code elsewhere: the layer is not 1-Lipschitz."""
    kernel = RNG.normal(size=(12, 12)).astype(np.float32)
    v = kernel.T @ kernel @ RNG.normal(size=12)
    sigma = np.linalg.norm(kernel @ (v / np.linalg.norm(v)))
    params = cpl.Params(kernel, np.full(12, 1e3, np.float32))
    short = cpl.constrain_dense(params)._replace(step=np.full(12, 2 / sigma**2, np.float32))
    slope = oracles.norm(jax.jacobian(lambda x: cpl.apply_dense(short, x))(jnp.zeros(12)))
    sound = cpl.constrain_dense(params)
    assert slope > 1.05
    assert oracles.norm(jax.jacobian(lambda x: cpl.apply_dense(sound, x))(jnp.zeros(12))) <= 1.00001
    assert cpl.bound(short).value >= slope


def test_conv_step_covers_the_operator_at_every_size():
    params = cpl.init_conv(jax.random.key(0), 2, 3)
    step = float(cpl.constrain_conv(params).step[0])
    for size in (3, 4, 7):
        for padding in ("zero", "circular"):
            norm = oracles.norm(oracles.conv_matrix(params.kernel, size, padding=padding))
            assert step <= 2 / norm**2
    tighter = float(cpl.constrain_conv(params, padding="zero", input_size=4).step[0])
    assert (
        step
        <= tighter
        <= 2 / oracles.norm(oracles.conv_matrix(params.kernel, 4, padding="zero")) ** 2
    )


def test_equals_sll_where_both_diagonals_agree():
    kernel = np.linalg.qr(RNG.normal(size=(9, 5)))[0].astype(np.float32)
    a = cpl.constrain_dense(cpl.Params(kernel, jnp.zeros(5)), num_iters=10)
    b = sll.constrain_dense(sll.Params(kernel, jnp.zeros(5), jnp.zeros(5)))
    np.testing.assert_allclose(a.step, b.step, rtol=1e-2)


@pytest.mark.parametrize("signs", [False, True])
def test_equals_sll_with_weights_of_perron(signs):
    """Where `|W^T W|` is `W^T W` up to signs, its largest eigenvalue is the squared norm."""
    kernel = np.abs(RNG.normal(size=(9, 5)))
    vector = np.abs(np.linalg.eigh(kernel.T @ kernel)[1][:, -1])
    if signs:
        kernel = kernel * np.array([1, -1, 1, 1, -1])
    with jax.enable_x64(True):
        a = cpl.constrain_dense(cpl.Params(kernel, np.zeros(5)), num_iters=12)
        b = sll.constrain_dense(sll.Params(kernel, np.zeros(5), np.log(vector)))
    np.testing.assert_allclose(a.step, b.step, rtol=1e-5)
    np.testing.assert_allclose(a.step, 2 / oracles.norm(kernel) ** 2, rtol=1e-5)


def test_only_the_direction_of_the_kernel_matters():
    params = cpl.init_dense(jax.random.key(0), 6, 4)
    x = RNG.normal(size=6).astype(np.float32)
    base = cpl.apply_dense(cpl.constrain_dense(params), x)
    for scale in (1e-12, 1e-4, 1e6):
        scaled = cpl.Params(*(np.float32(scale) * leaf for leaf in params))
        np.testing.assert_allclose(
            cpl.apply_dense(cpl.constrain_dense(scaled), x), base, rtol=1e-3, atol=1e-4
        )


def test_tiny_and_zero_kernels_stay_finite():
    for scale in (0.0, 1e-42, 1e-30):
        kernel = np.float32(scale) * np.ones((4, 3), np.float32)
        y = cpl.apply_dense(cpl.constrain_dense(cpl.Params(kernel, jnp.zeros(3))), jnp.ones(4))
        assert np.isfinite(y).all()


@pytest.mark.few(1)
@pytest.mark.parametrize("conv", [False, True])
def test_wide_layers_start_without_losing_the_signal(conv):
    """Negative control: the published start, which takes nearly all of it away."""
    kept = {}
    for init in ("default", "published"):
        x = start = RNG.normal(size=(32, 4, 4, 16) if conv else (256, 16)).astype(np.float32)
        for i in range(10):
            key = jax.random.key(i)
            if conv:
                weights = cpl.constrain_conv(cpl.init_conv(key, 16, 128, init=init))
                x = cpl.apply_conv(weights, x)
            else:
                weights = cpl.constrain_dense(cpl.init_dense(key, 16, 128, init=init))
                x = cpl.apply_dense(weights, x)
        kept[init] = np.std(x, 0).mean() / np.std(start, 0).mean()
    assert kept["published"] < 0.05 and kept["default"] > 0.3
    narrow = [cpl.init_dense(jax.random.key(0), 16, 16, init=i).kernel for i in kept]
    np.testing.assert_array_equal(*narrow)


def test_parameters_of_numpy_are_taken_as_jax_holds_them():
    rng = np.random.default_rng(0)
    params = cpl.Params(rng.normal(size=(4, 3)), np.zeros(3))
    assert cpl.apply_dense(cpl.constrain_dense(params), jnp.ones(4)).shape == (4,)
