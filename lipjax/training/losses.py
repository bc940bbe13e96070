"""Losses that ask for a margin, for one example; the caller maps over the batch.

A Lipschitz bound turns a margin between logits into a radius, so these losses do not stop at the
right answer: they push the margin up to a stated size. That size is the knob between clean and
certified accuracy. It is in the units of the logits; for a network with Lipschitz constant 1 and
an unnormalized head, a margin of `sqrt(2) * r` certifies the radius r.
"""

import math

import jax
import jax.numpy as jnp
import optax

from lipjax import _checks

Array = jax.Array

SLL_OFFSET = 1.5 * math.sqrt(2)
"""The offset of the SLL recipe (Araujo et al., 2023), used with temperature 0.25."""


def cross_entropy(
    logits: Array, label: Array, *, offset: float = 0.0, temperature: float = 1.0
) -> Array:
    """Cross-entropy that is small only when the margin exceeds `offset`.

    `temperature * CE((logits - offset * onehot(label)) / temperature)`: the right logit starts
    with a handicap, and a low temperature makes the loss forget an example once it has overcome
    that. With the defaults this is the ordinary cross-entropy.

    Args:
        logits: `float[num_classes]`.
        label: `int[]`, in `[0, num_classes)`.
        offset: At least 0, in units of the logits.
        temperature: Above 0, in units of the logits.

    Returns:
        `float[]`, at least 0. Finite, with a finite gradient, while the logits and the offset stay
        below `1e37 * min(1, temperature)` in float32. NaN for a traced label out of range (the
        step of `make_step` then skips its update).

    Raises:
        ValueError: A shape, a dtype or an option is wrong, or a known label is out of range.

    Reference: Prach and Lampert (2022), https://arxiv.org/abs/2208.03160. The SLL recipe has
    offset `SLL_OFFSET` and temperature 0.25: Araujo et al. (2023),
    https://arxiv.org/abs/2303.03169.

    >>> logits = jnp.array([2.0, 0.0, 0.0])
    >>> [round(float(cross_entropy(logits, 0, offset=offset)), 4) for offset in (0.0, 3.0)]
    [0.2395, 1.862]
    """
    _check_example(logits, label)
    _checks.nonnegative(offset=offset)
    _checks.positive(temperature=temperature)
    handicap = offset * jax.nn.one_hot(label, logits.shape[0], dtype=logits.dtype)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(
        (logits - handicap) / temperature, _clipped(label, logits.shape[0])
    )
    return _nan_unless_valid(temperature * loss, label, logits.shape[0])


def margin_loss(logits: Array, label: Array, *, margin: float = 0.7) -> Array:
    """Multi-margin loss: the mean over the classes of how far each comes too close.

    `sum_{j != label} max(0, margin - logits[label] + logits[j]) / num_classes`.

    Args:
        logits: `float[num_classes]`.
        label: `int[]`, in `[0, num_classes)`.
        margin: At least 0, in units of the logits; 0.7 is the CPL recipe.

    Returns:
        `float[]`, at least 0, and 0 exactly where every margin is at least `margin`. Finite for
        logits below 1e37 in float32. NaN for a traced label out of range.

    Raises:
        ValueError: A shape, a dtype or an option is wrong, or a known label is out of range.

    Reference: Meunier et al. (2022), https://arxiv.org/abs/2110.12690.

    >>> round(float(margin_loss(jnp.array([1.0, 0.5, -1.0]), 0)), 4)
    0.0667
    """
    _check_example(logits, label)
    _checks.nonnegative(margin=margin)
    num_classes = logits.shape[0]
    right = jax.nn.one_hot(label, num_classes, dtype=logits.dtype)
    shortfall = jax.nn.relu(margin - logits[_clipped(label, num_classes)] + logits)
    return _nan_unless_valid(jnp.sum((1 - right) * shortfall) / num_classes, label, num_classes)


def _check_example(logits, label) -> None:
    _checks.ranked(1, "[num_classes] (one example: use jax.vmap for a batch)", logits=logits)
    _checks.nonempty(logits=logits)
    _checks.real_floating(logits=logits)
    _checks.ranked(0, "(one example: use jax.vmap for a batch)", label=label)
    if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise ValueError(f"label has dtype {jnp.result_type(label)}; it must be an integer.")
    _checks.within(0, logits.shape[0] - 1, label=label)


def _clipped(label, num_classes):
    """An index that is always valid; the result for an invalid label is replaced by NaN."""
    return jnp.clip(jnp.asarray(label), 0, num_classes - 1)


def _nan_unless_valid(loss, label, num_classes):
    valid = (jnp.asarray(label) >= 0) & (jnp.asarray(label) < num_classes)
    return jnp.where(valid, loss, jnp.nan)
