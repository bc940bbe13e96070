r"""Votes and moments of any function under Gaussian noise.

Sample i of an example is drawn from `fold_in(key, i)`, so the result depends on the key, the example and
the range of samples alone: not on the batch size, on what else is in a batch, on the number of devices,
or on where a job was stopped and went on. For an image j of a data set pass `fold_in(key, j)`; for the
two samples of a certificate, two keys.

`fn` maps a batch of examples to logits and must treat every one by itself (batch normalization in
evaluation, no dropout): `depends_on_batch_mates` tells.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax.typing import Array


class Moments(NamedTuple):
    """Mean and spread of scores, merged without cancellation.

    Attributes:
        count: `int32[]`, the number of samples.
        mean: `float32[K]`.
        spread: `float32[K]`, the sum of squared deviations from the mean.
    """

    count: Array
    mean: Array
    spread: Array

    @property
    def variance(self) -> Array:
        """The unbiased variance; NaN for a single sample."""
        return self.spread / (self.count - 1).astype(self.spread.dtype)


def sample_counts(
    key: Array,
    fn: Callable[[Array], Array],
    x: Array,
    *,
    sigma: float,
    num_samples: int,
    num_classes: int,
    batch_size: int,
    start: int | Array = 0,
) -> Array:
    """Votes of a classifier at `x + sigma * noise`.

    Args:
        key: One random key.
        fn: `float[b, ...] -> float[b, num_classes]`, logits of a batch. NaN logits vote for no class.
        x: `float[...]`, one example; for many use `jax.vmap` over keys and examples, or a loop.
        sigma: Standard deviation of the noise, in the units of x.
        num_samples: How many votes.
        num_classes: Number of classes.
        batch_size: Examples in a call of `fn`. The last call is filled up; what fills it is not counted.
        start: Number of the first sample; counts of `[0, a)` and `[a, b)` add up to those of `[0, b)`.

    Returns:
        `int32[num_classes]`.

    Raises:
        ValueError: for an `fn` that does not return `[batch_size, num_classes]`, x of a wrong dtype,
            numbers out of range.

    Memory is that of one batch, whatever `num_samples`. Ties go to the first class. (The batches are a
    loop in the compiled program, in which XLA's CPU backend is slow at convolutions: there, jit one
    batch, `num_samples=batch_size`, and add up over `start`.)

    >>> counts = sample_counts(
    ...     jax.random.key(0), lambda x: jnp.stack([x, -x], -1), jnp.float32(1.0),
    ...     sigma=1.0, num_samples=1000, num_classes=2, batch_size=64,
    ... )
    >>> int(counts.sum()), bool(counts[0] > 800)
    (1000, True)
    """

    def count(total, logits, used):
        best = jnp.argmax(jnp.where(jnp.isnan(logits), -jnp.inf, logits), axis=-1)
        used = used & ~jnp.isnan(logits).any(-1)
        votes = jax.nn.one_hot(best, num_classes, dtype=jnp.int32)
        return total + jnp.sum(votes * used[:, None].astype(jnp.int32), axis=0)

    options = dict(sigma=sigma, num_samples=num_samples, batch_size=batch_size, start=start)
    _check(key, x, num_classes, **options)
    return _fold(key, fn, x, num_classes, count, jnp.zeros(num_classes, jnp.int32), **options)


def sample_moments(
    key: Array,
    fn: Callable[[Array], Array],
    x: Array,
    *,
    sigma: float,
    num_samples: int,
    num_classes: int,
    batch_size: int,
    start: int | Array = 0,
) -> Moments:
    """Mean and variance of scores at `x + sigma * noise`; arguments as `sample_counts`.

    `fn` returns scores in [0, 1], such as the softmax of logits at a temperature that was fixed before.
    Batches are merged by their means and spreads (Chan, Golub, LeVeque 1979), so nothing cancels.

    >>> found = sample_moments(
    ...     jax.random.key(0), lambda x: jax.nn.softmax(jnp.stack([x, -x], -1)), jnp.float32(1.0),
    ...     sigma=1.0, num_samples=1000, num_classes=2, batch_size=64,
    ... )
    >>> int(found.count), bool(abs(found.mean.sum() - 1) < 1e-6)
    (1000, True)
    """

    def add(total, scores, used):
        weights = used.astype(scores.dtype)
        count = jnp.sum(used.astype(jnp.int32))
        size = jnp.maximum(count, 1).astype(scores.dtype)
        mean = jnp.sum(scores * weights[:, None], axis=0) / size
        away = (scores - jnp.broadcast_to(mean, scores.shape)) * weights[:, None]
        return merge(total, Moments(count, mean, jnp.sum(jnp.square(away), axis=0)))

    options = dict(sigma=sigma, num_samples=num_samples, batch_size=batch_size, start=start)
    _check(key, x, num_classes, **options)
    zero = Moments(jnp.int32(0), jnp.zeros(num_classes), jnp.zeros(num_classes))
    return _fold(key, fn, x, num_classes, add, zero, **options)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both samples together."""
    count = a.count + b.count
    whole = jnp.maximum(count, 1).astype(a.mean.dtype)
    share = b.count.astype(a.mean.dtype) / whole
    gap = b.mean - a.mean
    spread = a.spread + b.spread + jnp.square(gap) * (a.count.astype(a.mean.dtype) * share)
    return Moments(count, a.mean + gap * share, spread)


def depends_on_batch_mates(key: Array, fn, xs: Array, *, tolerance: float = 1e-4) -> bool:
    """Whether an example's logits change with what else is in its batch.

    Args:
        key: One random key.
        fn: As in `sample_counts`.
        xs: `float[b, ...]`, b at least 2 examples.
        tolerance: Largest difference that counts as rounding, relative to the largest logit.

    >>> bad = lambda x: x - x.mean(0, keepdims=True)
    >>> depends_on_batch_mates(jax.random.key(0), bad, jnp.eye(3))
    True
    """
    _checks.at_least_rank(1, "[b, ...]", xs=xs)
    if xs.shape[0] < 2:
        raise ValueError(f"xs has shape {xs.shape}; it must hold at least 2 examples.")
    together = fn(xs)
    order = jax.random.permutation(key, xs.shape[0])
    others = jnp.concatenate([xs[:1], xs[order]])
    alone = jnp.concatenate([fn(jnp.broadcast_to(x, (2, *x.shape)))[:1] for x in xs])
    scale = jnp.max(jnp.abs(together)) + 1e-30
    moved = jnp.maximum(
        jnp.abs(fn(others)[1:] - together[order]).max(), jnp.abs(alone - together).max()
    )
    return bool(~(moved <= tolerance * scale))


def _fold(key, fn, x, num_classes, add, total, *, sigma, num_samples, batch_size, start):
    """Adds up batches of samples `start` to `start + num_samples`."""
    x = jnp.asarray(x)

    def step(total, first):
        index = first + jnp.arange(batch_size)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(start + index)
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape, x.dtype))(keys)
        out = fn(jnp.broadcast_to(x, noise.shape) + jnp.asarray(sigma, x.dtype) * noise)
        if out.shape != (batch_size, num_classes):
            raise ValueError(
                f"fn returns shape {out.shape} for a batch of {batch_size}; it must return "
                f"({batch_size}, {num_classes}), logits of num_classes={num_classes} classes."
            )
        return add(total, out, index < num_samples), None

    firsts = jnp.arange(0, num_samples, batch_size)
    if len(firsts) == 1:
        return step(total, firsts[0])[0]
    return lax.scan(step, total, firsts)[0]


def _check(key, x, num_classes, *, sigma, num_samples, batch_size, start):
    _checks.one_key(key=key)
    _checks.real_floating(x=jnp.asarray(x))
    _checks.integer(1, num_samples=num_samples, batch_size=batch_size)
    _checks.integer(2, num_classes=num_classes)
    _checks.nonnegative(sigma=sigma, start=start)
    if num_samples >= 2**31:
        raise ValueError(f"num_samples is {num_samples}; it must be below 2^31. Add up parts.")
