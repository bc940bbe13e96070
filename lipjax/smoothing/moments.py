"""Exact sums of scores: the moments that soft certificates are made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.typing import Array


class Moments(NamedTuple):
    """Exact sums of scores and of their squares, which do not depend on the order of the samples.

    A score is rounded down to a multiple of 2^-24 from its own precision, and sums are kept as integers
    in parts of 12 bits: nothing cancels, and the same scores give the same bits for every batch size and
    number of devices. (Whether `fn` returns the same scores in another batch is its own matter.)

    Attributes:
        count: `int32[...]`, the number of samples, below 2^31.
        total: `int32[..., 3, K]`: the sum is `total[0] + total[1] / 2^12 + total[2] / 2^24`.
        squares: `int32[..., 5, K]`, of the squares, in the same way down to 2^-48.
    """

    count: Array
    total: Array
    squares: Array

    @property
    def mean(self) -> np.ndarray:
        """`float64[..., K]` on the host; at most 2^-24 below the mean of the scores themselves."""
        return _value(self.total) / self._of_each()

    @property
    def variance(self) -> np.ndarray:
        """`float64[..., K]` on the host, unbiased (divided by `count - 1`); NaN for one sample."""
        n = self._of_each()
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = _value(self.squares) - _value(self.total) * (_value(self.total) / n)
            return np.maximum(spread, 0.0) / (n - 1)

    def _of_each(self) -> np.ndarray:
        """The count for every score; axes after those of `count` are batch axes of scores."""
        n = np.asarray(self.count, np.float64)
        return n.reshape(n.shape + (1,) * (np.ndim(self.total) - 1 - n.ndim))


def of_scores(scores: Array, used: Array) -> Moments:
    """The moments of `float[b, K]` scores, of the rows that `bool[b]` says; at most 2^16 rows."""
    if scores.dtype not in (jnp.float32, jnp.float64):
        scores = scores.astype(jnp.float32)  # halves and integers; float64 would be rounded up
    scores = jnp.where(jnp.isnan(scores), 0, jnp.clip(scores, 0, 1))
    fixed = jnp.floor(scores * 2.0**24).astype(jnp.int32) * used[:, None].astype(jnp.int32)
    return _summed(fixed, jnp.sum(used, dtype=jnp.int32))


def of_none(classes: int) -> Moments:
    """The moments of no samples."""
    zeros = (jnp.zeros((parts, classes), jnp.int32) for parts in (3, 5))
    return Moments(jnp.zeros((), jnp.int32), *zeros)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both samples together, exactly.

    Raises:
        ValueError: for known counts that together are 2^31 or more.
    """
    if not isinstance(a.count, jax.core.Tracer) and not isinstance(b.count, jax.core.Tracer):
        counts = np.asarray(a.count, np.int64) + np.asarray(b.count, np.int64)
        if np.any(counts >= 2**31):
            raise ValueError(
                f"a and b have {counts.max()} samples together; it must be below 2^31."
            )
    return Moments(a.count + b.count, _carried(a.total + b.total), _carried(a.squares + b.squares))


def _summed(fixed, count) -> Moments:
    """Sums over the first axis of multiples of 2^-24 in [0, 1], at most 2^16 of them."""
    top = fixed >> 12  # up to 2^12: one is not cut off
    low = fixed & 0xFFF
    zero = jnp.zeros(fixed.shape[1:], jnp.int32)
    total = jnp.stack([zero, _sum(top), _sum(low)])
    # (top 2^-12 + low 2^-24)^2; a product has up to 24 bits, whose halves are summed apart.
    digits = [zero] * 5
    for product, place in ((top * top, 2), (top * low, 3), (top * low, 3), (low * low, 4)):
        digits[place - 1] += _sum(product >> 12)
        digits[place] += _sum(product & 0xFFF)
    return Moments(count, _carried(total), _carried(jnp.stack(digits)))


def _sum(x):
    return jnp.sum(x, axis=0, dtype=jnp.int32)


def _carried(digits):
    """Digits of 12 bits, the first of them of any size."""
    rows = list(digits)
    for i in range(len(rows) - 1, 0, -1):
        rows[i - 1] = rows[i - 1] + (rows[i] >> 12)
        rows[i] = rows[i] & 0xFFF
    return jnp.stack(rows)


def _value(digits) -> np.ndarray:
    """The number that the digits on the axis before the last stand for."""
    digits = np.asarray(digits, np.float64)
    return (digits * 2.0 ** (-12 * np.arange(digits.shape[-2]))[:, None]).sum(-2)
