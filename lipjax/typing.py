"""What the rest of lipjax passes around: bounds that say what they prove, and certificates."""

import dataclasses
import math
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
            up to the rounding of its dtype. `"estimate"`: no promise.

    >>> Bound(2.0, "upper") * Bound(1.0, "exact")
    Bound(value=2.0, kind='upper')
    >>> Bound(2.0, "upper") * Bound(3.0, "lower")
    Bound(value=6.0, kind='estimate')
    """

    value: Any
    kind: Kind = dataclasses.field(metadata={"static": True})

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; it must be one of {list(get_args(Kind))}.")

    def __mul__(self, other: "Bound") -> "Bound":
        """The product as a bound on the Lipschitz constant of a composition.

        The constant of a composition is at most the product of the constants and may be far
        below it, so a product of upper (or exact) bounds is an upper bound, and any other
        product proves nothing. Zero comes out only of a factor that is zero.

        Raises:
            ValueError: for a factor known to be negative, which no Lipschitz constant is.
        """
        if not isinstance(other, Bound):
            return NotImplemented
        for factor in (self.value, other.value):
            if not isinstance(factor, jax.core.Tracer) and np.any(np.asarray(factor) < 0):
                raise ValueError(f"value is {factor!r}; a Lipschitz constant is at least 0.")
        proved = self.proves_upper and other.proves_upper
        value = self.value * other.value
        if proved:
            value = _not_below(value, self.value, other.value)
        return Bound(value, "upper" if proved else "estimate")

    @property
    def proves_upper(self) -> bool:
        """Whether the truth is known to be at most `value`."""
        return self.kind in ("upper", "exact")


def _not_below(product, a, b):
    """A product of floats may round below the truth: one step up, unless a factor is 0 or 1."""
    if isinstance(product, jax.Array):
        a, b = (jnp.asarray(factor, product.dtype) for factor in (a, b))
        positive = jnp.maximum(round_up(product), jnp.finfo(product.dtype).tiny)
        return jnp.where(is_zero(a) | is_zero(b), product, positive)
    exact = np.isin(a, (0, 1)) | np.isin(b, (0, 1))
    if isinstance(product, int | float) and not isinstance(product, np.floating):
        return product if exact else math.nextafter(product, math.inf)
    return np.where(exact, product, np.nextafter(product, np.asarray(np.inf, product.dtype)))[()]


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
