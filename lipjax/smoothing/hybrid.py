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
from lipjax.smoothing.discrete import SLACK, worst_case
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
        info: `p_lower`, `p_upper` and the ledger of alpha.
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
    (0, 2, [1.408, 1.321, 1.225])
    """
    _checks.integer(0, max_edits=max_edits)
    found = multiclass.certify(
        selection, estimation, sigma=sigma, alpha=alpha, budget=budget, law_error=law_error
    )
    own, other = found.info["p_lower"], found.info["p_upper"]
    radii, kept = [], []
    for d in range(max_edits + 1):
        left = worst_case(own, kernel=kernel, num_edits=d)
        rest = worst_case(1 - other, kernel=kernel, num_edits=d)
        kept.append(left + rest > 1)
        radii.append(radius(own, other, kernel=kernel, num_edits=d, sigma=sigma))
    kept = np.logical_and.accumulate(np.stack(kept, -1), -1)
    radii = np.minimum.accumulate(np.stack(radii, -1), -1) * kept
    best = _counts.chosen(np.asarray(selection))[..., 0]
    prediction = np.where(kept[..., 0], best, ABSTAIN).astype(np.int32)
    edits = kept.sum(-1).astype(np.int32) - 1
    return HybridCertificate(prediction, radii, edits, found.info)


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
    p = np.asarray(p_lower, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p_lower is {p_lower!r}; it must lie in [0, 1].")
    if p_upper is not None:
        return _of_classes(p, p_upper, kernel, num_edits, sigma)
    unique, place = np.unique(p, return_inverse=True)  # counts repeat
    left = worst_case(unique, kernel=kernel, num_edits=num_edits)
    found = np.zeros(unique.shape)
    alive = left >= threshold
    if alive.any():
        atoms = kernel.atoms(num_edits)
        found[alive] = _largest(unique[alive], atoms, threshold)
    return (found[place].reshape(p.shape) * np.asarray(sigma, np.float64))[()]


def curve(p_lower, *, kernel, max_edits: int, sigma, threshold: float = 0.5) -> np.ndarray:
    """`radius` for every number of edits from 0 to `max_edits`: `float64[..., max_edits + 1]`.

    All of them hold together where `p_lower` does: one bound, one alpha.

    >>> from lipjax.smoothing.kernels import Mask
    >>> curve(0.999, kernel=Mask(0.9), max_edits=2, sigma=0.5).round(3).tolist()
    [1.545, 1.46, 1.364]
    """
    _checks.integer(0, max_edits=max_edits)
    options = dict(kernel=kernel, sigma=sigma, threshold=threshold)
    found = [radius(p_lower, num_edits=d, **options) for d in range(max_edits + 1)]
    return np.minimum.accumulate(np.stack(found, -1), -1)


def _of_classes(p, p_upper, kernel, num_edits, sigma):
    """Where the smallest attacked mean of one meets the largest of the others."""
    from scipy import special

    q = np.asarray(p_upper, np.float64)
    if not np.all((q >= 0) & (q <= 1)):
        raise ValueError(f"p_upper is {p_upper!r}; it must lie in [0, 1].")
    p, q, sigma = np.broadcast_arrays(p, q, np.asarray(sigma, np.float64))
    own, rest, scale = p.reshape(-1), 1 - q.reshape(-1), sigma.reshape(-1)
    left = worst_case(own, kernel=kernel, num_edits=num_edits)
    other = worst_case(rest, kernel=kernel, num_edits=num_edits)
    alive = left + other > 1
    found = np.zeros(own.shape)
    if alive.any():
        own, rest = own[alive], rest[alive]
        atoms = kernel.atoms(num_edits)
        low = np.zeros(own.shape)
        high = (-special.ndtri(1 - own) - special.ndtri(1 - rest)) / 2  # without tokens
        high = np.where(np.isfinite(high), np.maximum(high, 0), 100.0) * (1 + 1e-9)
        for _ in range(STEPS):
            middle = np.maximum((low + high) / 2, LEAST)
            sure = _attacked(own, middle, atoms) + _attacked(rest, middle, atoms) > 1
            low, high = np.where(sure, middle, low), np.where(sure, high, middle)
        found[alive] = low * (1 - SLACK)
    return (found * scale).reshape(p.shape)[()]


def _largest(p, atoms, threshold):
    """The largest rho with an attacked mean of at least the threshold, from below."""
    from scipy import special

    # Without tokens nothing is larger: a garbling.
    high = -special.ndtri(1 - p) - special.ndtri(threshold)
    high = np.where(np.isinf(high), 100.0, np.maximum(high, 0)) * (1 + 1e-9)
    found = _root(p, high, atoms, threshold) * (1 - 1e-10)
    sure = _attacked(p, np.maximum(found, LEAST), atoms) >= threshold
    if not sure.all():
        found[~sure] = _bisected(p[~sure], high[~sure], atoms, threshold)
    return found * (1 - SLACK)


def _root(p, high, atoms, threshold):
    """Where the attacked mean meets the threshold, by regula falsi (Illinois), nearly.

    Between quantiles, which differ by rho without tokens, the curve is close to a line.
    """
    from scipy import special

    def excess(rho):
        attacked = _attacked(p, np.maximum(rho, LEAST), atoms, steps=48)
        return special.ndtri(np.clip(attacked, 1e-300, 1 - 1e-16)) - special.ndtri(threshold)

    low = np.zeros(p.shape)
    at_low, at_high = excess(low), excess(high)
    found, side = low.copy(), np.zeros(p.shape)
    for _ in range(12):
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (low * at_high - high * at_low) / (at_high - at_low)
        inside = (found > low) & (found < high)
        found = np.where(inside, found, (low + high) / 2)
        value = excess(found)
        above = value >= 0
        low, high = np.where(above, found, low), np.where(above, high, found)
        at_low = np.where(above, value, np.where(side == -1, at_low / 2, at_low))
        at_high = np.where(above, np.where(side == 1, at_high / 2, at_high), value)
        side = np.where(above, 1, -1)
    return found


def _bisected(p, high, atoms, threshold):
    low = np.zeros(p.shape)
    for _ in range(STEPS):
        middle = (low + high) / 2
        sure = _attacked(p, np.maximum(middle, LEAST), atoms) >= threshold
        low, high = np.where(sure, middle, low), np.where(sure, high, middle)
    return low


def _attacked(p, rho, atoms, steps=STEPS):
    """V at F = p, from below."""
    from scipy import special

    log_mass, log_ratio, _ = atoms
    mass, moved = np.exp(log_mass)[:, None], np.exp(log_mass + log_ratio)[:, None]
    shift = log_ratio[:, None] / rho
    missing = 1 - p  # of the finite atoms, from the top
    total = mass.sum()
    share = np.clip(missing / total, 0, 1)
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
