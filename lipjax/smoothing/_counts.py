"""What certificates from counts share: checked counts, the class, radii that are rounded down."""

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import _checks
from lipjax.typing import ABSTAIN, Bound, Certificate

MOST = 2**40
"""Of a count: sums of any number of classes that fits into memory are exact then."""


def checked(least_classes: int, **named):
    """Counts as int64 arrays `[..., K]` of one shape, which count something."""
    if len(named) > 1 and len({id(value) for value in named.values()}) == 1:
        raise ValueError(
            f"{' and '.join(named)} are the same object; the guarantee is about two independent samples."
        )
    arrays = {name: _array(name, value) for name, value in named.items()}
    for name, counts in arrays.items():
        if not np.issubdtype(counts.dtype, np.integer):
            raise ValueError(f"{name} has dtype {counts.dtype}; counts are integers.")
        if counts.ndim < 1 or counts.shape[-1] < least_classes:
            raise ValueError(
                f"{name} has shape {counts.shape}; its last axis must have at least {least_classes} "
                "classes."
            )
        if counts.size and counts.max() > MOST:
            raise ValueError(f"{name} has a count of {counts.max()}; counts are at most 2^40.")
        if np.any(counts < 0) or np.any(counts.sum(-1) < 1):
            raise ValueError(
                f"{name} is {counts!r}; counts are at least 0, and every row counts a sample."
            )
    (first, one), *rest = arrays.items()
    for name, counts in rest:
        if counts.shape != one.shape:
            raise ValueError(
                f"{name} has shape {counts.shape} and {first} {one.shape}; they must be the same."
            )
    return [counts.astype(np.int64, copy=False) for counts in arrays.values()]


def _array(name, value):
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f"{name} is {value}; certificates are made on the host, outside of jit and vmap, from "
            "counts with any leading axes. In jit there are tables of all counts, such as "
            "lipjax.smoothing.gaussian.radius_table."
        )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is {value!r}; rows of counts are of one length.") from error


def check_sums(num_samples, **named) -> None:
    """That every row of counts sums to the number of samples, if it is given."""
    if num_samples is None:
        return
    _checks.integer(1, num_samples=num_samples)
    for name, counts in named.items():
        sums = np.asarray(counts).sum(-1)
        if np.any(sums != num_samples):
            raise ValueError(
                f"num_samples is {num_samples}, but {name} has rows that sum to {np.unique(sums)[:5]}; "
                "every sample is a vote."
            )


def levels(alpha: float, sigma) -> tuple[float, np.ndarray]:
    """The level and the noise, checked, in float64: arithmetic in less rounds levels up."""
    if not (isinstance(alpha, float | np.floating) and 0 < alpha < 1):
        raise ValueError(
            f"alpha is {alpha!r}, of type {type(alpha).__name__}; it must be a float strictly between 0 "
            "and 1."
        )
    _checks.positive(sigma=sigma)
    return float(alpha), np.asarray(sigma, np.float64)


def spendable(alpha: float) -> float:
    """A little less than alpha, so that levels which are shares of it sum to at most alpha."""
    return alpha * (1 - 2.0**-50)


def check_batch(batch: tuple[int, ...], **named) -> None:
    """That each array broadcasts to the shape of the batch."""
    for name, value in named.items():
        shape = np.shape(value)
        ends = zip(shape[::-1], batch[::-1])
        if len(shape) > len(batch) or not all(size in (1, most) for size, most in ends):
            raise ValueError(
                f"{name} has shape {shape}; it must be a number or broadcast to the shape of the "
                f"batch, {batch}."
            )


def rest(chance) -> np.ndarray:
    """`1 - chance`, rounded down."""
    chance = np.asarray(chance, np.float64)
    found = 1 - chance
    return np.where(1 - found < chance, np.nextafter(found, 0), found)  # 1 - found is exact


def less_sure(chance, law_error: float):
    """A chance that something goes wrong, with noise whose law is off by so much."""
    _checks.ranked(0, "one number", law_error=law_error)
    _checks.within(0.0, 1.0, law_error=law_error)
    return np.minimum(chance + float(law_error), 1.0)


def constant(lipschitz, name: str = "lipschitz"):
    """The number of an upper `Bound`, or the number."""
    if isinstance(lipschitz, Bound):
        if not lipschitz.proves_upper:
            raise ValueError(f"{name} is {lipschitz!r}; it must be an upper bound.")
        lipschitz = lipschitz.value
    dtype = np.asarray(lipschitz).dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise ValueError(f"{name} is {lipschitz!r}; it must be a number or an upper Bound.")
    return lipschitz


def chosen(selection):
    """The class with the most votes, the first at a tie: `int[..., 1]`."""
    return np.argmax(selection, axis=-1)[..., None]


def certificate(prediction, radius, info) -> Certificate:
    """Abstains where the radius is not above 0; otherwise rounds it down."""
    sure = radius > 0
    prediction = np.where(sure, prediction, ABSTAIN).astype(np.int32)
    return Certificate(prediction, np.where(sure, radius * (1 - 1e-13), 0.0), info)


def without(counts, best):
    """The counts of all classes but `best`, in order."""
    places = np.arange(counts.shape[-1] - 1)
    return np.take_along_axis(counts, places + (places >= best), -1)
