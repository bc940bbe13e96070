r"""Training losses of smoothed classifiers, as pure functions of one example.

Each takes `fn`, which maps a batch of examples to logits, draws `num_noise` copies of the example from
`key`, and returns a scalar; over a batch, `jax.vmap` it over keys, examples and labels and average.
Logits count as at most `LARGEST` in size and have no gradient beyond. With that, values and gradients
are finite in float32 also where all probability is on one class and for logits that overflow, as long
as the gradient itself fits: a logit times the slope of `fn` and the weights stays below 1e38.
A label that is no class raises a ValueError, and gives NaN where it is traced. Deviations are finite; 0
means no noise.

    gaussian     cross-entropy at noisy copies
    stability    plus a penalty for predictions that noise changes
    smooth_adv   cross-entropy at an attacked example, the attack being on the smoothed classifier
    macer        plus a hinge on the certified radius
    consistency  plus the distance of predictions from their mean

References, in this order: Cohen, Rosenfeld, Kolter (2019), https://arxiv.org/abs/1902.02918; Li et al.
(2019), https://arxiv.org/abs/1809.03113; Salman et al. (2019), https://arxiv.org/abs/1906.04584; Zhai et
al. (2020), https://arxiv.org/abs/2001.02378; Jeong, Shin (2020), https://arxiv.org/abs/2006.04062.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks
from lipjax._numerics import power_of_two, safe_norm
from lipjax.typing import Array

LEAST = 1e-6
"""Probabilities are kept this far from 0 and 1 where a logarithm or a quantile is taken."""

LARGEST = 1e30
"""Logits are kept within this distance of 0: differences and their weighted sums do not overflow."""


def gaussian(key: Array, fn: Callable, x: Array, label, *, sigma, num_noise: int = 1) -> Array:
    """Mean cross-entropy at `x + sigma * noise` (Cohen, Rosenfeld, Kolter 2019).

    Args:
        key: One random key.
        fn: `float[b, ...] -> float[b, K]`, logits.
        x: `float[...]`, one example.
        label: Its class, an integer.
        sigma: Standard deviation of the noise; 0 for none.
        num_noise: Noisy copies.

    Returns:
        `float[]`; NaN for a traced label that is no class.

    Raises:
        ValueError: for a known label that is no class, arguments out of range, and an `fn` that does not
            return floating logits, one row for each copy.

    >>> fn = lambda x: jnp.stack([x, -x], -1)
    >>> bool(gaussian(jax.random.key(0), fn, jnp.float32(3), 0, sigma=0.1) < 0.01)
    True
    """
    logits = _logits(fn, _noisy(key, x, sigma, num_noise), label)
    return jnp.mean(_cross_entropies(logits, label))


def stability(
    key: Array,
    fn: Callable,
    x: Array,
    label,
    *,
    sigma,
    num_noise: int = 1,
    weight: float = 2.0,
) -> Array:
    """Cross-entropy at noisy copies plus that of noisy against clean predictions (Li et al. 2019).

    Arguments as `gaussian`, and the weight of the second. Reference: https://arxiv.org/abs/1809.03113.

    >>> fn = lambda x: jnp.stack([x, -x], -1)
    >>> bool(stability(jax.random.key(0), fn, jnp.float32(0.5), 0, sigma=0.1) > 0)
    True
    """
    _checks.amount(weight=weight)
    logits = _logits(fn, _noisy(key, x, sigma, num_noise), label)
    clean = jnp.exp(_log_softmax(_logits(fn, x[None], label)[0]))
    change = -jnp.sum(clean[None] * _log_softmax(logits), axis=-1)
    return jnp.mean(_cross_entropies(logits, label)) + weight * jnp.mean(change)


def smooth_adv(
    key: Array,
    fn: Callable,
    x: Array,
    label,
    *,
    sigma,
    eps,
    num_noise: int = 2,
    num_steps: int = 4,
    low: float | None = 0.0,
    high: float | None = 1.0,
) -> Array:
    """Cross-entropy at noisy copies of an example that was moved against the smoothed classifier.

    Arguments as `gaussian`, and

    Args:
        key: One random key.
        fn: `float[b, ...] -> float[b, K]`, logits.
        x: `float[...]`, one example.
        label: Its class, an integer.
        sigma: Standard deviation of the noise.
        eps: l2 radius of the attack; 0 gives `gaussian`.
        num_noise: Noisy copies, the same ones in the attack and in the loss.
        num_steps: Steps of projected gradient ascent, each `2 eps / num_steps` long.
        low: Least value of an example, None for none.
        high: Largest value. An entry of x beyond them does not move further out, nor is it moved in.

    The gradient does not go through the attack. Reference: Salman et al. (2019),
    https://arxiv.org/abs/1906.04584.

    >>> fn = lambda x: jnp.stack([x, -x], -1)
    >>> key, x = jax.random.key(0), jnp.float32(0.5)
    >>> bool(smooth_adv(key, fn, x, 0, sigma=0.1, eps=0.3) > gaussian(key, fn, x, 0, sigma=0.1,
    ...     num_noise=2))
    True
    """
    _checks.ranked(0, "one number", eps=eps)
    _checks.within(0.0, 1e30, eps=eps)
    _checks.integer(1, num_steps=num_steps)
    low, high = -jnp.inf if low is None else low, jnp.inf if high is None else high
    if not any(isinstance(end, jax.core.Tracer) for end in (low, high)) and not np.all(low <= high):
        raise ValueError(f"low is {low} and high {high}; low must be at most high.")
    x = jnp.asarray(x)
    low = jnp.minimum(jnp.asarray(low, x.dtype), x)  # so that no step leaves the ball of the attack
    high = jnp.maximum(jnp.asarray(high, x.dtype), x)
    noise = _noisy(key, jnp.zeros_like(x), sigma, num_noise)
    eps = jnp.asarray(eps, x.dtype)

    def objective(moved):
        return _mean_entropy(_logits(fn, moved[None] + noise, label), label)

    def ascend(_, delta):
        slope = jnp.nan_to_num(jax.grad(lambda d: objective(x + d))(delta))
        slope = slope / power_of_two(jnp.max(jnp.abs(slope)))  # or its norm might overflow
        size = safe_norm(slope)
        slope = slope / jnp.where(size > 0, size, 1)
        delta = delta + 2 * eps / num_steps * slope
        length = safe_norm(delta)
        delta = delta * jnp.minimum(1, eps / jnp.where(length > 0, length, 1))
        return jnp.clip(x + delta, low, high) - x

    delta = lax.stop_gradient(lax.fori_loop(0, num_steps, ascend, jnp.zeros_like(x)))
    return jnp.mean(_cross_entropies(_logits(fn, (x + delta)[None] + noise, label), label))


def macer(
    key: Array,
    fn: Callable,
    x: Array,
    label,
    *,
    sigma,
    num_noise: int = 16,
    weight: float = 12.0,
    gap: float = 8.0,
    scale: float = 16.0,
) -> Array:
    """Cross-entropy of the smoothed classifier plus a hinge on its radius (Zhai et al. 2020).

    Arguments as `gaussian`, and

    Args:
        key: One random key.
        fn: `float[b, ...] -> float[b, K]`, logits.
        x: `float[...]`, one example.
        label: Its class, an integer.
        sigma: Standard deviation of the noise.
        num_noise: Noisy copies, whose mean probabilities stand for the smoothed ones.
        weight: Of the hinge.
        gap: Distance of the quantiles of the two largest probabilities up to which it pulls.
        scale: Inverse temperature of the probabilities in the radius.

    The hinge counts for examples that are classified rightly and whose gap is not reached.
    Reference: https://arxiv.org/abs/2001.02378.

    >>> fn = lambda x: jnp.stack([x, -x], -1)
    >>> bool(macer(jax.random.key(0), fn, jnp.float32(0.05), 0, sigma=0.25) > 0)
    True
    """
    _checks.amount(weight=weight)
    _checks.positive(gap=gap, scale=scale)
    logits = _logits(fn, _noisy(key, x, sigma, num_noise), label)
    entropy = _mean_entropy(logits, label)
    # The largest is taken off before the product, which compilers may fuse with that difference.
    below = logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    p = jnp.mean(jnp.exp(_log_softmax(scale * below)), axis=0)
    own = p[label]
    others = jnp.where(jnp.arange(p.shape[0]) == label, -jnp.inf, p)
    next_best = jnp.max(others)
    inside = jnp.clip(jnp.stack([own, next_best]), LEAST, 1 - LEAST)
    z_own, z_next = jax.scipy.special.ndtri(inside)
    short = gap - (z_own - z_next)
    active = (own > next_best) & (short > 0)
    sigma = jnp.asarray(sigma, entropy.dtype)
    return entropy + weight * sigma / 2 * jnp.where(active, short, 0)


def consistency(
    key: Array,
    fn: Callable,
    x: Array,
    label,
    *,
    sigma,
    num_noise: int = 2,
    weight: float = 10.0,
    entropy_weight: float = 0.5,
) -> Array:
    """Cross-entropy plus the distance of noisy predictions from their mean, plus its entropy.

    Arguments as `gaussian`, and

    Args:
        key: One random key.
        fn: `float[b, ...] -> float[b, K]`, logits.
        x: `float[...]`, one example.
        label: Its class, an integer.
        sigma: Standard deviation of the noise.
        num_noise: Noisy copies, at least 2.
        weight: Of the mean relative entropy of the mean against each prediction.
        entropy_weight: Of the entropy of the mean.

    Reference: Jeong, Shin (2020), https://arxiv.org/abs/2006.04062.

    >>> fn = lambda x: jnp.stack([x, -x], -1)
    >>> bool(consistency(jax.random.key(0), fn, jnp.float32(0.5), 0, sigma=0.1) > 0)
    True
    """
    _checks.amount(weight=weight, entropy_weight=entropy_weight)
    _checks.integer(2, num_noise=num_noise)
    logits = _logits(fn, _noisy(key, x, sigma, num_noise), label)
    log = _log_softmax(logits)
    log_mean = _log_sum_exp(log, axis=0) - jnp.log(jnp.asarray(num_noise, log.dtype))
    mean = jnp.exp(log_mean)
    # Where the mean is 0 its logarithm may be far below any other: the product is 0 all the same.
    known = mean > 0
    difference = jnp.where(known[None], log_mean[None] - log, 0)
    distance = jnp.mean(jnp.sum(mean[None] * difference, axis=-1))
    entropy = -jnp.sum(mean * jnp.where(known, log_mean, 0))
    return jnp.mean(_cross_entropies(logits, label)) + weight * distance + entropy_weight * entropy


def _noisy(key, x, sigma, num_noise):
    _checks.one_key(key=key)
    x = jnp.asarray(x)
    _checks.real_floating(x=x)
    _checks.ranked(0, "one number", sigma=sigma)
    _checks.within(0.0, 1e30, sigma=sigma)
    _checks.integer(1, num_noise=num_noise)
    noise = jax.random.normal(key, (num_noise, *x.shape), x.dtype)
    return x[None] + jnp.asarray(sigma, x.dtype) * noise


def _logits(fn, x, label):
    """The logits of a batch within their limits; NaN for a label that is no class."""
    logits = fn(x)
    shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
    if shape is None or len(shape) != 2 or shape[0] != len(x) or shape[1] < 2:
        found = f"a {type(logits).__name__}" if shape is None else f"shape {shape}"
        raise ValueError(
            f"fn returns {found} for a batch of {len(x)}; it must return an array of shape "
            f"({len(x)}, K), logits of K classes."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"fn returns dtype {dtype}; it must return floating logits.")
    num_classes = shape[1]
    _check_label(label, num_classes)
    label = jnp.asarray(label)
    # A half-precision 1 - LEAST is 1, and sums of its exponentials have three digits.
    wide = jnp.float32 if jnp.finfo(logits.dtype).bits < 32 else logits.dtype
    bounded = jnp.clip(logits.astype(wide), -LARGEST, LARGEST)
    return jnp.where((label >= 0) & (label < num_classes), bounded, jnp.nan)


def _check_label(label, num_classes):
    _checks.ranked(0, "(one example: use jax.vmap for a batch)", label=label)
    if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise ValueError(f"label has dtype {jnp.result_type(label)}; it must be an integer.")
    if not isinstance(label, jax.core.Tracer) and not 0 <= int(label) < num_classes:
        raise ValueError(
            f"label is {label}; it must be one of the {num_classes} classes, 0 to {num_classes - 1}."
        )


def _log_softmax(logits):
    below, log_sum = _below_the_largest(logits, -1)
    return below - log_sum


def _log_sum_exp(x, axis):
    top = jax.lax.stop_gradient(jnp.max(x, axis=axis))
    return top + jnp.squeeze(_below_the_largest(x, axis)[1], axis)


def _below_the_largest(x, axis):
    """What x has below its largest, and the logarithm of the sum of its exponentials.

    Compilers compute x again for its largest, with other roundings: then entries of x may lie above
    it, with an infinite exponential, or all below, with none. The differences are at most 0, and the
    sum is at least 1, whatever they do.
    """
    below = x - jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    below = jnp.where(below > 0, below - jax.lax.stop_gradient(below), below)
    total = jnp.sum(jnp.exp(below), axis=axis, keepdims=True)
    return below, jnp.log(jnp.where(total < 1, 1, total))


def _cross_entropies(logits, label):
    return -_log_softmax(logits)[:, label]


def _mean_entropy(logits, label):
    """Minus the logarithm of the mean probability of the label."""
    log = -_cross_entropies(logits, label)
    return jnp.log(jnp.asarray(len(log), log.dtype)) - _log_sum_exp(log, axis=0)
