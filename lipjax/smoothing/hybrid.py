r"""Certificates against changed tokens and a moved continuous part together.

The continuous input has Gaussian noise of deviation sigma, the tokens a kernel of their own. With
$\rho = r / \sigma$, clean atoms $p_i$ of the token likelihood ratio $\gamma_i$ and a threshold u,

$$ F(u) = \sum_i p_i \Phi(u - \log\gamma_i / \rho), \qquad
   V(u) = \sum_i \gamma_i p_i \Phi(u - \log\gamma_i / \rho - \rho), $$

and the smallest attacked mean of any function with clean mean p is V(u) where F(u) = p. It falls as r or
the number of edits grows, so one search finds the radius, and the largest number of edits is the worst.
No edits give the radius of Cohen et al., r = 0 gives `lipjax.smoothing.discrete.worst_case`.

Reference: Delattre et al. (2026), https://arxiv.org/abs/2605.12876.
"""

from typing import Any, NamedTuple

import numpy as np

from lipjax import _checks
from lipjax.smoothing import _counts, multiclass
from lipjax.smoothing.discrete import SLACK, hold, rest, worst_case
from lipjax.smoothing.kernels import check_edits
from lipjax.typing import ABSTAIN

LEAST = 1e-9
"""Of a rho that is divided by."""
STEPS = 56
"""Of each bisection: the intervals shrink to less than the rounding of their ends."""


class HybridCertificate(NamedTuple):
    """What is proved for one input, or a batch of them.

    Attributes:
        prediction: `int32[...]`, the class, or ABSTAIN.
        radius: `float64[..., max_edits + 1]`, how far the continuous part may move for every number of
            changed tokens; 0 where nothing, or only the tokens, is proved.
        edits: `int32[...]`, the largest number of changed tokens that is proved without moving the
            continuous part; at most `max_edits`, -1 with ABSTAIN.
        info: `p_lower`, `p_upper` and the ledger of alpha, of the pair with the largest radius without
            edits (`lipjax.smoothing.multiclass.Bounds`); others may be better with more edits.
    """

    prediction: np.ndarray
    radius: np.ndarray
    edits: np.ndarray
    info: dict[str, Any]


def certify(
    selection,
    estimation,
    *,
    kernel,
    sigma,
    alpha: float,
    max_edits: int,
    budget: str = "auto",
    law_error: float = 0.0,
    num_samples: int | None = None,
) -> HybridCertificate:
    """The class, and how far it holds for every number of changed tokens.

    Args:
        selection: `int[..., K]`, votes of a first sample; they choose the class and the levels.
        estimation: `int[..., K]`, votes of a second, independent one.
        kernel: Noise on the tokens, one of `lipjax.smoothing.kernels`.
        sigma: Standard deviation of the noise on the continuous part, a number or `float[...]`.
        alpha: Chance, for each input, that anything of the certificate is wrong.
        max_edits: The largest number of changed tokens that is asked for.
        budget: How alpha is spent on the classes, see `lipjax.smoothing.multiclass.certify`.
        law_error: Of the noise, see `lipjax.smoothing.noise`; taken off every chance.
        num_samples: Of the estimation, if its rows are to be checked against it.

    Guarantee: with probability at least `1 - alpha` over the samples, it abstains or, for every d at
    once, the smoothed classifier is `prediction` for all inputs with at most d tokens changed and the
    continuous part moved by less than `radius[..., d]`, and for all with at most `edits` tokens changed.

    Raises:
        ValueError: as `lipjax.smoothing.multiclass.certify` and `lipjax.smoothing.discrete.worst_case`.

    >>> from lipjax.smoothing.kernels import Mask
    >>> found = certify(
    ...     [100, 0], [9_990, 10], kernel=Mask(0.9), sigma=0.5, alpha=0.001, max_edits=2
    ... )
    >>> int(found.prediction), int(found.edits), found.radius.round(3).tolist()
    (0, 2, [1.409, 1.322, 1.226])
    """
    check_edits(kernel, max_edits=max_edits)
    options = dict(alpha=alpha, budget=budget, law_error=law_error, num_samples=num_samples)
    found = multiclass.bounds(selection, estimation, **options)
    _, sigma = _counts.levels(alpha, sigma)
    _counts.check_batch(found.failure.shape[1:], sigma=sigma)
    own, other = rest(found.failure), found.others
    kept = hold(own, other, kernel=kernel, max_edits=max_edits)
    radii = [
        radius(own, other, kernel=kernel, num_edits=d, sigma=sigma) for d in range(max_edits + 1)
    ]
    # What any pair proves is true, so the best may be taken for each number of edits.
    radii = (np.minimum.accumulate(np.stack(radii, -1), -1) * kept).max(0)
    kept = kept.any(0)
    best = _counts.chosen(np.asarray(selection))[..., 0]
    prediction = np.where(kept[..., 0], best, ABSTAIN).astype(np.int32)
    edits = kept.sum(-1).astype(np.int32) - 1
    return HybridCertificate(prediction, radii, edits, found.info())


def radius(
    p_lower, p_upper=None, *, kernel, num_edits: int, sigma, threshold: float = 0.5
) -> np.ndarray:
    """How far the continuous part may move while that many tokens change, and the mean stay above.

    Args:
        p_lower: `float[...]` in [0, 1], at most the clean mean, such as a confidence bound.
        p_upper: `float[...]`, at least the clean mean of every other class; then the radius is that
            within which the class stays the largest, and the threshold is not used.
        kernel: One of `lipjax.smoothing.kernels`.
        num_edits: Number of tokens that the attack may change.
        sigma: Deviation of the noise on the continuous part, a number or `float[...]`.
        threshold: What the mean must stay at least at, in (0, 1): 1/2 for the majority of a vote.

    Returns:
        float64, rounded down; 0 where nothing is proved (or only the tokens are: see `worst_case`).

    Guarantee: for every attack with at most `num_edits` changed tokens and a continuous part moved by at
    most the radius, the mean is at least the threshold.

    Raises:
        ValueError: for p outside [0, 1], a threshold outside (0, 1), sigma not positive, or what
            `worst_case` refuses.

    >>> from lipjax.smoothing.kernels import Uniform
    >>> radius(0.999, kernel=Uniform(0.25, 30_000), num_edits=1, sigma=0.5, threshold=4.6e-5).round(4)
    np.float64(3.1089)
    """
    _checks.positive(sigma=sigma)
    if not (isinstance(threshold, float | np.floating) and 0 < threshold < 1):
        raise ValueError(f"threshold is {threshold!r}; it must lie strictly between 0 and 1.")
    _checks.within(0.0, 1.0, p_lower=p_lower)
    p = np.asarray(p_lower, np.float64)
    _checks.broadcastable(p_lower=p, p_upper=0.0 if p_upper is None else p_upper, sigma=sigma)
    if p_upper is not None:
        return _of_classes(p, p_upper, kernel, num_edits, sigma)
    unique, place = np.unique(p, return_inverse=True)  # counts repeat
    left = worst_case(unique, kernel=kernel, num_edits=num_edits)
    found = np.zeros(unique.shape)
    alive = left >= threshold
    if alive.any():
        atoms = kernel.atoms(num_edits)
        found[alive] = _of_threshold(unique[alive], atoms, threshold)
    return (found[place].reshape(p.shape) * np.asarray(sigma, np.float64))[()]


def curve(p_lower, *, kernel, max_edits: int, sigma, threshold: float = 0.5) -> np.ndarray:
    """`radius` for every number of edits from 0 to `max_edits`: `float64[..., max_edits + 1]`.

    All of them hold together where `p_lower` does: one bound, one alpha.

    >>> from lipjax.smoothing.kernels import Mask
    >>> curve(0.999, kernel=Mask(0.9), max_edits=2, sigma=0.5).round(3).tolist()
    [1.545, 1.46, 1.364]
    """
    check_edits(kernel, max_edits=max_edits)
    options = dict(kernel=kernel, sigma=sigma, threshold=threshold)
    found = [radius(p_lower, num_edits=d, **options) for d in range(max_edits + 1)]
    return np.minimum.accumulate(np.stack(found, -1), -1)


def _of_classes(p, p_upper, kernel, num_edits, sigma):
    """Where the smallest attacked mean of one meets the largest of the others."""
    from scipy import special

    _checks.within(0.0, 1.0, p_upper=p_upper)
    q = np.asarray(p_upper, np.float64)
    p, q, sigma = np.broadcast_arrays(p, q, np.asarray(sigma, np.float64))
    pairs = np.stack([p.reshape(-1), q.reshape(-1)], -1)
    unique, place = np.unique(pairs, axis=0, return_inverse=True)  # counts repeat
    own, others = unique.T
    left = worst_case(own, kernel=kernel, num_edits=num_edits)
    other = worst_case(rest(others), kernel=kernel, num_edits=num_edits)
    alive = left + other > 1
    found = np.zeros(own.shape)
    if alive.any():
        both = np.stack([1 - own[alive], others[alive]])  # what is missing to 1
        atoms = kernel.atoms(num_edits)

        def attacked(rho, rows, steps=STEPS):
            values = both[:, rows]
            flat = _attacked(values.reshape(-1), np.tile(rho, 2), atoms, steps)
            return flat.reshape(values.shape)

        def sure(rho, rows):
            return attacked(rho, rows).sum(0) > 1

        def excess(rho, rows):
            return special.ndtri(_inside(attacked(rho, rows, steps=48))).sum(0)

        high = (-special.ndtri(both)).sum(0) / 2  # without tokens
        found[alive] = _largest(high, sure, excess)
    return (found[place.reshape(-1)].reshape(p.shape) * sigma)[()]


def _inside(chance):
    return np.clip(chance, 1e-300, 1 - 1e-16)


def _of_threshold(p, atoms, threshold):
    """The largest rho with an attacked mean of at least the threshold, from below."""
    from scipy import special

    missing = 1 - p

    def sure(rho, rows):
        return _attacked(missing[rows], rho, atoms) >= threshold

    def excess(rho, rows):
        attacked = _inside(_attacked(missing[rows], rho, atoms, steps=48))
        return special.ndtri(attacked) - special.ndtri(threshold)

    return _largest(-special.ndtri(missing) - special.ndtri(threshold), sure, excess)


def _largest(high, sure, excess):
    """The largest rho that is sure, from below.

    Args:
        high: `float64[n]`, at least that: the one without tokens, of which tokens are a garbling.
        sure: `(rho, rows) -> bool[...]` for rows of the n.
        excess: `(rho, rows) -> float64[...]`, nearly a line that meets 0 there.
    """
    high = np.where(np.isfinite(high), np.maximum(high, 0), 100.0) * (1 + 1e-9)
    rows = np.arange(len(high))
    low, above = _root(high, lambda rho: excess(np.maximum(rho, LEAST), rows))
    found = low * (1 - 1e-10)
    wide = above - low > 1e-9 * above
    lost = rows[wide | ~sure(np.maximum(found, LEAST), rows)]
    if lost.size:
        found[lost] = _bisected(high[lost], lambda rho: sure(np.maximum(rho, LEAST), lost))
    return found * (1 - SLACK)


def _root(high, excess):
    """Ends between which the excess is 0, nearly, by regula falsi (Illinois).

    Between quantiles, which differ by rho without tokens, the curve is close to a line.
    """
    low = np.zeros(high.shape)
    at_low, at_high = excess(low), excess(high)
    side = np.zeros(high.shape)
    for _ in range(16):
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (low * at_high - high * at_low) / (at_high - at_low)
        # A little beyond the estimate, so that the other end comes near too.
        found = found + 2e-10 * high * side
        inside = (found > low) & (found < high)
        found = np.where(inside, found, (low + high) / 2)
        value = excess(found)
        above = value >= 0
        low, high = np.where(above, found, low), np.where(above, high, found)
        at_low = np.where(above, value, np.where(side == -1, at_low / 2, at_low))
        at_high = np.where(above, np.where(side == 1, at_high / 2, at_high), value)
        side = np.where(above, 1, -1)
        if np.all(high - low <= 1e-9 * high):
            break
    return low, high


def _bisected(high, sure):
    low = np.zeros(high.shape)
    for _ in range(STEPS):
        middle = (low + high) / 2
        holds = sure(middle)
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    return low


def _attacked(missing, rho, atoms, steps=STEPS):
    """V at F = 1 - missing, from below."""
    from scipy import special

    log_mass, log_ratio, _ = atoms
    mass, moved = np.exp(log_mass)[:, None], np.exp(log_mass + log_ratio)[:, None]
    shift = log_ratio[:, None] / rho
    total = mass.sum()
    share = np.clip(missing / total, 0, 1)  # of the finite atoms, from the top
    z = -special.ndtri(np.where(share > 0, share, 0.5))
    low, high = z + shift.min(0), z + shift.max(0)
    for _ in range(steps):
        middle = (low + high) / 2
        upper = (mass * special.ndtr(shift - middle)).sum(0)  # 1 - F on the finite atoms
        enough = upper >= missing * (1 + 1e-13)  # then u is at most the true one
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    found = (moved * special.ndtr(low - shift - rho)).sum(0) * (1 - SLACK)
    found = np.where(share >= 1, 0.0, found)
    return np.where(share <= 0, moved.sum() * (1 - SLACK), found)
