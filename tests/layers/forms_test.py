"""The two forms: exact adjoints, geometry, and what the bound of given weights says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import aol, block, cayley, forms, head, reflector, sandwich, skew, sll
from lipjax.layers._convolution import adjoint, convolve
from lipjax.typing import Bound
from tests import oracles

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize(
    "window,size,strides",
    [
        ((3, 3), (5, 6), 1),
        ((2, 2), (5, 4), 1),
        ((4, 1), (6, 5), 1),
        ((5, 3), (4, 4), 2),
        ((3,), (7,), 1),
        ((2, 3, 2), (3, 4, 3), 1),
        ((3, 3), (2, 2), 1),
    ],
)
def test_adjoint_identity(window, size, strides, padding):
    kernel = RNG.normal(size=(*window, 2, 3)).astype(np.float32)
    x = RNG.normal(size=(2, *size, 2)).astype(np.float32)
    image = convolve(x, kernel, padding=padding, strides=strides)
    y = RNG.normal(size=image.shape).astype(np.float32)
    back = adjoint(y, kernel, x, padding=padding, strides=strides)
    np.testing.assert_allclose(np.vdot(image, y), np.vdot(x, back), rtol=1e-4, atol=1e-4)


def test_negative_control_flipped_kernel_is_no_adjoint_for_even_windows():
    """What works for odd windows, a convolution with the flipped kernel, fails for even ones."""
    kernel = RNG.normal(size=(2, 2, 1, 1)).astype(np.float32)
    y = RNG.normal(size=(1, 5, 5, 1)).astype(np.float32)
    x = np.zeros_like(y)
    flipped = convolve(y, kernel[::-1, ::-1], padding="zero")
    assert np.abs(flipped - adjoint(y, kernel, x)).max() > 0.1


def test_convolution_matches_the_written_out_operator():
    kernel = RNG.normal(size=(3, 2, 2, 3)).astype(np.float32)
    for padding in ("zero", "circular"):
        matrix = oracles.conv_matrix(kernel, (4, 5), padding=padding)
        x = RNG.normal(size=(4, 5, 2)).astype(np.float32)
        y = np.asarray(convolve(x, kernel, padding=padding)).reshape(-1)
        truth = oracles.singular_values(matrix)
        assert y.shape[0] == matrix.shape[1] and truth.max() > 0
        if padding == "zero":
            np.testing.assert_allclose(y, x.reshape(-1) @ matrix, atol=1e-4)


@pytest.mark.every
@pytest.mark.parametrize("padding", ["reflect", "replicate", "symmetric", "edge", "same"])
def test_expanding_paddings_are_refused_with_the_reason(padding):
    weights = sll.constrain_conv(sll.init_conv(jax.random.key(0), 2, 3))
    with pytest.raises(ValueError, match=f"padding is '{padding}'.*no longer be 1-Lipschitz"):
        sll.apply_conv(weights, jnp.ones((4, 4, 2)), padding=padding)


def test_epsilon_on_the_wrong_side_is_seen_by_the_bound():
    """A published layer added an epsilon to one factor alone and expanded up to 200 times."""
    kernel = np.linalg.qr(RNG.normal(size=(8, 8)))[0].astype(np.float32)
    q, eps = np.full(8, 1e-8, np.float32), 1e-6
    gram = np.abs(kernel.T @ kernel)
    t = (gram * (q[None, :] / (np.abs(q[:, None]) + eps))).sum(1)
    wrong = forms.Residual(
        kernel, np.zeros(8, np.float32), (2 / t).astype(np.float32), np.zeros(8, np.float32)
    )
    x = 1e3 * RNG.normal(size=8).astype(np.float32)
    slope = oracles.norm(np.asarray(jax.jacobian(lambda x: sll.apply_dense(wrong, x))(x)))
    # The Jacobian is rounded to float32, which the bound of the exact map does not count.
    assert slope > 50 and forms.residual_bound(wrong).value >= slope * (1 - 1e-6)


def test_bound_of_a_hand_made_linear_layer():
    kernel = RNG.normal(size=(6, 4)).astype(np.float32)
    weights = forms.Linear(kernel, np.zeros(4, np.float32), np.zeros(4, np.float32))
    truth = oracles.norm(kernel)
    assert truth <= forms.linear_bound(weights).value <= truth * 1.001


@pytest.mark.parametrize("window", [(), (3, 3)])
def test_bounds_below_one_are_close_to_the_norm(window):
    """The row sums of rescaled kernels are 1 whatever their norm is, which may be a half of it."""
    size = 8 if window else 60
    kernel = np.random.default_rng(0).normal(size=(*window, size, size)).astype(np.float32)
    freeze = aol.freeze_conv if window else aol.freeze_dense
    weights = freeze(aol.Params(kernel, jnp.zeros(size)))
    symbol = np.asarray(weights.kernel, np.float64)
    symbol = np.fft.fft2(symbol, (64, 64), axes=(0, 1)) if window else symbol
    truth = oracles.singular_values(symbol).max()
    assert truth < 0.9 and truth <= forms.linear_bound(weights).value <= truth * 1.01


def test_parameters_in_place_of_weights_are_refused_by_every_layer():
    """Taken silently they made Jacobian norms of 896 (skew) and 32 (at frequencies)."""
    key, x, image = jax.random.key(0), jnp.ones(4), jnp.ones((3, 4, 4))
    for apply, params, point in (
        (sll.apply_dense, sll.init_dense(key, 4, 4), x),
        (aol.apply_conv, aol.init_conv(key, 4, 4), image),
        (skew.apply_conv, skew.init_conv(key, 4, 4), image),
        (skew.apply_conv, aol.constrain_conv(aol.init_conv(key, 4, 4)), image),
        (cayley.apply_conv, cayley.init_conv(key, 4, 4), image),
        (reflector.apply_conv, reflector.init_conv(key, 4), image),
        (sandwich.apply_dense, sandwich.init_dense(key, 4, 4), x),
        (head.apply_dense, head.init_dense(key, 4, 3), x),
        (block.apply_conv, block.init_conv(key, 4, 4), image),
    ):
        with pytest.raises(ValueError, match="weights is a "):
            apply(params, point)
    for bound, params in (
        (sll.bound, sll.init_dense(key, 4, 4)),
        (aol.bound, aol.init_dense(key, 4, 4)),
        (skew.bound, skew.init_conv(key, 4, 4)),
        (cayley.bound, cayley.init_conv(key, 4, 4)),
        (sandwich.bound, sandwich.init_dense(key, 4, 4)),
        (head.bound, head.init_dense(key, 4, 3)),
        (block.bound, block.init_conv(key, 4, 4)),
    ):
        with pytest.raises(ValueError, match="weights is a "):
            bound(params)


def test_negative_steps_prove_nothing():
    weights = sll.constrain_dense(sll.init_dense(jax.random.key(0), 4, 3))
    wrong = weights._replace(step=-weights.step)
    x = 100 * RNG.normal(size=(20, 4)).astype(np.float32)
    slopes = jax.vmap(jax.jacobian(lambda x: sll.apply_dense(wrong, x)))(x)
    assert oracles.singular_values(slopes).max() <= forms.residual_bound(wrong).value


def test_units_whose_square_underflows_are_not_overlooked():
    with jax.enable_x64(True):
        kernel = jnp.array([[1e150, 0.0], [0.0, 1e-10]])
        weights = forms.Residual(kernel, jnp.zeros(2), jnp.array([0.0, 2e21]), jnp.zeros(2))
        assert forms.residual_bound(weights).value >= 19 * (1 - 1e-9)


def test_frozen_weights_are_on_the_sound_side():
    params = sll.init_dense(jax.random.key(0), 20, 9)
    frozen, quick = sll.freeze_dense(params), sll.constrain_dense(params)
    exact = np.abs(np.float64(params.kernel).T @ np.float64(params.kernel)).sum(1)
    assert (np.float64(frozen.step) <= 2 / exact).all()
    assert (frozen.step >= quick.step).all()
    np.testing.assert_allclose(frozen.step, 2 / exact, rtol=1e-6)
    assert aol.freeze_dense(aol.init_dense(jax.random.key(0), 4, 3)).kernel.dtype == jnp.float32


def test_a_witness_that_underflows_is_no_proof():
    """Weights so far apart that `exp(2 log_q)` is 0 or infinite: the row sums see only a part."""
    kernel = jnp.array([[1.5, 0.0], [0.0, 1.5]])
    for log_q in ([-800.0, 0.0], [800.0, 0.0], [-400.0, 400.0], [-400.0, -400.0]):
        weights = forms.Linear(kernel, jnp.zeros(2), jnp.array(log_q))
        assert forms.linear_bound(weights).value >= 1.5
        window = forms.Linear(kernel[None, None], jnp.zeros(2), jnp.array(log_q))
        assert forms.linear_bound(window).value >= 1.5


@pytest.mark.parametrize("window", [(), (1, 1)])
def test_a_kernel_whose_square_underflows_is_not_zero(window):
    with jax.enable_x64(True):
        kernel = jnp.full((*window, 1, 1), 1e-170)
        weights = forms.Linear(kernel, jnp.zeros(1), jnp.zeros(1))
        assert forms.linear_bound(weights).value >= 1e-170


def test_any_linear_map_makes_a_residual_layer():
    """Given as a function, a contraction in the residual form is the one with its kernel."""
    kernel = np.linalg.qr(RNG.normal(size=(6, 4)))[0].astype(np.float32)
    bias, x = (
        jnp.asarray(RNG.normal(size=4), jnp.float32),
        RNG.normal(size=(3, 6)).astype(np.float32),
    )
    explicit = forms.as_residual(forms.linear(jnp.asarray(kernel), bias))
    for name in ("relu", "tanh"):
        got = forms.residual_of(lambda x: x @ kernel, x, bias, activation=name)
        np.testing.assert_allclose(
            got, forms.residual_dense(explicit, x, activation=name), atol=1e-6
        )
    with pytest.raises(ValueError, match="slope goes down"):
        forms.residual_of(lambda x: x @ kernel, x, bias, activation="abs")


def test_temperatures_change_the_layer_unless_the_activation_is_homogeneous():
    kernel = np.linalg.qr(RNG.normal(size=(6, 4)))[0].astype(np.float32)
    contraction = forms.linear(jnp.asarray(kernel), jnp.zeros(4))
    plain = forms.as_residual(contraction)
    warm = forms.as_residual(contraction, log_temperature=jnp.array([2.0, -2.0, 0.0, 1.0]))
    x = RNG.normal(size=(5, 6)).astype(np.float32)
    for name, changes in (("relu", False), ("tanh", True)):
        a, b = (forms.residual_dense(w, x, activation=name) for w in (plain, warm))
        assert (np.abs(a - b).max() > 0.05) == changes
    assert float(forms.residual_bound(warm).value) <= 1 + 1e-5
    with pytest.raises(ValueError, match="log_temperature has shape"):
        forms.as_residual(contraction, log_temperature=jnp.zeros(3))


def test_bound_of_a_residual_layer_from_that_of_its_map():
    for norm in (0.5, 1.0, 1.1):
        matrix = norm * np.eye(3, dtype=np.float32)
        bound = forms.residual_of_bound(Bound(norm, "upper"))
        jacobian = jax.jacobian(
            lambda x, a=matrix: forms.residual_of(lambda x: x @ a, x, jnp.ones(3))
        )
        assert oracles.norm(np.asarray(jacobian(jnp.ones(3)))) <= float(bound.value) + 1e-6
    assert float(bound.value) <= 2 * 1.1**2 - 1 + 1e-9 and bound.kind == "upper"
    assert forms.residual_of_bound(Bound(0.5, "estimate")).kind == "estimate"


def test_convex_mixes_are_between_and_do_not_expand():
    x, y = (RNG.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    for logit in (-50.0, -1.0, 0.0, 2.0, 50.0):
        mixed = np.asarray(forms.convex_mix(x, y, jnp.float32(logit)))
        assert (mixed <= np.maximum(x, y) + 1e-6).all() and (mixed >= np.minimum(x, y) - 1e-6).all()
    layer = lambda x: forms.convex_mix(x, -x[::-1], jnp.float32(0.3))  # noqa: E731
    assert oracles.norm(np.asarray(jax.jacobian(layer)(jnp.ones(3)))) <= 1 + 1e-6


def test_a_mix_of_unequal_shapes_is_named():
    with pytest.raises(ValueError, match="x has shape .2,. and y .3,.; they must be the same"):
        forms.convex_mix(jnp.ones(2), jnp.ones(3), jnp.zeros(()))


def test_bounds_from_below_are_no_bounds_of_the_residual_form():
    """With A the identity times sqrt(1/2) and no activation it is zero: 0.5 bounds A, and not this."""
    for kind in ("lower", "estimate"):
        assert forms.residual_of_bound(Bound(0.5, kind)).kind == "estimate"
    for kind in ("upper", "exact"):
        assert forms.residual_of_bound(Bound(0.5, kind)) == Bound(1.0, "upper")


def test_dense_weights_in_a_convolution_are_named():
    for layer in (aol, sll):
        weights = layer.constrain_dense(layer.init_dense(jax.random.key(0), 4, 4))
        with pytest.raises(
            ValueError, match=r"kernel has shape \(4, 4\); it must have at least 3 axes"
        ):
            layer.apply_conv(weights, jnp.ones((5, 5, 4)))
