r"""Votes and moments of any function under noise.

Sample i of an example is drawn from `fold_in(key, i)`, so the result depends on the key, the example and
the range of samples alone: not on the batch size, on what else is in a batch, on the number of devices,
or on where a job was stopped and went on. For an image j of a data set pass `fold_in(key, j)`; for the
two samples of a certificate, two keys. The calls may stand inside of jit, vmap and `jax.shard_map`.

Only Threefry draws the same numbers for a key in every batch. From a key of another implementation, such
as `rbg`, one of Threefry is made (all its words are folded in), for the noise too. (`unsafe_rbg` also
folds in and splits differently under vmap: make its keys in a loop.)

What is drawn is the same to the last bit. Sums and products of floats after it, in `Gaussian` and in
`fn`, may be rounded in another way in a program with another batch size: scores then differ by that
rounding, and so may a vote where two logits are as near. With noise on integers and an `fn` whose
rounding does not depend on its batch, all bits are the same.

`fn` maps a batch of examples to logits and must treat every one by itself (batch normalization in
evaluation, no dropout): `depends_on_batch_mates` tells.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks
from lipjax.smoothing.moments import Moments as Moments
from lipjax.smoothing.moments import merge as merge
from lipjax.smoothing.moments import of_none, of_scores
from lipjax.smoothing.noise import Gaussian
from lipjax.typing import Array

NO_VOTE = 0x6E6F6E65
"""Of the key by which an example votes whose logits are no numbers."""

LARGER = 16
"""Examples of a batch that `depends_on_batch_mates` tries at least."""


def sample_counts(
    key: Array,
    fn: Callable[[Array], Array],
    x: Array,
    *,
    sigma: float | None = None,
    noise: Callable[[Array, Any], Any] | None = None,
    num_samples: int,
    num_classes: int,
    batch_size: int,
    start: int | Array = 0,
) -> Array:
    """Votes of a classifier at `x + sigma * noise`.

    Args:
        key: One random key, typed or the raw words of one of JAX's default implementation.
        fn: `float[b, ...] -> float[b, num_classes]`, logits of a batch. An example with a NaN among its
            logits votes for a class at random: every sample counts, and none is won by it.
        x: `float[...]`, one example; for many use `jax.vmap` over keys and examples, or a loop.
        sigma: Standard deviation of Gaussian noise, above 0, in the units of x; or
        noise: `(key, x) -> noisy x` for one example, such as those of `lipjax.smoothing.noise`; x may be
            a tuple then, of tokens and an image for example.
        num_samples: How many votes.
        num_classes: Number of classes.
        batch_size: Examples in a call of `fn`. The last call is filled up; what fills it is not counted.
        start: Number of the first sample; counts of `[0, a)` and `[a, b)` add up to those of `[0, b)`.

    Returns:
        `int32[num_classes]`.

    Raises:
        ValueError: for an `fn` that does not return a real array `[batch_size, num_classes]` or is not
            of JAX, x of a wrong dtype or no array, numbers out of range.

    Memory is that of one batch, whatever `num_samples`. Ties go to the first class. Inside of jit the
    values of x are not known: call `noise.check(x)` before, which refuses tokens that are none. (The
    batches are a loop in the compiled program, in which XLA's CPU backend is slow at convolutions:
    there, jit one batch, `num_samples=batch_size`, and add up over `start`.)

    >>> counts = sample_counts(
    ...     jax.random.key(0), lambda x: jnp.stack([x, -x], -1), jnp.float32(1.0),
    ...     sigma=1.0, num_samples=1000, num_classes=2, batch_size=64,
    ... )
    >>> int(counts.sum()), bool(counts[0] > 800)
    (1000, True)
    """

    def count(total, logits, used, keys):
        return total + _votes(logits, used, keys)

    options = dict(
        sigma=sigma, noise=noise, num_samples=num_samples, batch_size=batch_size, start=start
    )
    key, noise = _check(key, x, num_classes, **options)
    zero = jnp.zeros(num_classes, jnp.int32)
    return _fold(key, fn, x, num_classes, count, zero, noise, num_samples, batch_size, start)


def sample_moments(
    key: Array,
    fn: Callable[[Array], Array],
    x: Array,
    *,
    sigma: float | None = None,
    noise: Callable[[Array, Any], Any] | None = None,
    num_samples: int,
    num_classes: int,
    batch_size: int,
    start: int | Array = 0,
) -> Moments:
    """Mean and variance of scores at `x + sigma * noise`; arguments as `sample_counts`.

    `fn` returns scores in [0, 1], such as a map of `lipjax.smoothing.simplex` with a temperature that
    was fixed before. What is outside is moved to the ends, and NaN counts as 0.

    >>> found = sample_moments(
    ...     jax.random.key(0), lambda x: jax.nn.softmax(jnp.stack([x, -x], -1)), jnp.float32(1.0),
    ...     sigma=1.0, num_samples=1000, num_classes=2, batch_size=64,
    ... )
    >>> int(found.count), bool(abs(found.mean.sum() - 1) < 1e-6)
    (1000, True)
    """

    def add(total, scores, used, keys):
        del keys
        return merge(total, of_scores(scores, used))

    _checks.within(1, 2**16, batch_size=batch_size)
    options = dict(
        sigma=sigma, noise=noise, num_samples=num_samples, batch_size=batch_size, start=start
    )
    key, noise = _check(key, x, num_classes, **options)
    zero = of_none(num_classes)
    return _fold(key, fn, x, num_classes, add, zero, noise, num_samples, batch_size, start)


def sample_both(
    key: Array,
    fn: Callable[[Array], Array],
    x: Array,
    *,
    score: Callable[[Array], Array],
    sigma: float | None = None,
    noise: Callable[[Array, Any], Any] | None = None,
    num_samples: int,
    num_classes: int,
    batch_size: int,
    start: int | Array = 0,
) -> tuple[Array, Moments]:
    """`sample_counts` of `fn` and `sample_moments` of its scores, from the same samples.

    Args:
        score: `float[b, num_classes] -> float[b, num_classes]`, from logits to scores in [0, 1].

    >>> counts, moments = sample_both(
    ...     jax.random.key(0), lambda x: jnp.stack([x, -x], -1), jnp.float32(1.0),
    ...     score=jax.nn.softmax, sigma=1.0, num_samples=1000, num_classes=2, batch_size=64,
    ... )
    >>> int(counts.sum()), int(moments.count)
    (1000, 1000)
    """

    def add(total, logits, used, keys):
        counts, moments = total
        scores = score(logits)
        _refuse_other("score", scores, logits.shape, "scores")
        more = of_scores(scores, used)
        return counts + _votes(logits, used, keys), merge(moments, more)

    _checks.within(1, 2**16, batch_size=batch_size)
    options = dict(
        sigma=sigma, noise=noise, num_samples=num_samples, batch_size=batch_size, start=start
    )
    key, noise = _check(key, x, num_classes, **options)
    zero = jnp.zeros(num_classes, jnp.int32), of_none(num_classes)
    return _fold(key, fn, x, num_classes, add, zero, noise, num_samples, batch_size, start)


def _votes(logits, used, keys):
    """`int32[K]`; an example without a largest logit votes at random.

    A classifier that is undefined somewhere has no certificate, and one whose undefined votes are left
    out is another one for every input. At random they are the votes of one classifier.
    """
    classes = logits.shape[-1]
    unknown = jnp.isnan(logits).any(-1)
    best = jnp.argmax(jnp.where(unknown[:, None], 0, logits), axis=-1).astype(jnp.int32)

    def drawn(key):
        return jax.random.randint(jax.random.fold_in(key, NO_VOTE), (), 0, classes, jnp.int32)

    best = jnp.where(unknown, jax.vmap(drawn)(keys), best)
    votes = jax.nn.one_hot(best, classes, dtype=jnp.int32)
    return jnp.sum(votes * used[:, None].astype(jnp.int32), axis=0, dtype=jnp.int32)


def depends_on_batch_mates(key: Array, fn, xs, *, tolerance: float = 1e-4) -> bool:
    """Whether an example's logits change with what else is in its batch.

    Args:
        key: One random key.
        fn: As in `sample_counts`.
        xs: `float[b, ...]`, b at least 2 examples, or a tuple of such arrays.
        tolerance: Largest difference of a logit that counts as rounding, relative to its size and to
            that of the middle one of all.

    Tries batches of b, of 2, of b + 1 and, if that is less, of `LARGER` examples. What shows in larger
    batches alone is not found: pass as many examples as `batch_size` will be.

    Raises:
        ValueError: for an `fn` whose output is not real, does not have the length of its batch, or
            changes shape.

    >>> bad = lambda x: x - x.mean(0, keepdims=True)
    >>> depends_on_batch_mates(jax.random.key(0), bad, jnp.eye(3))
    True
    """
    _checks.one_key(key=key)
    _checks.nonnegative(tolerance=tolerance)
    xs = jax.tree.map(jnp.asarray, xs)
    leaves = jax.tree.leaves(xs)
    for leaf in leaves:
        _checks.at_least_rank(1, "[b, ...]", xs=leaf)
    count = leaves[0].shape[0] if leaves else 0
    if count < 2 or any(leaf.shape[0] != count for leaf in leaves):
        raise ValueError(
            f"xs has shapes {[leaf.shape for leaf in leaves]}; it must hold at least 2 examples."
        )

    def found(batch):
        out = np.asarray(fn(batch))
        if out.dtype.kind == "c":
            raise ValueError(f"fn returns dtype {out.dtype}; it must return real logits.")
        return np.asarray(out, np.float64)

    together = found(xs)

    def rows(batch, size):
        out = found(batch)
        for given, length in ((together, count), (out, size)):
            if given.shape != (length, *together.shape[1:]):
                raise ValueError(
                    f"fn returns shape {given.shape} for a batch of {length} and {together.shape} for "
                    f"one of {count}; the first axis must be that of the batch and the rest stay."
                )
        return out

    def among(size):
        """All in another order, after so many more that the batch has that size."""
        others = np.concatenate([np.arange(size - count) % count, order])
        out = rows(jax.tree.map(lambda x: x[others], xs), size)
        return out[size - count :][np.argsort(order)]

    order = np.asarray(jax.random.permutation(key, count))
    alone = [
        rows(jax.tree.map(lambda x: jnp.stack([x[i], x[i]]), xs), 2)[:1]  # noqa: B023
        for i in range(count)
    ]
    again = [np.concatenate(alone)] + [among(size) for size in {count + 1, max(count + 1, LARGER)}]
    size = np.abs(together) + np.nanmedian(np.abs(together)) + 1e-30
    for out in again:
        same = (out == together) | (np.isnan(out) & np.isnan(together))
        with np.errstate(invalid="ignore"):
            same |= np.isfinite(out) & (np.abs(out - together) <= tolerance * size)
        if not same.all():
            return True
    return False


def _fold(key, fn, x, num_classes, add, total, noise, num_samples, batch_size, start):
    """Adds up batches of samples `start` to `start + num_samples`."""
    x = jax.tree.map(jnp.asarray, x)

    def step(total, first):
        index = first + jnp.arange(batch_size, dtype=jnp.int32)
        numbers = jnp.asarray(start).astype(jnp.int32) + index
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
        noisy = jax.vmap(noise, in_axes=(0, None))(keys, x)
        try:
            out = fn(noisy)
        except jax.errors.TracerArrayConversionError as error:
            raise ValueError(
                "fn takes its input to NumPy; such a function, of NumPy or PyTorch for example, must be "
                "passed through lipjax.smoothing.wrap.host."
            ) from error
        _refuse_other("fn", out, (batch_size, num_classes), "logits")
        return add(total, out, index < num_samples, keys), None

    firsts = jnp.arange(0, num_samples, batch_size, dtype=jnp.int32)
    if len(firsts) == 1:
        return step(total, firsts[0])[0]
    if jax.sharding.get_abstract_mesh().manual_axes:
        # Inside of shard_map a loop begins with what varies over the devices as its results do. Of the
        # batch that says so nothing but its types is used: a compiled program does not have it.
        total = jax.tree.map(jnp.zeros_like, step(total, firsts[0])[0])
    return lax.scan(step, total, firsts)[0]


def _refuse_other(name, out, shape, what):
    """Raises for what is no real array of that shape."""
    if getattr(out, "shape", None) != shape:
        found = getattr(out, "shape", None)
        found = f"a {type(out).__name__}" if found is None else f"shape {found}"
        raise ValueError(
            f"{name} returns {found} for a batch of {shape[0]}; it must return an array of shape "
            f"{shape}, {what} of num_classes={shape[1]} classes."
        )
    if jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise ValueError(f"{name} returns dtype {out.dtype}; it must return real {what}.")


def _check(key, x, num_classes, *, sigma, noise, num_samples, batch_size, start):
    """The key, of Threefry, and the noise, after all arguments were checked."""
    _checks.one_key(key=key)
    if (sigma is None) == (noise is None):
        raise ValueError(
            f"sigma is {sigma!r} and noise is {noise!r}; exactly one of them must be given."
        )
    if noise is None:
        _checks.positive(sigma=sigma)
        noise = Gaussian(sigma)
    if not callable(noise) or isinstance(noise, type):
        raise ValueError(
            f"noise is {noise!r}; it must be a function (key, x) -> noisy x, such as Gaussian(0.25)."
        )
    if hasattr(noise, "check"):
        noise.check(x)
    _checks.integer(1, num_samples=num_samples, batch_size=batch_size)
    _checks.integer(2, num_classes=num_classes)
    if not isinstance(start, jax.core.Tracer):
        start = np.asarray(start)
        whole = np.issubdtype(start.dtype, np.integer) and start.ndim == 0
        if not (whole and 0 <= start <= 2**31 - num_samples):
            raise ValueError(
                f"start is {start}; it must be an integer of at least 0, and start + num_samples at "
                "most 2^31."
            )
    if num_samples >= 2**31 - batch_size:
        raise ValueError(
            f"num_samples is {num_samples}; with batch_size it must be below 2^31. Add up parts."
        )
    return _threefry(key), noise


def _threefry(key):
    """The key, or for one of another implementation a Threefry key of all its words.

    The numbers that `rbg` draws for a key under vmap depend on the other keys.
    """
    try:
        if str(jax.random.key_impl(key)) == "threefry2x32":
            return key
        words = jax.random.key_data(key).reshape(-1)
    except TypeError as error:
        raise ValueError(
            f"key has shape {key.shape}, which is none of the default implementation's; it must be "
            "one key, as jax.random.key(0)."
        ) from error
    start = jax.random.key(0, impl="threefry2x32")
    return functools.reduce(jax.random.fold_in, words, start)
