"""What the rest of lipjax passes around: bounds that say what they prove, and certificates."""

import dataclasses
import numbers
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lipjax._numerics import is_zero, round_up

Array = jax.Array
Kind = Literal["upper", "lower", "exact", "estimate"]

ABSTAIN = -1
"""The prediction of a certificate that refuses to answer."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bound:
    """A number and what it proves about the truth.

    Attributes:
        value: The number, a float or an array.
        kind: `"upper"`: never below the truth. `"lower"`: never above it. `"exact"`: the truth
            up to the rounding of its dtype (0 and 1 are meant as they are). `"estimate"`: no promise.

    >>> Bound(2.0, "upper") * Bound(1.0, "exact")
    Bound(value=2.0, kind='upper')
    >>> Bound(2.0, "upper") * Bound(3.0, "lower")
    Bound(value=6.0, kind='estimate')
    >>> 4 * Bound(0.0, "upper")
    Bound(value=0.0, kind='upper')
    """

    value: Any
    kind: Kind = dataclasses.field(metadata={"static": True})

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; it must be one of {list(get_args(Kind))}.")

    def __mul__(self, other: "Bound | float") -> "Bound":
        """The product as a bound on the Lipschitz constant of a composition; a number is exact.

        The constant of a composition is at most the product of the constants and may be far
        below it, so a product of upper (or exact) bounds is an upper bound, and any other
        product proves nothing. Zero comes out only of a factor that is zero.

        Raises:
            ValueError: for a factor known to be negative, which no Lipschitz constant is.
        """
        if isinstance(other, numbers.Real) and not isinstance(other, bool):
            other = Bound(other, "exact")
        if not isinstance(other, Bound):
            return NotImplemented
        for factor in (self.value, other.value):
            if not isinstance(factor, jax.core.Tracer) and np.any(np.asarray(factor) < 0):
                raise ValueError(f"value is {factor!r}; a Lipschitz constant is at least 0.")
        if not (self.proves_upper and other.proves_upper):
            return Bound(self.value * other.value, "estimate")
        return Bound(_product_not_below(self._upper_value(), other._upper_value()), "upper")

    __rmul__ = __mul__

    def _upper_value(self):
        """The value, or a number not below the truth that an exact one was rounded from."""
        value = self.value
        if isinstance(value, jax.Array):
            if self.kind == "upper" or not jnp.issubdtype(value.dtype, jnp.floating):
                return value
            above = round_up(jnp.maximum(value, jnp.finfo(value.dtype).tiny))
            return jnp.where(is_zero(value) | (value == 1) | (value < 0), value, above)
        value = np.asarray(value)
        if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.kind != "f":
            limits, wide = jnp.finfo(value.dtype), value.astype(np.float64)  # bfloat16 and smaller
            above = wide * (1 + float(limits.eps)) + float(limits.smallest_subnormal)
            return np.where(np.isin(wide, (0, 1)) | (self.kind == "upper"), wide, above)
        if value.dtype.kind != "f":
            wide = value.astype(np.float64)
            rounded = (wide >= 2**53) | (value.dtype.kind == "O")  # fractions are objects
            return np.where(rounded, np.nextafter(wide, np.inf), wide)
        above = np.nextafter(value, np.array(np.inf, value.dtype))
        fixed = np.isin(value, (0, 1)) | (self.kind == "upper")
        above = np.where(fixed, value, above)
        wide = above.astype(np.float64)
        return np.where(wide < above, np.nextafter(wide, np.inf), wide)  # long doubles

    @property
    def proves_upper(self) -> bool:
        """Whether the truth is known to be at most `value`."""
        return self.kind in ("upper", "exact")


def _product_not_below(a, b):
    """The product, one step up unless a factor is 0 or 1: in float64, or as JAX arrays."""
    if not isinstance(a, jax.Array) and not isinstance(b, jax.Array):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            product = a * b
        exact = np.isin(a, (0, 1)) | np.isin(b, (0, 1))
        product = np.where(exact, product, np.nextafter(product, np.inf))
        product = np.where((a == 0) | (b == 0), 0, product)
        return product if product.ndim else float(product)
    arrays = [x for x in (a, b) if isinstance(x, jax.Array)]
    dtype = jnp.result_type(*arrays)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    (a, a_zero), (b, b_zero) = (_rounded_up(x, dtype) for x in (a, b))
    negative = (a < 0) | (b < 0)  # traced ones are not refused
    a, b = (jnp.maximum(x, jnp.finfo(dtype).tiny) for x in (a, b))
    positive = jnp.maximum(round_up(a * b), jnp.finfo(dtype).tiny)
    positive = jnp.where(negative, jnp.nan, positive)
    return jnp.where(a_zero | b_zero, 0, positive)


def _rounded_up(x, dtype):
    """A factor as an array of that dtype, not below what it was, and whether it is zero."""
    if isinstance(x, jax.Array) and x.dtype == dtype:
        return x, is_zero(x)
    if not isinstance(x, jax.Array):
        x = np.asarray(x, np.float64)
        zero = jnp.asarray(x == 0)
    else:
        zero = x == 0 if not jnp.issubdtype(x.dtype, jnp.floating) else is_zero(x)
    with np.errstate(over="ignore"):
        x = jnp.asarray(x, dtype)
    return jnp.maximum(round_up(x), jnp.finfo(dtype).tiny), zero


class Certificate(NamedTuple):
    """What is known about a prediction.

    Attributes:
        prediction: `int32[...]`, the class, or `ABSTAIN`.
        radius: `float[...]`, l2 distance in the units of the input within which the prediction
            provably does not change; 0 where nothing is proved.
        info: A dict with what the reader wants to know and the next step does not need.
    """

    prediction: Array
    radius: Array
    info: Any = None
