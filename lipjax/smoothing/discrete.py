r"""What is left of a probability when tokens are changed.

With noise on tokens, `lipjax.smoothing.kernels`, the worst function with a clean mean of at least p puts
its mass where the likelihood ratio is smallest: a fractional knapsack (Neyman and Pearson).

Reference: Lee et al. (2019), https://arxiv.org/abs/1906.04948; Delattre et al. (2026),
https://arxiv.org/abs/2605.12876.
"""

import numpy as np

from lipjax import _checks
from lipjax.smoothing import _counts, multiclass
from lipjax.smoothing._counts import rest as rest
from lipjax.smoothing.kernels import check_edits
from lipjax.typing import ABSTAIN, Certificate

SLACK = 1e-12
"""Relative, by which a result is moved to the safe side, for each ten edits: logarithms of factorials
are good to a few roundings of their size."""


def certify(
    selection,
    estimation,
    *,
    kernel,
    alpha: float,
    max_edits: int,
    budget: str = "auto",
    law_error: float = 0.0,
    num_samples: int | None = None,
) -> Certificate:
    """The class and the number of tokens that may change without changing it, or ABSTAIN.

    Args:
        selection: `int[..., K]`, votes of a first sample; they choose the class and the levels.
        estimation: `int[..., K]`, votes of a second, independent one.
        kernel: Noise on the tokens, one of `lipjax.smoothing.kernels`.
        alpha: Chance, for each input, that the certificate is wrong.
        max_edits: The largest number of changed tokens that is asked for.
        budget: How alpha is spent on the classes, see `lipjax.smoothing.multiclass.certify`.
        law_error: Of the noise, see `lipjax.smoothing.noise`; taken off every chance.
        num_samples: Of the estimation, if its rows are to be checked against it.

    Returns:
        `Certificate` whose `radius`, `float64[...]`, is a whole number of tokens, at most `max_edits`; 0
        certifies the input alone. `info` as of `multiclass.certify`.

    Guarantee: with probability at least `1 - alpha` over the samples, it abstains or the smoothed
    classifier is `prediction` for all inputs with at most `radius` tokens changed.

    Raises:
        ValueError: as `lipjax.smoothing.multiclass.certify` and `worst_case`.

    >>> from lipjax.smoothing.kernels import Mask
    >>> found = certify([100, 0], [9_990, 10], kernel=Mask(0.9), alpha=0.001, max_edits=9)
    >>> int(found.prediction), float(found.radius)
    (0, 6.0)
    """
    check_edits(kernel, max_edits=max_edits)
    options = dict(alpha=alpha, budget=budget, law_error=law_error, num_samples=num_samples)
    found = multiclass.bounds(selection, estimation, **options)
    own = rest(found.failure)
    kept = hold(own, found.others, kernel=kernel, max_edits=max_edits).any(0)
    best = _counts.chosen(np.asarray(selection))[..., 0]
    prediction = np.where(kept[..., 0], best, ABSTAIN).astype(np.int32)
    edits = np.maximum(kept.sum(-1) - 1, 0).astype(np.float64)
    return Certificate(prediction, edits, found.info())


def hold(p_lower, p_upper, *, kernel, max_edits: int) -> np.ndarray:
    """Whether a class stays the likelier one, for every number of edits up to `max_edits`.

    Args:
        p_lower: `float[...]`, at most the chance of the class.
        p_upper: `float[...]`, at least that of every other one.

    Returns:
        `bool[..., max_edits + 1]`, once false then false.

    >>> from lipjax.smoothing.kernels import Mask
    >>> hold(0.9, 0.1, kernel=Mask(0.5), max_edits=2).tolist()
    [True, False, False]
    """
    check_edits(kernel, max_edits=max_edits)
    _checks.within(0.0, 1.0, p_lower=p_lower, p_upper=p_upper)
    kept = [
        worst_case(p_lower, kernel=kernel, num_edits=d)
        + worst_case(rest(p_upper), kernel=kernel, num_edits=d)
        > 1
        for d in range(max_edits + 1)
    ]
    return np.logical_and.accumulate(np.stack(kept, -1), -1)


def worst_case(p_lower, *, kernel, num_edits: int) -> np.ndarray:
    """The smallest mean, after an attack, of any function in [0, 1] whose clean mean is at least p.

    Args:
        p_lower: `float[...]` in [0, 1], at most the clean mean, such as a confidence bound.
        kernel: `lipjax.smoothing.kernels.Uniform`, `Mask` or `Ablation`.
        num_edits: Number of tokens that the attack may change. Fewer never do more.

    Returns:
        float64, rounded down, at least 0.

    Guarantee: no function in [0, 1] whose clean mean is at least p has a smaller mean after at most
    `num_edits` changes; up to the rounding downwards some function has just this one.

    Raises:
        ValueError: for p outside [0, 1], an unknown kernel, or a bad number of edits.

    >>> from lipjax.smoothing.kernels import Uniform
    >>> worst_case(0.99, kernel=Uniform(0.25, 30_000), num_edits=1).round(4)
    np.float64(0.24)
    """
    p = np.asarray(p_lower, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p_lower is {p_lower!r}; it must lie in [0, 1].")
    check_edits(kernel, num_edits=num_edits)
    if num_edits == 0:
        return p[()]
    log_mass, log_ratio, lost = kernel.atoms(num_edits)
    mass, moved = np.exp(log_mass), np.exp(log_mass + log_ratio)
    # From below where little is left to fill, from above where little is missing.
    budget = np.maximum(p - lost, 0)[..., None]
    before = np.cumsum(mass) - mass
    low = (_share(budget - before, mass) * moved).sum(-1)
    after = np.cumsum(mass[::-1])[::-1] - mass
    high = (moved * (1 - _share((1 - p)[..., None] - after, mass))).sum(-1)
    found = np.where(p > 0.5, high, low)
    slack = SLACK * (1 + num_edits / 10)
    return (np.maximum(found * (1 - slack) - slack * (found > 0) * 1e-3, 0.0))[()]


def _share(room, mass):
    """How much of each atom there is room for, also of those whose mass is too small for a number."""
    size = np.where(mass > 0, mass, 1)
    with np.errstate(over="ignore"):  # atoms much smaller than what is left for them
        return np.where(mass > 0, np.clip(room / size, 0, 1), room > 0)
