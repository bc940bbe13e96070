"""From certificates of many inputs to what is reported of them."""

from typing import NamedTuple

import numpy as np

from lipjax import _checks


class Curve(NamedTuple):
    """Certified accuracy against radius, float64 arrays of one length.

    Attributes:
        radius: Radii.
        certified: Share of the inputs with the right class and at least that radius (strictly more than
            0 at radius 0: an abstention is wrong).
        these: Lower bound on the share of these very inputs that are right everywhere closer than that,
            which accounts for certificates that are wrong.
        lower: As `certified`, of the distribution that the inputs were drawn from: lower bound,
        upper: and upper bound.
    """

    radius: np.ndarray
    certified: np.ndarray
    these: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def curve(radii, correct, at, *, alpha: float, level: float = 0.001) -> Curve:
    """Certified accuracy at some radii, with bounds.

    Args:
        radii: `float[N]`, certified radii; 0 for an abstention.
        correct: `bool[N]`, whether the class is the true one.
        at: `float[R]`, where to evaluate, at least 0.
        alpha: Chance of a wrong certificate that each was made with; 0 for deterministic ones.
        level: Chance that a bound fails, for each radius and side by itself.

    Guarantee: `these`, `lower` and `upper` each fail with probability at most `level` at each radius.

    Reference: the bound `these` is that of Cohen, Rosenfeld, Kolter (2019),
    https://arxiv.org/abs/1902.02918, Bernstein's inequality for the number of wrong certificates;
    `lower` and `upper` are Clopper and Pearson's.

    >>> found = curve(np.array([0.5, 1.0, 0.0, 2.0]), np.array([1, 1, 0, 1]), [0.0, 0.75], alpha=0.001)
    >>> found.certified.tolist()
    [0.75, 0.5]
    """
    from lipjax.smoothing.confidence import clopper_pearson

    radii, correct = _certified(radii, correct)
    at = np.atleast_1d(np.asarray(at, np.float64))
    _checks.nonnegative(at=at)
    _checks.ranked(0, "one number", alpha=alpha, level=level)
    _checks.within(0.0, 0.999999, alpha=alpha)
    _checks.positive(level=level)
    if not level < 1:
        raise ValueError(f"level is {level!r}; it must be a number strictly between 0 and 1.")
    alpha = float(alpha)
    inside = correct & (radii > 0) & (radii >= at[:, None])
    count, size = inside.sum(1), radii.size
    interval = clopper_pearson(count, size, alpha=level)
    log = -np.log(float(level))
    wrong = alpha + np.sqrt(2 * alpha * (1 - alpha) * log / size) + log / (3 * size)
    these = np.maximum(count / size - (wrong if alpha else 0.0), 0.0)
    return Curve(at, count / size, these, interval.lower, interval.upper)


def mean_radius(radii, correct) -> float:
    """Mean of the radii, wrong classes and abstentions as 0.

    To be read with the curve: a few easy inputs with large radii can make up for many that are lost
    (Sun et al. 2024, https://arxiv.org/abs/2410.06895). Arguments are refused as by `curve`.

    >>> mean_radius([0.5, 1.0], [True, False])
    0.25
    """
    radii, correct = _certified(radii, correct)
    return float(np.mean(np.where(correct, radii, 0.0)))


def implied_alpha(largest_radius, *, sigma: float, num_samples: int) -> float:
    """The alpha of Cohen's certificate with that largest radius, if all samples agreed.

    Published results name an alpha; their largest radius over sigma tells which one was used.

    >>> round(implied_alpha(3.9105, sigma=1.0, num_samples=100_000), 3)
    0.01
    """
    from scipy import special

    _checks.ranked(0, "one number", sigma=sigma, largest_radius=largest_radius)
    _checks.positive(sigma=sigma, largest_radius=largest_radius)
    _checks.integer(1, num_samples=num_samples)
    return float(np.exp(num_samples * special.log_ndtr(largest_radius / sigma)))


def _certified(radii, correct):
    radii, right = np.asarray(radii, np.float64), np.asarray(correct)
    correct = right.astype(bool)
    if not np.array_equal(correct, right):
        raise ValueError(
            f"correct is {right!r}; it must be true or false for each input, as prediction == label."
        )
    if radii.ndim != 1 or radii.shape != correct.shape or not radii.size:
        raise ValueError(
            f"radii has shape {radii.shape} and correct {correct.shape}; both must be [N], N at least 1."
        )
    _checks.nonnegative(radii=radii)
    return radii, correct
