r"""Maps of logits to the simplex, with their Lipschitz constants.

A smoothed classifier may average scores in place of votes. Soft scores vary less, so fewer samples bound
their mean; hard ones are further apart. The temperature T trades one for the other, and with it the
Lipschitz constant of the score: the logits' constant times `component(...)`.

The map and its temperature are part of the classifier. Both are fixed before the input is seen, see
`lipjax.smoothing.soft`.

Reference: Delattre et al. (2024), https://arxiv.org/abs/2309.16883; sparsemax by Martins, Astudillo
(2016), https://arxiv.org/abs/1602.02068; entmax by Peters, Niculae, Martins (2019),
https://arxiv.org/abs/1905.05702.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import _checks
from lipjax.typing import Array

MAPS = ("softmax", "sparsemax", "entmax", "hardmax")


def softmax(logits: Array, *, temperature=1.0) -> Array:
    """`exp(z / T)` over its sum, for `float[..., K]`.

    >>> [round(float(p), 4) for p in softmax(jnp.array([1.0, 0.0]))]
    [0.7311, 0.2689]
    """
    logits, temperature = _known(logits, temperature)
    return jax.nn.softmax(_below(logits) / temperature)


def sparsemax(logits: Array, *, temperature=1.0) -> Array:
    """The point of the simplex nearest to `z / T`, for `float[..., K]`.

    >>> sparsemax(jnp.array([0.5, 0.25, -1.0])).tolist()
    [0.625, 0.375, 0.0]
    """
    z = _below_the_first(logits, temperature)
    ordered, rank = _ordered(z)
    total = jnp.cumsum(ordered, axis=-1)
    inside = 1 + rank * ordered > total
    return jnp.maximum(z - _of_the_last(inside, (total - 1) / rank), 0)


def entmax(logits: Array, *, temperature=1.0) -> Array:
    """`max(z / (2 T) - tau, 0)^2` with the tau that makes the sum one, for `float[..., K]`.

    The map between softmax and sparsemax, of Tsallis' entropy of index 3/2.

    >>> [round(float(p), 4) for p in entmax(jnp.array([1.0, 0.0, -5.0]))]
    [0.8307, 0.1693, 0.0]
    """
    z = _below_the_first(logits, temperature, 2)
    ordered, rank = _ordered(z)
    mean = jnp.cumsum(ordered, axis=-1) / rank
    spread = jnp.cumsum(ordered * ordered, axis=-1) - rank * mean * mean
    room = (1 - spread) / rank
    tau = mean - jnp.where(room > 0, jnp.sqrt(jnp.where(room > 0, room, 1)), 0)
    tau = _of_the_last(tau <= ordered, tau)
    inside = jax.lax.stop_gradient(jnp.maximum(z - tau, 0))
    # One step of Newton's method takes off the rounding of tau, by which the sum may be above one.
    off = jnp.sum(jnp.square(inside), axis=-1, keepdims=True) - 1
    tau = tau + off / (2 * jnp.sum(inside, axis=-1, keepdims=True))
    return jnp.square(jnp.maximum(z - tau, 0))


def hardmax(logits: Array, *, temperature=1.0) -> Array:
    """One at the largest logit, the first of several, zero elsewhere: votes. No Lipschitz constant.

    >>> hardmax(jnp.array([1.0, 3.0, 3.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    logits = jnp.asarray(logits)
    best = jnp.argmax(_scaled(logits, temperature), axis=-1)
    return jax.nn.one_hot(best, logits.shape[-1], dtype=logits.dtype)


def component(name: str, *, temperature: float, num_classes: int) -> float:
    """The l2 constant of one score as a function of the logits.

    Args:
        name: `"softmax"`, `"sparsemax"`, `"entmax"` or `"hardmax"`.
        temperature: The T of the map.
        num_classes: K.

    Returns:
        An upper bound, the smallest one: `sqrt(2) / 4`, `sqrt(1 - 1 / K)`,
        `sqrt(K) / (1 + (K - 1)^(1/3))^(3/2)` and infinity, over T.

    >>> round(component("softmax", temperature=1.0, num_classes=10), 4)
    0.3536
    """
    k = _checked(name, temperature, num_classes)
    constant = {
        "softmax": math.sqrt(2) / 4,
        "sparsemax": math.sqrt(1 - 1 / k),
        "entmax": math.sqrt(k) / (1 + (k - 1) ** (1 / 3)) ** 1.5,
        "hardmax": math.inf,
    }[name]
    return constant / temperature * (1 + 1e-12)


def whole(name: str, *, temperature: float, num_classes: int) -> float:
    """The l2 constant of all scores together, as a function of the logits.

    Returns:
        An upper bound: 1/2, 1, 1 (of entmax; `sqrt(1/2)` for two classes) and infinity, over T.
        Arguments as `component`. The margin of two scores has at most `sqrt(2)` times this.

    >>> whole("sparsemax", temperature=0.5, num_classes=10).__round__(4)
    2.0
    """
    k = _checked(name, temperature, num_classes)
    constant = {
        "softmax": 0.5,
        "sparsemax": 1.0,
        "entmax": math.sqrt(0.5) if k == 2 else 1.0,
        "hardmax": math.inf,
    }[name]
    return constant / temperature * (1 + 1e-12)


def _scaled(logits, temperature):
    logits, temperature = _known(logits, temperature)
    return logits / temperature


def _below_the_first(logits, temperature, factor=1):
    """`z / (factor T)` less its maximum, at least -2: entries below -1 are never in the support."""
    logits, temperature = _known(logits, temperature)
    temperature = factor * temperature
    return jnp.maximum(_below(logits), -2 * temperature) / temperature


def _below(logits):
    """Less their maximum, which is subtracted before a division by the temperature.

    Compilers contract the quotient with the difference, and what that leaves of the largest entry may
    be anything.
    """
    return logits - jnp.max(logits, axis=-1, keepdims=True)


def _known(logits, temperature):
    logits = jnp.asarray(logits)
    _checks.real_floating(logits=logits)
    _checks.at_least_rank(1, "[..., K]", logits=logits)
    _checks.ranked(0, "one number", temperature=temperature)
    _checks.positive(temperature=temperature)
    least = float(jnp.finfo(logits.dtype).tiny)
    if not isinstance(temperature, jax.core.Tracer) and np.any(np.float64(temperature) < least):
        raise ValueError(
            f"temperature is {temperature!r}; in {logits.dtype} it must be at least {least:.3g}."
        )
    return logits, jnp.asarray(temperature, logits.dtype)


def _ordered(z):
    """Entries from the largest down, and their ranks 1, 2, ..."""
    ordered = -jnp.sort(-z, axis=-1)
    rank = jnp.broadcast_to(jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype), z.shape)
    return ordered, rank


def _of_the_last(inside, values):
    """The value at the last place that is inside: the size of the support."""
    size = jnp.maximum(jnp.sum(inside.astype(jnp.int32), axis=-1, keepdims=True), 1)
    return jnp.take_along_axis(values, size - 1, axis=-1)


def _checked(name, temperature, num_classes):
    _checks.one_of(MAPS, name=name)
    _checks.ranked(0, "one number", temperature=temperature)
    _checks.positive(temperature=temperature)
    _checks.integer(2, num_classes=num_classes)
    return num_classes
