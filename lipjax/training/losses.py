"""Losses that ask for a margin, for one example; the caller maps over the batch.

A Lipschitz bound turns a margin between logits into a radius, so these losses do not stop at the
right answer: they push the margin up to a stated size. That size is the knob between clean and
certified accuracy. It is in the units of the logits; for a network with Lipschitz constant 1 and
an unnormalized head, a margin of `sqrt(2) * r` certifies the radius r.

Two of them (`certificate_regularized`, `emma`) take that certificate itself into the loss. Their
`lipschitz` and `head` are those of `lipjax.margin.radius`, except that an estimate will do for
training, and that the gradient flows into both.
"""

import math

import jax
import jax.numpy as jnp
import optax

from lipjax import _checks
from lipjax._numerics import safe_reciprocal
from lipjax.margin import pair_constants
from lipjax.typing import Array, Bound

SLL_OFFSET = 1.5 * math.sqrt(2)
"""The offset of the SLL recipe (Araujo et al., 2023)."""

SLL_TEMPERATURE = 0.25
"""The temperature of the SLL recipe, and of AOL's."""

EMMA_EPSILON = 3 * 36 / 255
"""The radius that LiResNet and BRONet train for, once their schedule has reached it."""


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
    offset `SLL_OFFSET` and temperature `SLL_TEMPERATURE`: Araujo et al. (2023),
    https://arxiv.org/abs/2303.03169.

    >>> logits = jnp.array([2.0, 0.0, 0.0])
    >>> [round(float(cross_entropy(logits, 0, offset=offset)), 4) for offset in (0.0, 3.0)]
    [0.2395, 1.862]
    """
    logits = _checked_example(logits, label)
    loss = temperature * _tempered(logits, label, offset, temperature)
    return _nan_unless_valid(loss, label, logits.shape[0])


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
    logits = _checked_example(logits, label)
    _checks.amount(margin=margin)
    num_classes = logits.shape[0]
    right = jax.nn.one_hot(label, num_classes, dtype=logits.dtype)
    shortfall = jax.nn.relu(margin - logits[_clipped(label, num_classes)] + logits)
    return _nan_unless_valid(jnp.sum((1 - right) * shortfall) / num_classes, label, num_classes)


def certificate_regularized(
    logits: Array,
    label: Array,
    *,
    gamma: float = 0.0,
    lipschitz: float | Array | Bound,
    head: Array | None = None,
) -> Array:
    """Cross-entropy minus `gamma` times the certified radius of the label.

    `CE(logits) - gamma * max(0, r)`, where r is the smallest gap `f_label - f_k` divided by the
    Lipschitz constant of that gap: `lipjax.margin.radius` up to rounding. A wrong answer has
    radius 0, so the term rewards what is right already.

    Args:
        logits: `float[num_classes]`.
        label: `int[]`, in `[0, num_classes)`.
        gamma: At least 0, per unit of the radius. With 0, the default as in the published code, this
            is the cross-entropy.
        lipschitz: Constant of the logits, or of the features if there is a `head`.
        head: `float[features, num_classes]`, the class vectors.

    Returns:
        `float[]`. Finite, with a finite gradient, for logits below 1e36 in float32 over constants
        that are not tiny. The reward is 0, not infinite, where no input can change the answer: a
        single class, or a constant of 0. NaN for a traced label out of range.

    Raises:
        ValueError: A shape, a dtype or an option is wrong, or a known label is out of range.

    Reference: Singla, Singla, Feizi (2022), https://arxiv.org/abs/2108.04062.

    >>> logits = jnp.array([2.0, 0.0, 0.0])
    >>> [round(float(certificate_regularized(logits, 0, gamma=g, lipschitz=1.0)), 4) for g in (0, 0.1)]
    [0.2395, 0.0981]
    """
    logits = _checked_example(logits, label)
    _checks.amount(gamma=gamma)
    constants = _pair_lipschitz(logits, label, lipschitz, head)
    gaps = logits[_clipped(label, logits.shape[0])] - logits
    never = _is_label(logits, label) | ((constants == 0) & (gaps > 0))
    distances = jnp.where(never, jnp.inf, gaps / jnp.where(constants == 0, 1, constants))
    radius = jax.nn.relu(jnp.min(distances))
    reward = gamma * jnp.where(jnp.isinf(radius), 0, radius)
    return cross_entropy(logits, label) - reward


def binary_hkr(
    score: Array, label: Array, *, alpha: float = 10.0, min_margin: float = 1.0, share: float = 0.5
) -> Array:
    """Hinge Kantorovich-Rubinstein loss of one score; its sign is the answer, its size the radius.

    With Y = 1 for label 1 and -1 for label 0, the mean over the data is

    `E[f | Y = -1] - E[f | Y = 1] + alpha * E[max(0, min_margin - Y f)]`:

    over 1-Lipschitz f the first two terms estimate the Wasserstein distance of the two classes, and
    the hinge makes f classify them. Each example stands for its class with weight `1 / share`.

    Args:
        score: `float[]`, of a 1-Lipschitz network.
        label: `int[]`, 0 or 1.
        alpha: Weight of the hinge, at least 0. The authors' library leaves it to the caller in the
            binary case; 10 is what its example takes and its default for several classes.
        min_margin: At least 0, in units of the score. Newer releases of that library enforce half
            of the number they are given.
        share: Share of label 1 in the data. (That library takes it from each batch.) With 0 or 1
            there is nothing to tell apart and the hinge stands alone.

    Returns:
        `float[]`, of either sign. Finite for scores below `1e37 / (1 + alpha)` over the smaller
        share, in float32. NaN for a traced label out of range.

    Raises:
        ValueError: A shape, a dtype or an option is wrong, or a known label is out of range.

    Reference: Serrurier et al. (2021), https://arxiv.org/abs/2006.06520.

    >>> [float(binary_hkr(jnp.float32(0.5), label)) for label in (0, 1)]
    [16.0, 4.0]
    """
    score = _checks.array(score=score)
    _checks.ranked(0, "(one example: use jax.vmap for a batch)", score=score, label=label)
    _checks.real_floating(score=score)
    _check_label(label, 2)
    _checks.nonnegative(alpha=alpha, min_margin=min_margin)
    _checks.within(0.0, 1.0, share=share)
    positive = jnp.asarray(label) == 1
    contrast = _contrast(positive, jnp.asarray(share, score.dtype))
    hinge = jax.nn.relu(min_margin - jnp.where(positive, score, -score))
    return _nan_unless_valid(alpha * hinge - contrast * score, label, 2)


def hkr(
    logits: Array,
    label: Array,
    *,
    alpha: float = 10.0,
    min_margin: float = 1.0,
    shares: Array | None = None,
) -> Array:
    """Hinge Kantorovich-Rubinstein loss of several classes: each logit against all other classes.

    The mean over the classes of `binary_hkr`, where in the hinge the right class weighs as much as
    all others together:

    `alpha * mean_k(w_k * max(0, min_margin - s_k f_k)) - mean_k(s_k f_k / P_k)`

    with `s = 1, w = num_classes - 1` and `P_k` the share of class k for the label, and `s = -1,
    w = 1` and `P_k` the share of the other classes for the rest. For classes of equal size the
    second term is `f_label` minus the mean of the other logits.

    Args:
        logits: `float[num_classes]`, each 1-Lipschitz.
        label: `int[]`, in `[0, num_classes)`.
        alpha: Weight of the hinge, at least 0.
        min_margin: At least 0, in units of the logits; see `binary_hkr`.
        shares: `float[num_classes]`, the share of each class in the data; equal when None. A class
            with share 0 or 1 has nothing to be told from and no part in the second term.

    Returns:
        `float[]`, of either sign; 0 for a single class. Finite for logits below
        `1e37 / (1 + alpha)` times the smallest share, in float32. NaN for a traced label out of
        range.

    Raises:
        ValueError: A shape, a dtype or an option is wrong, or a known label is out of range.

    Reference: Serrurier et al. (2021), https://arxiv.org/abs/2006.06520; weights and defaults are
    those of their library, https://github.com/deel-ai/deel-lip.

    >>> round(float(hkr(jnp.array([2.0, 0.0, -1.0]), 0)), 4)
    0.8333
    """
    logits = _checked_example(logits, label)
    _checks.nonnegative(alpha=alpha, min_margin=min_margin)
    num_classes = logits.shape[0]
    if shares is None:
        shares = jnp.full(num_classes, 1 / num_classes, logits.dtype)
    shares = _checks.array(shares=shares)
    _checks.ranked(1, "[num_classes]", shares=shares)
    _checks.axis_size(0, num_classes, "one per logit", shares=shares)
    _checks.within(0.0, 1.0, shares=shares)
    if not isinstance(shares, jax.core.Tracer) and abs(float(jnp.sum(shares)) - 1) > 1e-3:
        raise ValueError(f"shares is {shares!r}; it must sum to 1.")
    right = _is_label(logits, label)
    contrast = _contrast(right, jnp.asarray(shares, logits.dtype))
    hinges = jax.nn.relu(min_margin - jnp.where(right, logits, -logits))
    hinges = jnp.where(right, (num_classes - 1) * hinges, hinges)
    loss = alpha * jnp.mean(hinges) - jnp.mean(contrast * logits)
    return _nan_unless_valid(loss, label, num_classes)


def emma_logits(
    logits: Array,
    label: Array,
    *,
    epsilon: float | Array = EMMA_EPSILON,
    lipschitz: float | Array | Bound,
    head: Array | None = None,
) -> Array:
    """Logits after the worst shift within `epsilon`, as far as it helps training.

    Every gap `g_k = f_k - f_label` is raised by `c_k epsilon_k`, with `c_k` the Lipschitz constant
    of the gap and `epsilon_k = epsilon * clip(-g_k / (c_k epsilon), 0.01, 1)` a constant to the
    gradient: by the whole radius where the label leads by more than that, up to the tie where it
    leads by less, and by a hundredth where it does not lead.

    Args:
        logits: `float[num_classes]`.
        label: `int[]`, in `[0, num_classes)`.
        epsilon: `float[]`, the radius to train for, at least 0, in units of the input. The
            published recipe raises it over the first half of the epochs from 0.1 to 3 times
            36 / 255, where it stays (the default):
            `optax.linear_schedule(0.1 * 36 / 255, 3 * 36 / 255, num_steps // 2)`.
        lipschitz: Constant of the logits, or of the features if there is a `head`.
        head: `float[features, num_classes]`, the class vectors.

    Returns:
        `float[num_classes]`, 0 at the label. With `epsilon` 0 the logits less that of the label.

    Reference: Hu et al. (2023), https://arxiv.org/abs/2301.12549.

    >>> shifted = emma_logits(jnp.array([2.0, 0.0, 3.0]), 0, epsilon=1.0, lipschitz=1.0)
    >>> [round(float(z), 4) for z in shifted]
    [0.0, -0.5858, 1.0141]
    """
    logits = _checked_example(logits, label)
    _checks.amount(epsilon=epsilon)
    value = lipschitz.value if isinstance(lipschitz, Bound) else lipschitz
    _checks.within(0.0, float(jnp.finfo(logits.dtype).max), lipschitz=value)
    constants = _pair_lipschitz(logits, label, lipschitz, head)
    reach = epsilon * jnp.where(_is_label(logits, label), 0, constants)
    gaps = logits - logits[_clipped(label, logits.shape[0])]
    part = jnp.clip(-jax.lax.stop_gradient(gaps / jnp.maximum(reach, 1e-8)), 0.01, 1.0)
    return gaps + part * reach


def emma(
    logits: Array,
    label: Array,
    *,
    epsilon: float | Array = EMMA_EPSILON,
    lipschitz: float | Array | Bound,
    head: Array | None = None,
) -> Array:
    """Efficient margin maximization: the cross-entropy of `emma_logits`, which has the arguments.

    Returns:
        `float[]`, at least the cross-entropy, which it is for `epsilon` 0. Finite, with a finite
        gradient, for logits below 1e37 in float32. NaN for a traced label out of range.

    Raises:
        ValueError: A shape, a dtype or an option is wrong, or a known label is out of range.

    Reference: Hu et al. (2023), https://arxiv.org/abs/2301.12549.

    >>> round(float(emma(jnp.array([2.0, 0.0, 0.0]), 0, epsilon=1.0, lipschitz=1.0)), 4)
    0.7483
    """
    shifted = emma_logits(logits, label, epsilon=epsilon, lipschitz=lipschitz, head=head)
    return cross_entropy(shifted, label)


def logit_annealing(
    logits: Array,
    label: Array,
    *,
    offset: float = 2.0,
    temperature: float = 0.75,
    beta: float = 5.0,
) -> Array:
    """Offset cross-entropy that lets go of an example as its margin grows.

    `temperature * (1 - p)^beta * (-log p)` with p the probability of the label in
    `softmax((logits - offset * onehot(label)) / temperature)`. With `beta` 0 this is
    `cross_entropy`. BRONet trains on `logit_annealing(emma_logits(...), label)`, LipConvNet on the
    plain logits and a quarter of the loss.

    Args:
        logits: `float[num_classes]`.
        label: `int[]`, in `[0, num_classes)`.
        offset: At least 0, in units of the logits.
        temperature: Above 0, in units of the logits.
        beta: At least 0; how fast the loss lets go.

    Returns:
        `float[]`, at least 0 and at most that `cross_entropy`; finite as that is, and NaN for a
        traced label out of range.

    Raises:
        ValueError: A shape, a dtype or an option is wrong, or a known label is out of range.

    Reference: Lai et al. (2025), https://arxiv.org/abs/2505.15174.

    >>> logits = jnp.array([5.0, 0.0, 0.0])
    >>> [round(float(logit_annealing(logits, 0, beta=beta)), 4) for beta in (0.0, 5.0)]
    [0.027, 0.0]
    """
    _checks.amount(beta=beta)
    logits = _checked_example(logits, label)
    # Rounding leaves entropies below 0 where logits are large.
    entropy = jnp.maximum(_tempered(logits, label, offset, temperature), 0)
    missing = -jnp.expm1(-jnp.where(entropy < 50, entropy, 50.0))  # 1 - p, and 1 beyond
    some = missing > 0
    weight = jnp.where(some, jnp.where(some, missing, 1) ** beta, jnp.where(beta == 0, 1.0, 0.0))
    return _nan_unless_valid(temperature * (weight * entropy), label, logits.shape[0])


def _tempered(logits, label, offset, temperature):
    """`CE((logits - offset * onehot(label)) / temperature)`."""
    _checks.amount(offset=offset)
    _checks.positive(temperature=temperature)
    _checks.ranked(0, "one number", temperature=temperature)
    handicap = offset * jax.nn.one_hot(label, logits.shape[0], dtype=logits.dtype)
    # The largest is taken off before the division: compilers that fuse a division with a difference
    # leave the rounding of the one in the other, and its exponential is infinite for large logits.
    shifted = logits - handicap
    shifted = shifted - jax.lax.stop_gradient(jnp.max(shifted))
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        shifted / temperature, _clipped(label, logits.shape[0])
    )


def _contrast(positive, share):
    """Weights whose mean over the data is the mean over a class minus that over all others."""
    weight = jnp.where(positive, safe_reciprocal(share), -safe_reciprocal(1 - share))
    return jnp.where((share == 0) | (share == 1), 0, weight)


def _pair_lipschitz(logits, label, lipschitz, head):
    """`float[num_classes]`: Lipschitz constant of `f_label - f_k`; no meaning at the label."""
    if isinstance(lipschitz, Bound):
        lipschitz = lipschitz.value
    _checks.nonnegative(lipschitz=lipschitz)
    _checks.ranked(0, "one number", lipschitz=lipschitz)
    scale = jnp.asarray(lipschitz, logits.dtype)
    return scale * pair_constants(head, _clipped(label, logits.shape[0]), logits)


def _checked_example(logits, label) -> Array:
    """The logits as JAX holds them."""
    logits = _checks.array(logits=logits)
    _checks.ranked(1, "[num_classes] (one example: use jax.vmap for a batch)", logits=logits)
    _checks.nonempty(logits=logits)
    _checks.real_floating(logits=logits)
    _checks.ranked(0, "(one example: use jax.vmap for a batch)", label=label)
    _check_label(label, logits.shape[0])
    return logits


def _check_label(label, num_classes) -> None:
    if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise ValueError(f"label has dtype {jnp.result_type(label)}; it must be an integer.")
    _checks.within(0, num_classes - 1, label=label)


def _is_label(logits, label):
    return jax.nn.one_hot(label, logits.shape[0], dtype=bool)


def _clipped(label, num_classes):
    """An index that is always valid; the result for an invalid label is replaced by NaN."""
    return jnp.clip(jnp.asarray(label), 0, num_classes - 1)


def _nan_unless_valid(loss, label, num_classes):
    valid = (jnp.asarray(label) >= 0) & (jnp.asarray(label) < num_classes)
    return jnp.where(valid, loss, jnp.nan)
