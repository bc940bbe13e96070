"""Exponentials of skew maps: exact orthogonality, and which Taylor orders contract."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lipjax.layers import skew
from tests import oracles

RNG = np.random.default_rng(0)


def operator(weights, size, **options):
    shape = (size, size, weights.kernel.shape[-2])
    fn = jax.jit(lambda x: skew.linear_conv(weights, x, **options))
    jacobian = np.asarray(jax.jacobian(fn)(jnp.zeros(shape)), np.float64)
    return jacobian.reshape(-1, int(np.prod(shape)))


@pytest.mark.parametrize("shape", [(5, 5), (6, 4), (3, 5)])
def test_dense_is_the_exponential(shape):
    kernel = RNG.normal(size=shape).astype(np.float32)
    square = np.zeros((max(shape),) * 2)
    square[: shape[0], : shape[1]] = kernel
    expected = scipy.linalg.expm((square - square.T) / 2)[: shape[0], : shape[1]]
    weights = skew.constrain_dense(skew.Params(kernel, jnp.zeros(shape[1])))
    np.testing.assert_allclose(weights.kernel, expected, atol=1e-5)


def test_large_kernels_turn_by_at_most_pi():
    kernel = np.float32([[0, 1000.0], [-1000.0, 0]])
    weights = skew.constrain_dense(skew.Params(kernel, jnp.zeros(2)))
    np.testing.assert_allclose(weights.kernel, -np.eye(2), atol=2e-2)


@pytest.mark.slow
def test_small_and_large_kernels_in_one_batch():
    """The norm is measured where a quick bound does not say that all are small."""
    kernels = jnp.asarray(RNG.normal(size=(3, 7, 7)) * [[[0.1]], [[1.0]], [[50.0]]], jnp.float32)

    def turn(kernel):
        return skew.constrain_dense(skew.Params(kernel, jnp.zeros(7))).kernel

    def slope(kernel):
        return jax.grad(lambda k: (turn(k) ** 3).sum())(kernel)

    for fn, error in ((turn, 1e-5), (slope, 1e-4)):
        one_by_one = np.stack([fn(kernel) for kernel in kernels])
        np.testing.assert_allclose(jax.vmap(fn)(kernels), one_by_one, atol=error)
        np.testing.assert_allclose(jax.vmap(fn)(kernels[:1]), one_by_one[:1], atol=error)


@pytest.mark.parametrize("cols", [512, 300])
def test_rotations_of_many_features_do_not_expand(cols):
    """The step at the end takes off the rounding of the exponential."""
    rng = np.random.default_rng(0)
    kernel = np.float32(50 * np.outer(rng.normal(size=512), rng.normal(size=cols)))
    weights = skew.constrain_dense(skew.Params(kernel, jnp.zeros(cols)))
    assert oracles.norm(weights.kernel) <= 1 + 4e-6


def test_the_slope_is_that_of_the_exponential_also_at_zero():
    """The step at the end, which takes off rounding, moves no derivative."""
    with jax.enable_x64(True):
        direction = jnp.asarray(RNG.normal(size=(4, 4)))
        for size in (0.0, 0.5):
            kernel = size * jnp.asarray(RNG.normal(size=(4, 4)))
            got, expected = (
                jax.jvp(fn, (kernel,), (direction,))[1]
                for fn in (
                    lambda k: skew.constrain_dense(skew.Params(k, jnp.zeros(4))).kernel,
                    lambda k: jax.scipy.linalg.expm((k - k.T) / 2),
                )
            )
            np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("padding", ["zero", "circular"])
def test_a_high_order_is_orthogonal_and_low_ones_contract(padding):
    weights = skew.constrain_conv(skew.init_conv(jax.random.key(0), 3, 3))
    values = oracles.singular_values(operator(weights, 4, order=12, padding=padding))
    np.testing.assert_allclose(values, 1, atol=1e-5)
    for order in (3, 4, 7, 8):
        values = oracles.singular_values(operator(weights, 4, order=order, padding=padding))
        assert 0.9 < values.min() and values.max() <= 1 + 1e-6


def test_negative_control_other_orders_expand_and_the_bound_says_so():
    kernel = np.zeros((3, 3, 2, 2), np.float32)
    kernel[1, 1] = [[0, 1], [-1, 0]]  # a rotation of every pixel by one radian
    weights = skew.constrain_conv(skew.Params(kernel, jnp.zeros(2)))
    for order in (1, 2, 5, 6):
        norm = oracles.norm(operator(weights, 2, order=order))
        bound = float(skew.bound(weights, order=order).value)
        assert 1 + 1e-6 < norm <= bound <= norm * 1.05, order
    assert float(skew.bound(weights, order=5).value) > 1 + 5e-4


@pytest.mark.parametrize("order", range(1, 13))
def test_the_bound_of_the_series_is_its_largest_value(order):
    for angle in (0.1, 1.0, 2.5, 4.0):
        points = np.linspace(0, angle, 20001)
        powers = [(1j * points) ** j / float(np.prod(range(1, j + 1))) for j in range(order + 1)]
        truth = np.abs(sum(powers)).max()
        assert truth * (1 - 1e-12) <= skew._series_bound(angle, order) <= truth * (1 + 1e-6)


def series_size(angle, order):
    """`|sum_j (i a)^j / j!|` in rational numbers, rounded once."""
    parts, term = [Fraction(0), Fraction(0)], Fraction(1)
    for j in range(order + 1):
        parts[j % 2] += (-1) ** (j // 2) * term
        term = term * Fraction(angle) / (j + 1)
    return math.sqrt(parts[0] ** 2 + parts[1] ** 2)


@pytest.mark.parametrize(
    "angle,order", [(8, 18), (16, 40), (50, 120), (30, 64), (20, 31), (99.9, 100), (7, 5), (60, 4)]
)
def test_the_bound_of_a_long_series_is_not_lost_in_its_cancellation(angle, order):
    """Terms of e^16 that sum to 1: in float64 the polynomial of the square is noise there."""
    kernel = jnp.array([[[0.0, 2 * angle], [0.0, 0.0]]])
    bound = skew.bound(skew.Skew(kernel, jnp.zeros(2)), order=order).value
    truth = series_size(float(kernel[0, 0, 1]) / 2, order)  # it grows to the end here
    assert truth <= bound <= truth * (1 + 1e-9)


@pytest.mark.parametrize("angle", [0.25, 5.0, 9.0, 40.0])
@pytest.mark.parametrize("order", [1, 6, 15, 37, 128])
def test_the_bound_of_the_series_holds_inside_of_the_interval(angle, order):
    bound = skew._series_bound(angle, order)
    truth = max(series_size(angle * share / 64, order) for share in range(65))
    assert truth <= bound <= truth * 1.003


@pytest.mark.parametrize(
    "order,angle",
    [
        (3, 1.732),
        (4, 2.828),
        (7, 1.764),
        (8, 3.395),
        (11, 1.701),
        (12, 3.379),
        (4, 1e-160),
        (8, 0.0),
    ],
)
def test_the_orders_that_contract_have_a_bound_of_one(order, angle):
    assert 1 <= skew._series_bound(angle, order) <= 1 + 1e-12


def test_beyond_the_largest_angle_and_order_the_bound_is_that_of_the_terms():
    for angle, order in ((1e4, 4), (1e4, 200), (1e200, 4), (150.0, 150), (60.0, 300)):
        bound = skew._series_bound(angle, order)
        try:
            truth = series_size(angle, order)
        except OverflowError:
            truth = np.inf
        assert truth <= bound and (bound <= 2 * truth or bound == np.inf)
    assert skew._series_bound(np.nan, 4) == skew._series_bound(np.inf, 4) == np.inf


def test_the_skew_part_is_exactly_skew():
    weights = skew.constrain_conv(skew.init_conv(jax.random.key(0), 2, 3))
    part = np.asarray(skew._skew(weights.kernel))
    np.testing.assert_array_equal(part, -part[::-1, ::-1].swapaxes(-1, -2))


def test_unequal_channels_pad_or_crop():
    for c_in, c_out in ((2, 5), (5, 2)):
        weights = skew.constrain_conv(skew.init_conv(jax.random.key(0), c_in, c_out))
        x = RNG.normal(size=(2, 4, 4, c_in)).astype(np.float32)
        assert skew.apply_conv(weights, x).shape == (2, 4, 4, c_out)
        assert oracles.norm(operator(weights, 3)) <= 1 + 1e-6


def test_windows_without_a_centre_are_refused():
    with pytest.raises(ValueError, match="kernel_size is 2"):
        skew.init_conv(jax.random.key(0), 2, 2, kernel_size=2)
    with pytest.raises(ValueError, match="order is 0"):
        weights = skew.constrain_conv(skew.init_conv(jax.random.key(0), 2, 2))
        skew.apply_conv(weights, jnp.ones((4, 4, 2)), order=0)


def test_even_windows_made_by_hand_are_refused_since_they_expand():
    kernel = jnp.array([1.0, -1.0]).reshape(2, 1, 1)
    for refused in (
        lambda: skew.constrain_conv(skew.Params(kernel, jnp.zeros(1))),
        lambda: skew.freeze_conv(skew.Params(kernel, jnp.zeros(1))),
        lambda: skew.bound(skew.Skew(kernel, jnp.zeros(1))),
        lambda: skew.apply_conv(skew.Skew(kernel, jnp.zeros(1)), jnp.ones((8, 1))),
    ):
        with pytest.raises(
            ValueError, match=r"kernel has shape \(2, 1, 1\); the window must be odd"
        ):
            refused()
    x = np.eye(8)  # the negative control: the sum that is refused
    part = (np.asarray(kernel)[:, 0, 0] - np.asarray(kernel)[::-1, 0, 0]) / 2
    shift = part[0] * x + part[1] * np.roll(x, 1, axis=0)
    powers = [np.linalg.matrix_power(shift, j) / float(math.factorial(j)) for j in range(5)]
    assert oracles.norm(sum(powers)) > 2


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e10, 1e20, 3e38])
@pytest.mark.parametrize("diagonal", [0.0, 1.0])
def test_gradients_are_finite_for_tiny_and_huge_kernels(size, diagonal):
    kernel = jnp.array([[diagonal, size], [0.0, diagonal]])

    def entry(kernel):
        return skew.constrain_dense(skew.Params(kernel, jnp.zeros(2))).kernel[0, 1]

    slope = jax.grad(entry)(kernel)
    assert np.isfinite(slope).all()
    if size < 1:
        np.testing.assert_allclose(slope, [[0, 0.5], [-0.5, 0]], atol=1e-6)


@pytest.mark.parametrize("dtype,error", [("float32", 3e-6), ("float64", 1e-14)])
def test_the_exponential_up_to_a_norm_of_pi(dtype, error):
    with jax.enable_x64(True):
        for size in (1, 2, 7, 40):
            a = RNG.normal(size=(size, size))
            a = a - a.T
            a *= np.pi / max(oracles.norm(a), 1e-30)
            got = np.asarray(skew.exponential(jnp.asarray(a, dtype)))
            assert got.dtype == dtype
            np.testing.assert_allclose(got, scipy.linalg.expm(a), atol=error)


def test_the_polynomial_is_the_exponential_on_the_whole_circle():
    angles = np.linspace(-np.pi, np.pi, 2001)
    p, q, r, s = (np.polynomial.Polynomial(row)(1j * angles) for row in skew._DEGREE_12)
    inside = r + s**2
    exact = np.exp(1j * angles)
    assert np.abs(p + (q + inside) * inside - exact).max() < 1e-7
    taylor = sum((1j * angles) ** k / math.factorial(k) for k in range(13))
    assert np.abs(taylor - exact).max() > 1e-4  # negative control: the sum of as high a degree


@pytest.mark.parametrize("norm", [0.1, 1.5, np.pi])
def test_the_rounding_of_the_exponential(norm):
    """With all eigenvalues of one size: one after the other they would not show on the others."""
    turn = np.linalg.qr(RNG.normal(size=(256, 256)))[0]
    a = norm * turn @ np.kron(np.eye(128), [[0, 1], [-1, 0]]) @ turn.T
    a = np.float32((a - a.T) / 2)
    error = oracles.norm(
        np.float64(skew.exponential(jnp.asarray(a))) - scipy.linalg.expm(np.float64(a))
    )
    assert error < 4e-6
