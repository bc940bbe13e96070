r"""Certificates of a classifier under Gaussian noise, from counts of its votes.

With $p_A$ the chance that the vote at $x + \sigma Z$ is A, the vote of the smoothed classifier is A
within $\sigma\,\Phi^{-1}(p_A)$ of x. A is chosen on one sample, `selection`, and $p_A$ bounded on
another, `estimation`, so that the bound alone can fail.

Counts come from `lipjax.smoothing.sampling`; x and the radius are in the units in which the noise was
added, before any normalization.

Reference: Cohen, Rosenfeld, Kolter (2019), https://arxiv.org/abs/1902.02918.
"""

import numpy as np

from lipjax import _checks
from lipjax.smoothing import _counts, confidence
from lipjax.typing import ABSTAIN, Certificate


def certify(
    selection,
    estimation,
    *,
    sigma,
    alpha: float,
    law_error: float = 0.0,
    num_samples: int | None = None,
) -> Certificate:
    """The class and a radius that it holds within, or ABSTAIN; the CERTIFY of the paper.

    Args:
        selection: `int[..., K]`, votes of a first sample, which choose the class (ties: the first).
        estimation: `int[..., K]`, votes of a second, independent one.
        sigma: Standard deviation of the noise, a number or `float[...]`, for each input of the batch.
        alpha: Chance, for each input, that the certificate is wrong.
        law_error: Of the noise, see `lipjax.smoothing.noise`; taken off the chance of the class.
        num_samples: Of the estimation, if its rows are to be checked against it: with samples left out
            of the counts nothing is proved.

    Returns:
        `Certificate` with float64 NumPy radii; `info` has `p_lower` and the ledger of alpha.

    Guarantee: with probability at least `1 - alpha` over the samples, either it abstains or the
    smoothed classifier is `prediction` everywhere closer than `radius`. The radius is rounded down.

    Raises:
        ValueError: for counts that are no integers, negative, all zero, of different shapes or do not
            sum to `num_samples`, one class, alpha outside (0, 1), sigma not positive or of another
            batch.

    >>> found = certify([100, 0], [99_000, 1_000], sigma=0.5, alpha=0.001)
    >>> int(found.prediction), float(found.radius.round(4))
    (0, 1.145)
    """
    from scipy import special

    selection, estimation = _counts.checked(2, selection=selection, estimation=estimation)
    alpha, sigma = _counts.levels(alpha, sigma)
    _counts.check_batch(selection.shape[:-1], sigma=sigma)
    _counts.check_sums(num_samples, estimation=estimation)
    best = _counts.chosen(selection)
    votes = np.take_along_axis(estimation, best, -1)[..., 0]
    failure = confidence.failure(votes, estimation.sum(-1), alpha=alpha)
    failure = _counts.less_sure(failure, law_error)
    radius = sigma * -special.ndtri(failure)
    info = {"p_lower": _counts.rest(failure), "ledger": {"the class is less likely": alpha}}
    return _counts.certificate(best[..., 0], radius, info)


def radius_table(trials: int, *, sigma, alpha: float, law_error: float = 0.0) -> np.ndarray:
    """`float32[trials + 1]`: the radius of `certify` for every count of the class, 0 where it abstains.

    Rounded down, so that a program on a device turns counts into radii by indexing.

    >>> table = radius_table(1000, sigma=0.5, alpha=0.001)
    >>> found = certify([10, 0], [990, 10], sigma=0.5, alpha=0.001)
    >>> table.shape, bool(0 <= found.radius - table[990] < 1e-6)
    ((1001,), True)
    """
    _checks.integer(1, trials=trials)
    votes = np.arange(trials + 1)
    counts = np.stack([votes, trials - votes], -1)
    first = np.broadcast_to([1, 0], counts.shape)
    options = dict(sigma=sigma, alpha=alpha, law_error=law_error)
    exact = certify(first, counts, **options).radius
    narrow = exact.astype(np.float32)
    return np.where(narrow > exact, np.nextafter(narrow, np.float32(0)), narrow)


def predict(counts, *, alpha: float) -> np.ndarray:
    """The class of the smoothed classifier, or ABSTAIN; the PREDICT of the paper.

    Args:
        counts: `int[..., K]`, votes.
        alpha: Chance, for each input, that a class is returned that is not the most likely.

    Returns:
        `int32[...]`.

    Guarantee: a two-sided test of the two leading classes against each other at level alpha (Hung
    and Fithian 2019 prove it for leaders found on the same votes).

    >>> predict([560, 440], alpha=0.001).item(), predict([60, 40], alpha=0.001).item()
    (0, -1)
    """
    from scipy import special

    (counts,) = _counts.checked(2, counts=counts)
    alpha, _ = _counts.levels(alpha, 1.0)
    second, first = np.moveaxis(np.sort(counts, axis=-1)[..., -2:], -1, 0)
    tail = np.where(first > 0, special.betainc(np.maximum(first, 1), second + 1, 0.5), 1.0)
    sure = np.minimum(1.0, 2 * tail) <= alpha
    return np.where(sure, np.argmax(counts, axis=-1), ABSTAIN).astype(np.int32)
