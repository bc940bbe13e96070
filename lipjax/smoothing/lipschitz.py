r"""Radii of smoothed functions that are Lipschitz before they are smoothed.

Let f take values in [0, 1] and be L-Lipschitz on the whole space, let $\tilde f(x) = E f(x + \sigma Z)$
and let c(p) be the quantile at p of $\sigma Z + U / L$ with U uniform on $[-1/2, 1/2]$. Then
$c(\tilde f(x))$ is 1-Lipschitz in x: along any line, of all such functions with mean p the ramp of slope
L changes fastest. So a score of at least $\underline p > 1/2$ stays above 1/2 within $c(\underline p)$,
and stays above one of at most $\overline p$ within half the distance of their quantiles. Without L the
quantile is $\sigma \Phi^{-1}(p)$, that of Cohen et al.; it is never larger.

The noise must be Gaussian on the whole space, as f is Lipschitz there. Rounded to the grid of images it
is not: a slope becomes steps, whose smoothed score can change faster. `IntegerGaussian.law_error` with
the constant says by how much a mean can be off; `soft.certify` takes it off.

The published certificate takes the local Lipschitz constant of $\Phi^{-1}(\tilde f)$ at x for the whole
ball, see `published_radius`: never larger than the exact one, and not even increasing in p.

Reference: Delattre et al. (2025), https://arxiv.org/abs/2504.02412. The exact form and its proof are
this library's; what is called published here was read off their code.
"""

import numpy as np

from lipjax import _checks
from lipjax.smoothing import _counts

NARROW = 1e-3
"""Below this width of the ramp, in units of sigma, a series is more exact than differences."""

WIDEST = 1e40
"""Larger widths `1 / (L sigma)` are taken for this, which is a larger constant: smaller radii."""

SMALLEST = 1e-300
"""Smaller chances, whose last digits floating-point numbers lack, are taken for this: smaller radii."""


def quantile(p, *, lipschitz, sigma) -> np.ndarray:
    """The quantile of `sigma Z + U / L`: a scale on which smoothed L-Lipschitz scores are 1-Lipschitz.

    Args:
        p: `float[...]`, probabilities. Those above 1/2 are used as `1 - p`.
        lipschitz: l2 constant of the score on the whole space, a positive number, inf, or an upper
            `Bound` such as `model.bound()`; `float[...]` too.
        sigma: Standard deviation of the noise, a number or `float[...]`.

    Returns:
        float64, odd about p = 1/2, at most the exact quantile in size and within a relative 1e-9 of it,
        for tails from 1e-300 on (smaller ones count as that); infinite at 0 and 1.

    Guarantee: rounded towards 0, so that a radius made of it alone is not too large. With `lipschitz`
    too small nothing is promised.

    Raises:
        ValueError: for p outside [0, 1], sigma or lipschitz not positive, a Bound that is not upper.

    >>> quantile(0.9, lipschitz=1.0, sigma=1.0).round(4)
    np.float64(1.3344)
    >>> quantile(0.9, lipschitz=float("inf"), sigma=1.0).round(4)
    np.float64(1.2816)
    """
    p, constant, sigma = _checked(lipschitz, sigma, p=p)
    tail = np.minimum(p, 1 - p)
    tail = np.where(tail > 0, np.maximum(tail, SMALLEST), 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        width = np.minimum(1 / constant / sigma, WIDEST)
    size = sigma * _upper_quantile(tail, width)
    return np.where(p >= 0.5, size, -size)[()]


def radius(p_lower, p_upper=None, *, lipschitz, sigma) -> np.ndarray:
    """The l2 radius within which a smoothed score stays the largest.

    Args:
        p_lower: `float[...]`, at most the smoothed score of the class.
        p_upper: `float[...]`, at least every other smoothed score; None means `1 - p_lower`, which
            holds where the scores of all classes sum to at most 1.
        lipschitz: l2 constant of every score, see `quantile`.
        sigma: Standard deviation of the noise.

    Returns:
        float64, rounded down; 0 where nothing is proved.

    Guarantee: at every point closer than the radius the smoothed score of the class is the largest, for
    scores in [0, 1] of that constant; at ties and for p_lower of at most 1/2 alone it is 0.

    Raises:
        ValueError: as `quantile`.

    >>> radius(0.9, 0.05, lipschitz=1.0, sigma=1.0).round(4)
    np.float64(1.5233)
    """
    p, constant, sigma = _checked(lipschitz, sigma, p_lower=p_lower)
    own = quantile(p, lipschitz=constant, sigma=sigma)
    if p_upper is None:
        return np.maximum(own, 0.0)[()]
    other, _, _ = _checked(lipschitz, sigma, p_upper=p_upper)
    _checks.broadcastable(p_lower=p, p_upper=other, sigma=sigma)
    # Of what is subtracted the larger size is the safe one.
    other = quantile(other, lipschitz=constant, sigma=sigma)
    other = np.where(other > 0, other * (1 + 1e-9), other)
    own = np.where(own < 0, own * (1 + 1e-9), own)
    with np.errstate(invalid="ignore"):
        gap = (own - other) / 2
    return np.where(gap > 0, gap * (1 - 1e-13), 0.0)[()]


def margin_radius(margin, *, lipschitz, sigma) -> np.ndarray:
    """The l2 radius within which the smoothed margin of two scores stays positive.

    `quantile((1 + margin) / 2)` for half of the constant: a margin in [-1, 1] is a score in [0, 1] of
    twice the range. Where the margin has no better constant than twice that of a score, `radius` of the
    two scores is at least this; margins of maps such as sparsemax have a better one.

    Args:
        margin: `float[...]` in [-1, 1], at most the smoothed score of the class less that of any other.
        lipschitz: l2 constant of every margin on the whole space, `sqrt(2) simplex.whole(...)` times
            that of the logits for example; as in `quantile`.
        sigma: Standard deviation of the noise, a number or `float[...]`.

    Returns:
        float64, rounded down; 0 where nothing is proved.

    Guarantee: at every point closer than the radius the smoothed margin is positive, for functions with
    values in [-1, 1] of that constant; never above the exact one, within a relative 1e-9 of it.

    Raises:
        ValueError: for a margin outside [-1, 1]; as `quantile`.

    >>> margin_radius(0.8, lipschitz=1.0, sigma=1.0).round(4)
    np.float64(1.4862)
    """
    _, constant, sigma = _checked(lipschitz, sigma, p=0.5)
    value = np.asarray(margin, np.float64)
    _checks.broadcastable(margin=value, lipschitz=constant, sigma=sigma)
    if not np.all((value >= -1) & (value <= 1)):
        raise ValueError(f"margin is {margin!r}; it must lie in [-1, 1].")
    # The sum is rounded to the nearest: one number less is safe.
    share = np.where(value < 1, np.nextafter((1 + value) / 2, 0.0), 1.0)
    return radius(share, lipschitz=constant / 2, sigma=sigma)


def smoothed(*, lipschitz, sigma, scores: str = "one", largest: float = 1.0) -> np.ndarray:
    """The l2 constant of a function after Gaussian smoothing.

    Args:
        lipschitz: l2 constant before, a positive number, inf, or an upper `Bound`; `float[...]` too.
        sigma: Standard deviation of the noise, a number or `float[...]`.
        scores: `"one"` for a function with values in `[0, largest]`, `"all"` for a vector of values of
            at least 0 with sum `largest`.
        largest: That number.

    Returns:
        float64, an upper bound: `L erf(r / (2 sqrt(2) L sigma))` for one and `L erf(r / (2 L sigma))`
        for all. At most L, and at most `r / (sigma sqrt(2 pi))` or `r / (sigma sqrt(pi))`. The constant
        of one is reached by ramps. (The published code has `L erf(r / (sqrt(2) L sigma))`, up to twice
        that.)

    Guarantee: at least the constant of the smoothed function, rounded up.

    Raises:
        ValueError: as `quantile`, and for another name or a number that is not positive.

    >>> smoothed(lipschitz=1.0, sigma=1.0).round(4)
    np.float64(0.3829)
    """
    from scipy import special

    _checks.one_of(("one", "all"), scores=scores)
    _checks.positive(largest=largest)
    _, constant, sigma = _checked(lipschitz, sigma, p=0.5)
    width = largest if scores == "one" else np.sqrt(2) * largest
    with np.errstate(over="ignore"):  # to infinity, which bounds nothing
        limit = width / np.sqrt(2 * np.pi) / sigma
        known = np.where(np.isinf(constant), 1.0, constant)
        ratio = width / (2 * np.sqrt(2)) / known / sigma  # the product of both may overflow
        found = np.where(np.isinf(constant) | (ratio < 1e-8), limit, known * special.erf(ratio))
        return np.nextafter(np.minimum(found, limit) * (1 + 1e-13), np.inf)[()]


def published_radius(p_lower, p_upper=None, *, lipschitz, sigma) -> np.ndarray:
    """The published approximation of `radius`, for comparison; arguments as there.

    It divides the quantile of Cohen et al. by the Lipschitz constant of `Phi^-1` of the smoothed score
    at p itself. Cut off at `radius`, which it exceeds by rounding at most.

    >>> bool(published_radius(0.99993, lipschitz=0.2, sigma=0.25) < 0.4 * radius(0.99993,
    ...     lipschitz=0.2, sigma=0.25))
    True
    """
    own = _published(p_lower, lipschitz, sigma)
    if p_upper is None:
        return np.maximum(own, 0.0)[()]
    with np.errstate(invalid="ignore"):  # of two certain scores
        gap = (own - _published(p_upper, lipschitz, sigma)) / 2
    exact = radius(p_lower, p_upper, lipschitz=lipschitz, sigma=sigma)
    return np.clip(np.where(np.isnan(gap), 0.0, gap), 0.0, np.maximum(exact, 0.0))[()]


def _published(p, lipschitz, sigma):
    """What the published code takes for the quantile at p, odd about 1/2."""
    from scipy import special

    p, constant, sigma = _checked(lipschitz, sigma, p=p)
    above = np.maximum(p, 1 - p)
    exact = quantile(above, lipschitz=constant, sigma=sigma)
    z = special.ndtri(above)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slope = _density(np.abs(exact / sigma), 1 / (constant * sigma)) / _normal(z)
        found = sigma * z / slope
    found = np.where(np.isnan(found), exact, found)  # p is 0 or 1
    # Where a constant tells nothing both are Cohen's, and this one is not rounded down.
    found = np.clip(found, 0.0, np.maximum(exact, 0.0))
    return np.where(p >= 0.5, found, -found)


def _upper_quantile(q, width):
    """`t >= 0` with `P(Z + width U > t) >= q`, for q at most 1/2, from below."""
    q, width = np.broadcast_arrays(q, width)
    found = np.zeros(q.shape)
    near = q > 0.4
    found[near] = _central_quantile(0.5 - q[near], width[near])
    found[~near] = _far_quantile(q[~near], width[~near])
    return found


def _central_quantile(gap, width):
    """`t >= 0` with `P(0 < Z + width U < t) <= gap`, by Newton's method from the left.

    The chance is concave in t: its tangents reach the gap no later.
    """
    nodes, weights = np.polynomial.legendre.leggauss(16)
    nodes, weights = (nodes + 1) / 2, weights / 2
    at = width[:, None]
    t = gap / _density(np.zeros(gap.shape), width)
    for _ in range(6):
        chance = t * (_density(t[:, None] * nodes, at) * weights).sum(-1)
        t = t + np.maximum(gap - chance, 0) / _density(t, width)
    return t * (1 - 1e-11)


def _far_quantile(q, width):
    """`t >= 0` with `P(Z + width U > t) >= q`, as large as bisection finds it."""
    from scipy import special

    with np.errstate(invalid="ignore"):
        low = np.maximum(-special.ndtri(q), 0.0)
    high = low + width / 2
    target = q * (1 + 1e-12)
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(invalid="ignore"):  # of probabilities 0, whose quantile is infinite
            inside = _tail(middle, width) >= target
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.where(q == 0, np.inf, low * (1 - 1e-12))


def _density(t, width):
    """The density of `Z + width U` at t of at least 0, in full relative precision."""
    from scipy import special

    wide = np.maximum(width, NARROW)
    difference = (special.ndtr(wide / 2 - t) - special.ndtr(-wide / 2 - t)) / wide
    series = _normal(t) * (1 + width * width / 24 * (t * t - 1))
    return np.where(width < NARROW, series, difference)


def _normal(t):
    return np.exp(-t * t / 2) / np.sqrt(2 * np.pi)


def _tail(t, width):
    """`P(Z + width U > t)` for t at least 0, in full relative precision."""
    from scipy import special

    phi = _normal(t)
    w2 = width * width
    series = special.ndtr(-t) + w2 / 24 * t * phi + w2 * w2 / 1920 * (t**3 - 3 * t) * phi
    wide = np.maximum(width, NARROW)
    difference = (_loss(t - wide / 2) - _loss(t + wide / 2)) / wide
    return np.where(width < NARROW, series, difference)


def _loss(x):
    """`E max(Z - x, 0) = phi(x) - x Phi(-x)`, also far out, where the two cancel."""
    from scipy import special

    phi = _normal(x)
    far = np.maximum(x, 1.0)
    ratio = np.sqrt(np.pi / 2) * special.erfcx(far / np.sqrt(2))
    return np.where(x > 1, phi * (1 - far * ratio), phi - x * special.ndtr(-x))


def _checked(lipschitz, sigma, **named):
    constant = np.asarray(_counts.constant(lipschitz), np.float64)
    if not np.all(constant > 0):
        raise ValueError(f"lipschitz is {lipschitz!r}; it must be above 0 (inf is allowed).")
    _checks.positive(sigma=sigma)
    ((name, p),) = named.items()
    _checks.within(0.0, 1.0, **{name: p})
    value = np.asarray(p, np.float64)
    sigma = np.asarray(sigma, np.float64)
    _checks.broadcastable(**{name: value}, lipschitz=constant, sigma=sigma)
    return value, constant, sigma
