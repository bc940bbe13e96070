r"""What is left of a probability when tokens are changed.

With noise on tokens, `lipjax.smoothing.kernels`, the worst function with a clean mean of at least p puts
its mass where the likelihood ratio is smallest: a fractional knapsack (Neyman and Pearson).

Reference: Lee et al. (2019), https://arxiv.org/abs/1906.04948; Delattre et al. (2026),
https://arxiv.org/abs/2605.12876.
"""

import numpy as np

from lipjax import _checks

SLACK = 1e-12
"""Relative, by which a result is moved to the safe side: sums and logarithms are good to 1e-14."""


def worst_case(p_lower, *, kernel, num_edits: int) -> np.ndarray:
    """The smallest mean, after an attack, of any function in [0, 1] whose clean mean is at least p.

    Args:
        p_lower: `float[...]` in [0, 1], at most the clean mean, such as a confidence bound.
        kernel: `lipjax.smoothing.kernels.Uniform`, `Mask` or `Ablation`.
        num_edits: Number of tokens that the attack may change. Fewer never do more.

    Returns:
        float64, rounded down, at least 0.

    Raises:
        ValueError: for p outside [0, 1], an unknown kernel, or a bad number of edits.

    >>> from lipjax.smoothing.kernels import Uniform
    >>> worst_case(0.99, kernel=Uniform(0.25, 30_000), num_edits=1).round(4)
    np.float64(0.24)
    """
    p = np.asarray(p_lower, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p_lower is {p_lower!r}; it must lie in [0, 1].")
    if not hasattr(kernel, "atoms"):
        raise ValueError(f"kernel is {kernel!r}; it must be one of lipjax.smoothing.kernels.")
    _checks.integer(0, num_edits=num_edits)
    if num_edits == 0:
        return p[()]
    log_mass, log_ratio, lost = kernel.atoms(num_edits)
    mass, moved = np.exp(log_mass), np.exp(log_mass + log_ratio)
    # From below where little is left to fill, from above where little is missing.
    budget = np.maximum(p - lost, 0)[..., None]
    before = np.cumsum(mass) - mass
    size = np.where(mass > 0, mass, 1)
    with np.errstate(over="ignore"):  # atoms much smaller than what is left for them
        filled = np.clip((budget - before) / size, 0, 1)
    low = (filled * moved).sum(-1)
    after = np.cumsum(mass[::-1])[::-1] - mass
    with np.errstate(over="ignore"):
        missing = np.clip(((1 - p)[..., None] - after) / size, 0, 1)
    high = (moved * (1 - missing)).sum(-1)
    found = np.where(p > 0.5, high, low)
    return (np.maximum(found * (1 - SLACK) - SLACK * (found > 0) * 1e-3, 0.0))[()]
