"""Bounds keep the weakest kind."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.typing import Bound


def test_products_keep_what_is_proved():
    kinds = ("upper", "exact", "lower", "estimate")
    for a in kinds:
        for b in kinds:
            product = Bound(2.0, a) * Bound(3.0, b)
            proved = {a, b} <= {"upper", "exact"}
            assert product.kind == ("upper" if proved else "estimate")
            assert product.value >= 6


def test_numbers_are_exact_factors():
    third = 1 / 3
    for product in (third * Bound(3.0, "upper"), Bound(3.0, "upper") * np.float32(third)):
        assert product.kind == "upper" and product.value >= 1
    assert 2 * Bound(1.0, "lower") == Bound(2.0, "estimate")
    assert math.prod([Bound(2.0, "upper"), Bound(3.0, "exact")]).value >= 6
    for wrong in ("2", True, None):
        with pytest.raises(TypeError):
            wrong * Bound(1.0, "upper")
    with pytest.raises(ValueError, match="value is -1"):
        -1 * Bound(1.0, "upper")


def test_products_of_many_round_up():
    third = Bound(1 / 3, "upper")
    assert (third * third * third).value >= (1 / 3) ** 3


def test_products_of_arrays_round_up():
    for one in (np.float32, jnp.float32):
        product = Bound(one(1.1), "upper") * Bound(one(1.3), "upper")
        assert np.float64(product.value) >= np.float64(np.float32(1.1)) * np.float64(
            np.float32(1.3)
        )


def test_is_a_pytree_with_a_static_kind():
    doubled = jax.jit(lambda bound: Bound(2 * bound.value, bound.kind))(Bound(1.5, "upper"))
    assert doubled.kind == "upper" and float(doubled.value) == 3


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind is 'tight'"):
        Bound(1.0, "tight")


def test_a_product_is_zero_only_with_a_zero_factor():
    for tiny in (jnp.float32(1e-30), np.float32(1e-30), 1e-300):
        assert float((Bound(tiny, "upper") * Bound(tiny, "upper")).value) > 0
        assert float((Bound(0 * tiny, "upper") * Bound(tiny, "upper")).value) == 0
    assert float((Bound(2, "upper") * Bound(3, "upper")).value) >= 6
    with pytest.raises(ValueError, match="-2"):
        Bound(-2.0, "upper") * Bound(3.0, "upper")


@pytest.mark.parametrize("small", [1e-50, np.float64(1e-50)])
@pytest.mark.parametrize("large", [jnp.float32(1e38), np.float32(1e38)])
def test_mixed_factors_are_not_lost(small, large):
    for product in (
        Bound(small, "upper") * Bound(large, "upper"),
        Bound(large, "upper") * Bound(small, "upper"),
    ):
        assert float(product.value) >= 1e-50 * 1e38 * (1 - 1e-7)


def test_exact_factors_count_what_they_were_rounded_by():
    rng = np.random.default_rng(0)
    for a, b, c, d in rng.integers(1, 400, (2000, 4)).tolist():
        found = Bound(a / b, "exact") * Bound(c / d, "exact")
        assert Fraction(found.value) >= Fraction(a, b) * Fraction(c, d)
        assert found.value <= (a / b) * (c / d) * (1 + 1e-15)
    single = Bound(np.float32(0.7), "exact") * Bound(1.0, "exact")
    assert 0.7 <= single.value < 0.7000001
    assert (Bound(2**53 + 1, "upper") * Bound(1.0, "exact")).value >= 2**53 + 1
    assert (Bound(1.0, "exact") * Bound(1.0, "exact")).value == 1.0
    wide = np.longdouble(1) + np.longdouble(2) ** -60  # equals 1 where long doubles are doubles
    assert (Bound(wide, "upper") * Bound(1.0, "upper")).value >= wide


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_factors(dtype):
    found = Bound(jnp.asarray([[0.0, 2.0, 0.5]], dtype), "upper") * Bound(0.3, "upper")
    assert found.value.shape == (1, 3) and found.value[0, 0] == 0
    assert (np.float64(found.value)[0, 1:] >= [0.6, 0.15]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_exact_values_of_small_types_are_raised(dtype):
    """They stand for anything that rounds to them, in NumPy as in JAX."""
    values = [np.asarray(0.3, dtype)] + [jnp.asarray(0.3, dtype)] * ("16" in dtype)
    for value in values:
        found = Bound(value, "exact") * Bound(1.0, "exact")
        assert float(value) < float(found.value) <= 1.3 * float(value)
        kept = Bound(value, "upper") * Bound(1.0, "exact")
        assert float(value) <= float(kept.value) <= 1.3 * float(value)


def test_zero_times_what_was_not_proved_and_traced_negative_factors():
    for bad in (np.inf, np.nan):
        assert (Bound(0.0, "exact") * Bound(bad, "upper")).value == 0
        assert (Bound(jnp.float32(0), "exact") * Bound(jnp.float32(bad), "upper")).value == 0
    traced = jax.jit(lambda x: (Bound(x, "upper") * Bound(2.0, "upper")).value)
    assert np.isnan(traced(-3.0))


@pytest.mark.parametrize("kind", ["exact", "upper"])
def test_subnormal_factors_are_not_read_as_zero(kind):
    def products():
        tiny = Bound(jnp.float32(1e-40), kind)
        return [(tiny * Bound(jnp.float32(f), "upper")).value for f in (0.5, 1e30)]

    for small, large in (products(), jax.jit(products)()):
        assert float(small) > 0 and float(large) >= 1e-10
