"""Rounding helpers hold in float32, and nothing is undefined at zero."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax import _numerics

RNG = np.random.default_rng(0)


def test_rounding_covers_what_it_says():
    x = RNG.uniform(1, 2, 10_000).astype(np.float32)
    y = RNG.uniform(1, 2, 10_000).astype(np.float32)
    exact = np.float64(x) * y
    product = jnp.asarray(x) * y
    assert (np.float64(_numerics.round_up(product)) >= exact).all()
    assert (np.float64(_numerics.round_down(product)) <= exact).all()
    np.testing.assert_allclose(_numerics.round_up(product), exact, rtol=1e-6)
    # Negative control: the product itself is on either side.
    assert (np.float64(product) < exact).any() and (np.float64(product) > exact).any()


def test_gamma_covers_sums_in_any_order():
    n = 1000
    x = RNG.uniform(0, 1, n).astype(np.float32)
    exact = sum(map(Fraction, map(float, x)))
    total = np.float32(0)
    for value in np.sort(x)[::-1]:
        total += value
    assert abs(Fraction(float(total)) - exact) <= exact * Fraction(_numerics.gamma(n, np.float32))
    with pytest.raises(ValueError, match="n is"):
        _numerics.gamma(2**24, np.float32)


@pytest.mark.parametrize(
    "fn",
    [
        _numerics.safe_abs,
        _numerics.safe_sqrt,
        _numerics.safe_rsqrt,
        _numerics.safe_reciprocal,
        _numerics.safe_log,
        _numerics.safe_norm,
    ],
)
def test_zero_has_value_and_derivative_zero(fn):
    for transform in (lambda f: f, jax.jit):
        value, slope = transform(jax.value_and_grad(fn))(0.0)
        assert value == 0 and slope == 0
        assert np.isnan(transform(fn)(jnp.nan))


def test_derivatives_elsewhere_are_the_usual_ones():
    for safe, usual in (
        (_numerics.safe_abs, jnp.abs),
        (_numerics.safe_sqrt, jnp.sqrt),
        (_numerics.safe_rsqrt, jax.lax.rsqrt),
        (_numerics.safe_reciprocal, lambda x: 1 / x),
        (_numerics.safe_log, jnp.log),
    ):
        ours, theirs = jax.value_and_grad(safe)(0.3), jax.value_and_grad(usual)(0.3)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30, 1e38])
def test_norm_neither_overflows_nor_underflows(scale):
    x = np.float32(scale) * np.array([3, -4], np.float32)
    exact = math.hypot(*map(float, x))
    largest = float(np.finfo(np.float32).max)
    found = float(_numerics.safe_norm(jnp.asarray(x)))
    if exact > largest:
        assert found == math.inf
    elif exact > 1e-37:
        np.testing.assert_allclose(found, exact, rtol=1e-6)
    else:  # subnormal numbers may count as zero
        assert found <= exact * (1 + 1e-6) + 1e-38


def test_powers_of_two_are_exact_to_divide_by():
    x = np.exp(RNG.uniform(-80, 80, 1000)).astype(np.float32)
    scale = np.asarray(_numerics.power_of_two(jnp.asarray(x)), np.float64)
    assert (np.frexp(scale)[0] == 0.5).all()
    assert (np.float64(x) / scale >= 1).all() and (np.float64(x) / scale < 2).all()
    for odd in (0.0, -1.0, np.inf, np.nan):
        assert _numerics.power_of_two(jnp.float32(odd)) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subnormal_numbers_are_not_zero(dtype):
    with jax.enable_x64(True):
        x = np.array([0.0, -0.0, np.finfo(dtype).smallest_subnormal, 1.0, np.nan], dtype)
        for transform in (lambda f: f, jax.jit):
            found = transform(_numerics.is_zero)(jnp.asarray(x))
            assert found.tolist() == [True, True, False, False, False]


def test_what_float32_loses_is_counted():
    x = RNG.normal(size=(40, 30))
    array, lost = _numerics.as_device_array(x)
    truth = np.linalg.norm(np.float64(array) - x)
    assert truth <= float(lost) < 10 * truth
    assert _numerics.as_device_array(x.astype(np.float32))[1] == 0.0
    assert _numerics.as_device_array(np.array([1e300]))[1] == np.inf
    for wrong in (None, "abc", [[1.0, 2.0], [3.0]]):
        with pytest.raises(ValueError, match="is no array; it must be one, or numbers in lists"):
            _numerics.as_device_array(wrong)
    # Numbers of a program that is being traced lie in float32 already.
    assert jax.jit(lambda s: _numerics.as_device_array([s, 1.0])[0])(0.5).tolist() == [0.5, 1.0]


def test_float64_on_the_host():
    third = _numerics.on_host_float64(lambda x: x / 3, jnp.float32(1))
    assert third == 1 / 3 and isinstance(third, np.float64 | np.ndarray)
    with pytest.raises(ValueError, match="not under jit"):
        jax.jit(lambda x: _numerics.on_host_float64(jnp.sin, x))(1.0)
