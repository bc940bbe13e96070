r"""Deterministic certificates from the margins of a Lipschitz classifier.

With features that are L-Lipschitz in the input and logits $f_k = \langle \phi(x), v_k \rangle + c_k$,
the difference of two logits is $L \|v_y - v_k\|$-Lipschitz. So no input closer than

$$ r = \min_{k \ne y} \frac{f_y - f_k}{L \, \|v_y - v_k\|} $$

changes the prediction y. Without a head, L belongs to the whole vector of logits and every pair has
the constant $\sqrt 2 L$ (Tsuzuku, Sato, Sugiyama 2018, https://arxiv.org/abs/1802.04034; Singla et al.
2022, https://arxiv.org/abs/2108.04062).
"""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks
from lipjax._numerics import as_class, as_device_array, is_zero, round_down, round_up, safe_norm
from lipjax.typing import ABSTAIN, Array, Bound, Certificate


def margin(logits: Array, label: Array) -> Array:
    """The logit of a label minus the largest other one.

    Args:
        logits: `float[classes]`; for a batch use `jax.vmap`.
        label: `int[]`.

    Returns:
        `float[]`: positive if the label is the only largest logit, negative if another one is
        larger, 0 at a tie, inf for a single class, NaN if a logit is NaN or the label out of range.

    Raises:
        ValueError: for a wrong rank or dtype, or a label known to be out of range.

    >>> import jax.numpy as jnp
    >>> float(margin(jnp.array([1.0, 4.0, 2.0]), 1))
    2.0
    """
    logits, label, _ = _check(logits, label)
    gaps = _gaps(logits, label)
    return _nan_if(jnp.min(gaps), jnp.isnan(logits).any() | ~_in_range(logits, label))


def radius(
    logits: Array,
    label: Array,
    *,
    lipschitz: float | Array | Bound,
    head: Array | None = None,
    logit_error: float = 0.0,
) -> Array:
    """Distance within which the classifier provably keeps answering `label`.

    Args:
        logits: `float[classes]`; for a batch use `jax.vmap`.
        label: `int[]`.
        lipschitz: l2 Lipschitz constant of the features (with `head`) or of the logits (without), as
            a number that you answer for or a `Bound` that proves it. That of the features alone,
            without `head`, proves nothing about the logits.
        head: `float[features, classes]`, the class vectors; the Lipschitz constant of each pair of
            logits is then the distance of their vectors.
        logit_error: Bound on the error of all computed logits, one number, taken off every margin
            twice. (What float64 NumPy logits or heads lose where JAX runs in 32 bits is counted by
            itself, if this function sees them: jit and vmap round their arguments before. For a
            batch of them name what they lose here, or run in 64 bits.)

    Returns:
        `float[]`, in the units of the input; 0 where nothing is proved.

    Guarantee: with exact logits, every input at a smaller l2 distance has `label` as its only largest
    logit. Rounded down. 0 if another logit ties or leads; 0 if any logit, `lipschitz` or entry of
    `head` is NaN or infinite or the label is out of range; inf if no input can change the prediction
    (a single class, or vectors equal to the label's with a lead). The rounding of the logits
    themselves enters through `logit_error`.

    Raises:
        ValueError: for an estimate or a lower bound as `lipschitz`, a known negative
            or NaN constant, a wrong shape.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([3.0, 1.0, 0.0])
    >>> round(float(radius(logits, 0, lipschitz=1.0)), 4)
    1.4142
    """
    logits, label, lost = _check(logits, label)
    constant, constant_is_zero = _upper_value(lipschitz)
    _checks.ranked(0, "one number for all logits", logit_error=logit_error)
    _checks.nonnegative(logit_error=logit_error)
    own = jnp.arange(logits.shape[0], dtype=jnp.int32) == label
    gaps = round_down(jnp.where(own, 1, _gaps(logits, label)))
    error = round_up(2 * (jnp.asarray(logit_error, logits.dtype) + lost), 4)
    limits = jnp.finfo(logits.dtype)
    lead = round_down(gaps - error) - 3 * limits.tiny  # of logits that are read as zero
    pairs = pair_constants(head, label, logits)
    # Only a constant of exactly 0 means that a pair never changes places.
    never = (pairs == 0) | constant_is_zero
    scale = jnp.maximum(constant.astype(logits.dtype), limits.tiny)
    pairs = jnp.maximum(pairs * scale, limits.tiny)
    distance = jnp.minimum(lead / jnp.where(never, 1, pairs), limits.max)
    distance = jnp.where(never | jnp.isinf(lead), jnp.inf, distance)
    distance = jnp.where(lead > 0, distance, 0)
    smallest = jnp.min(jnp.where(own, jnp.inf, distance))
    bad = ~jnp.isfinite(logits).all() | ~jnp.isfinite(pairs).all() | ~_in_range(logits, label)
    bad = bad | ~(constant >= 0) | ~jnp.isfinite(constant) | ~(error >= 0)
    if head is not None:
        bad = bad | ~jnp.isfinite(jnp.asarray(head)).all()
    return jnp.where(bad, 0, jnp.maximum(round_down(smallest, 3), 0))


def certify(
    logits: Array,
    *,
    lipschitz: float | Array | Bound,
    head: Array | None = None,
    logit_error: float = 0.0,
) -> Certificate:
    """The prediction and the radius within which it provably does not change.

    Args:
        logits: `float[classes]`; for a batch use `jax.vmap`.
        lipschitz, head, logit_error: as in `radius`.

    Returns:
        A `Certificate`: the class of the largest logit (the first at a tie, then with radius 0), or
        `ABSTAIN` with radius 0 if a logit is NaN; `info` holds the `margin`. Both are those of the
        logits as JAX holds them: float64 ones may tie where it runs in 32 bits.

    Guarantee: as `radius`, for the function with exactly these logits at this input.

    >>> import jax.numpy as jnp
    >>> certify(jnp.array([0.0, 2.0]), lipschitz=1.0).prediction.item()
    1
    """
    given = logits
    logits, _, _ = _check(logits, 0)
    usable = ~jnp.isnan(logits).any()
    label = jnp.argmax(jnp.where(usable, logits, 0)).astype(jnp.int32)
    proved = radius(given, label, lipschitz=lipschitz, head=head, logit_error=logit_error)
    prediction = jnp.where(usable, label, jnp.int32(ABSTAIN))
    return Certificate(prediction, proved, {"margin": margin(logits, label)})


def certified_accuracy(radii: Array, correct: Array, eps: float | Array) -> Array:
    """Share of examples that are correct with a radius strictly above `eps`.

    Args:
        radii: `float[n]`.
        correct: `bool[n]`.
        eps: `float[]` or `float[k]`, in the units of the radii.

    Returns:
        `float[]` or `float[k]`. NaN radii count as not certified.

    >>> import jax.numpy as jnp
    >>> float(certified_accuracy(jnp.array([0.1, 0.3]), jnp.array([True, True]), 0.2))
    0.5
    """
    radii, correct = _checks.array(radii=radii), _checks.array(correct=correct)
    eps = _checks.array(eps=eps)
    _checks.ranked(1, "[examples]", radii=radii, correct=correct)
    _checks.real_floating(radii=radii)
    _checks.nonempty(radii=radii)
    _checks.axis_size(0, radii.shape[0], "one per radius", correct=correct)
    _checks.ranked((0, 1), "[] or [k]", eps=eps)
    if correct.dtype != bool:
        raise ValueError(f"correct has dtype {correct.dtype}; it must be bool.")
    _checks.nonnegative(eps=eps)
    eps = eps.astype(radii.dtype) if not jnp.issubdtype(eps.dtype, jnp.floating) else eps
    certified = correct[:, None] & (radii[:, None] > jnp.atleast_1d(eps)[None, :])
    return jnp.mean(certified, axis=0, dtype=radii.dtype).reshape(eps.shape)


def pair_constants(head: Array | None, label: Array, logits: Array) -> Array:
    """`float[classes]`: Lipschitz constant of `f_label - f_k` in the features, rounded up.

    0 only where the class vectors are equal bit for bit. The entry of the label itself has no
    meaning. Without a head it is sqrt(2) for all.
    """
    classes = logits.shape[0]
    if head is None:
        return jnp.full(classes, round_up(jnp.asarray(math.sqrt(2), logits.dtype)))
    if hasattr(head, "kernel") or hasattr(head, "weights"):
        raise ValueError(
            f"head is a {type(head).__name__}; pass the class vectors, as in "
            "head=model.head.weights().kernel."
        )
    if isinstance(head, Bound):
        raise ValueError(f"head is {head!r}; a Bound goes into lipschitz, class vectors into head.")
    head, lost = as_device_array(head, axis=0)
    _checks.ranked(2, "[features, classes]", head=head)
    _checks.axis_size(1, classes, "one column per logit", head=head)
    _checks.real_floating(head=head)
    own = jnp.take(head, jnp.clip(label, 0, classes - 1), axis=1)[:, None]
    own = jnp.broadcast_to(own, head.shape)
    distances = round_up(safe_norm(head - own, axis=0), head.shape[0] + 4)
    # Subnormal entries may be read as zero, both of a pair and their difference: the bits decide
    # what is the same, and the sum covers what is lost.
    tiny = 4 * math.sqrt(head.shape[0]) * float(jnp.finfo(head.dtype).tiny)
    same = jnp.all(_bits(head) == _bits(own), axis=0)
    distances = distances + tiny
    if not isinstance(lost, float):  # a float64 head in a 32-bit program
        same = same & (jnp.max(lost) == 0)
        distances = distances + 2 * jnp.max(lost)
    distances = round_up(round_up(distances, 3).astype(logits.dtype))
    return jnp.where(same, 0, jnp.maximum(distances, jnp.finfo(logits.dtype).tiny))


def _gaps(logits, label):
    """`f_label - f_k`, inf for the label itself."""
    classes = jnp.arange(logits.shape[0], dtype=jnp.int32)
    own = logits[jnp.clip(label, 0, logits.shape[0] - 1)]
    gaps = own - logits
    overflow = jnp.isinf(gaps) & jnp.isfinite(own) & jnp.isfinite(logits)
    gaps = jnp.where(overflow, jnp.sign(gaps) * jnp.finfo(gaps.dtype).max, gaps)
    gaps = jnp.where(jnp.isinf(own) & (own == logits), 0, gaps)  # a tie, at infinity too
    return jnp.where(classes == label, jnp.inf, gaps)


def _bits(x):
    integer = jnp.int32 if x.dtype == jnp.float32 else jnp.int64
    return lax.optimization_barrier(lax.bitcast_convert_type(lax.stop_gradient(x), integer))


def _upper_value(lipschitz):
    """The constant as a float array, rounded up, and whether it is exactly zero."""
    if isinstance(lipschitz, Bound):
        if not lipschitz.proves_upper:
            raise ValueError(
                f"lipschitz is a bound of kind {lipschitz.kind!r}; a certificate needs one of kind "
                "'upper' or 'exact'."
            )
        lipschitz = lipschitz.value
    elif hasattr(lipschitz, "bound"):  # a model or what network_bound returns
        raise ValueError(
            f"lipschitz is a {type(lipschitz).__name__}; pass its bound: a number or a lipjax Bound."
        )
    if isinstance(lipschitz, numbers.Rational) and not isinstance(lipschitz, bool):
        try:
            lipschitz = float(lipschitz)  # rounded to the nearest; raised below
        except OverflowError:
            lipschitz = math.inf if lipschitz > 0 else -math.inf
    _checks.nonnegative(lipschitz=lipschitz)
    if not isinstance(lipschitz, jax.Array):
        lipschitz = np.asarray(lipschitz, np.float64)
    value = jnp.asarray(lipschitz)
    _checks.ranked(0, "a number", lipschitz=value)
    if value.dtype not in (jnp.float32, jnp.float64):
        value = value.astype(jnp.float32)
    if isinstance(lipschitz, jax.Array):
        zero = is_zero(value)
    else:  # a Python number may vanish on its way to float32
        zero = jnp.asarray(lipschitz == 0)
    # Half a step is lost where a float64 number becomes float32.
    value = jnp.where(value < 0, jnp.nan, round_up(value))
    return jnp.where(zero, 0, jnp.maximum(value, jnp.finfo(value.dtype).tiny)), zero


def _in_range(logits, label):
    return (label >= 0) & (label < logits.shape[0])


def _nan_if(value, condition):
    return jnp.where(condition, jnp.nan, value)


def _check(logits, label):
    if isinstance(label, int | np.integer | np.ndarray) and np.any(np.abs(label) >= 2**31):
        raise ValueError(f"label is {label}; it must be a class.")
    logits, lost = as_device_array(logits)
    label = _checks.array(label=label)
    _checks.ranked(1, "[classes], and jax.vmap for a batch", logits=logits)
    _checks.nonempty(logits=logits)
    _checks.real_floating(logits=logits)
    _checks.ranked(0, "one class", label=label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"label has dtype {label.dtype}; it must be an integer.")
    if not isinstance(label, jax.core.Tracer) and not 0 <= int(label) < logits.shape[0]:
        raise ValueError(f"label is {int(label)}; it must lie in [0, {logits.shape[0] - 1}].")
    return logits, as_class(label), lost
