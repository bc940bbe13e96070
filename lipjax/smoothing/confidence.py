r"""Confidence bounds on a mean, each one-sided at its level.

Every function returns an `Interval` whose `lower` and `upper` each fail with probability at most
`alpha`, over the samples: together they fail with probability at most `2 alpha`. What certificates
spend of their own `alpha` on which of them is their ledger's business.

They run in float64 on the host: float32 loses half of the digits of an incomplete beta function at a
million samples. For programs on a device there is `failure_table`, the bound for every count.

Near one, a probability has no digits left for what matters, the chance of failure: `failure` returns
that, an upper bound on `1 - p`, in full precision.

References: Clopper, Pearson (1934), https://doi.org/10.1093/biomet/26.4.404; Chernoff (1952),
https://doi.org/10.1214/aoms/1177729330; Hoeffding (1963),
https://doi.org/10.1080/01621459.1963.10500830; Maurer, Pontil (2009), https://arxiv.org/abs/0907.3740.
"""

from typing import NamedTuple

import numpy as np

from lipjax import _checks
from lipjax.smoothing import _counts

MARGIN = 1e-12
"""Relative, by which bounds are moved outwards, for the rounding of what they were checked with."""
LEAST = 1e-200
"""Levels below it bound no count: chances of events as rare are lost to underflow."""


class Interval(NamedTuple):
    """Bounds, each of which holds with probability `1 - alpha` by itself.

    Attributes:
        lower: float64, at most the truth.
        upper: float64, at least the truth.
    """

    lower: np.ndarray
    upper: np.ndarray


def clopper_pearson(successes, trials, *, alpha: float) -> Interval:
    """Exact bounds on a probability from a count (Clopper and Pearson 1934).

    Args:
        successes: `int[...]`, from 0 to `trials`.
        trials: `int[...]`, at least 1.
        alpha: Level of each side, in (0, 1), a number or an array.

    Guarantee: `P(lower > p) <= alpha` and `P(upper < p) <= alpha` for every p. Outwards of the exact
    bounds, by a relative 1e-12 for up to 10^6 trials and 1e-9 for up to 2^31; near 1, where `1 - lower`
    has that precision, also by the rounding of `lower` itself. No success gives 0, no failure 1. At a
    level below 1e-200 the bounds are 0 and 1.

    Raises:
        ValueError: for counts that are no integers or out of range, alpha outside (0, 1).

    >>> found = clopper_pearson(990, 1000, alpha=0.001)
    >>> float(found.lower.round(4)), float(found.upper.round(4))
    (0.976, 0.997)
    """
    k, n = _counted(successes, trials)
    k, n, level = np.broadcast_arrays(k, n, _levels(alpha=alpha))
    lower = np.array(_lower(k, n, level))
    near = lower > 0.5
    lower[near] = _counts.rest(_upper((n - k)[near], n[near], level[near]))
    return Interval(lower[()], _upper(k, n, level))


def failure(successes, trials, *, alpha: float) -> np.ndarray:
    """Upper bound on `1 - p` at level alpha, in full precision near 0.

    Arguments, guarantee and errors as `clopper_pearson`, whose lower bound is one minus this.

    >>> failure(100_000, 100_000, alpha=0.001).round(9)
    np.float64(6.9075e-05)
    """
    k, n = _counted(successes, trials)
    level = _levels(alpha=alpha)
    _checks.broadcastable(successes=k, trials=n, alpha=level)
    return _upper(n - k, n, level)


def failure_table(trials: int, *, alpha: float, dtype=np.float32) -> np.ndarray:
    """`float[trials + 1]`: `failure` for every count, rounded up to float32, or in float64 as it is.

    Sent to a device once it turns counts into bounds by indexing; for radii there is
    `lipjax.smoothing.gaussian.radius_table`.

    >>> table = failure_table(100, alpha=0.001)
    >>> table.shape, bool(0 <= table[90] - failure(90, 100, alpha=0.001) < 1e-7)
    ((101,), True)
    """
    _checks.integer(1, trials=trials)
    _checks.ranked(0, "one number", alpha=alpha)
    return _up(failure(np.arange(trials + 1), trials, alpha=alpha), dtype)


def _up(exact, dtype) -> np.ndarray:
    """The next number of that type at or above, at most 1."""
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype is {name}; it must be float32 or float64.")
    if np.dtype(dtype) == np.float64:
        return exact
    narrow = exact.astype(np.float32)
    up = np.nextafter(narrow, np.float32(2))
    return np.minimum(np.where(narrow < exact, up, narrow), np.float32(1))


def failure_in_jit(successes, trials, *, alpha: float):
    """`failure` as a JAX function of counts, for jit and vmap: the host is called back.

    Arguments and errors as `failure`, but counts that are traced are not seen: out of range they give 1.

    Returns:
        `float32[...]`, rounded up, so never below the exact bound, and above it by one rounding at most;
        float64 where `jax_enable_x64` is set.
        A device that cannot call the host back looks counts up in `failure_table`.

    >>> import jax
    >>> bool(jax.jit(lambda k: failure_in_jit(k, 1000, alpha=0.001))(990) >= failure(990, 1000,
    ...     alpha=0.001))
    True
    """
    import jax
    import jax.numpy as jnp

    if isinstance(alpha, jax.core.Tracer):
        raise ValueError(f"alpha is {alpha}; it must be known outside of jit.")
    _levels(alpha=alpha)
    for name, value in (("successes", successes), ("trials", trials)):
        if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise ValueError(f"{name} has dtype {jnp.result_type(value)}; counts are integers.")
    shape = jnp.broadcast_shapes(jnp.shape(successes), jnp.shape(trials), np.shape(alpha))

    # Of one shape before the call: vmap puts its axes first, and each must find its own.
    successes, trials = (jnp.broadcast_to(a, shape) for a in (successes, trials))

    def on_host(k, n):
        k, n = np.asarray(k), np.asarray(n)
        known = (n >= 1) & (k >= 0) & (k <= n)
        exact = failure(np.where(known, k, 0), np.where(known, n, 1), alpha=alpha)
        return _up(exact, dtype)

    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    made = jax.ShapeDtypeStruct(shape, dtype)
    return jax.pure_callback(on_host, made, successes, trials, vmap_method="broadcast_all")


def randomized_clopper_pearson(successes, trials, uniform, *, alpha: float) -> Interval:
    """Exact bounds that use a random number to waste nothing of alpha.

    Args:
        successes: `int[...]`, from 0 to `trials`.
        trials: `int[...]`, at least 1.
        uniform: `float[...]` in (0, 1), drawn once for this bound, independently of the samples and
            before they are looked at. Trying several is cheating: store the one that was used.
        alpha: Level of each side, in (0, 1), a number or an array.

    Returns:
        Bounds inside those of `clopper_pearson`.

    Guarantee: each side fails with probability exactly alpha over samples and `uniform`, up to 1e-10. At
    a level below 1e-200 the bounds are 0 and 1.

    Reference: Voráček (2024) brings them to randomized smoothing; the bounds are classical (Stevens
    1950).

    >>> found = randomized_clopper_pearson(100, 100, 0.5, alpha=0.001)
    >>> bool(clopper_pearson(100, 100, alpha=0.001).lower < found.lower)
    True
    """
    from scipy import special

    k, n = _counted(successes, trials)
    level = _levels(alpha=alpha)
    u = np.asarray(uniform, np.float64)
    if not np.all((u > 0) & (u < 1)):
        raise ValueError(f"uniform is {uniform!r}; it must lie strictly between 0 and 1.")
    k, n, u, level = np.broadcast_arrays(k, n, u, level)

    def lower(k):
        def tail(p):  # P(X > k) + u P(X = k), increasing in p
            above = np.where(
                k < n, special.betainc(np.minimum(k, n - 1) + 1, np.maximum(n - k, 1), p), 0
            )
            from_k = np.where(k > 0, special.betainc(np.maximum(k, 1), n - k + 1, p), 1)
            return above + u * (from_k - above)

        low, high = np.zeros(k.shape), np.ones(k.shape)
        for _ in range(200):
            middle = (low + high) / 2
            below = tail(middle) <= level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.where(level < LEAST, 0.0, low * (1 - MARGIN))

    return Interval(lower(k), 1 - lower(n - k))


def hoeffding(mean, trials, *, alpha: float) -> Interval:
    """Bounds on the mean of variables in [0, 1] from the number of samples alone; for comparison.

    `chernoff_kl` is never wider. Reference: Hoeffding (1963).

    Guarantee: of independent samples, each side fails with probability at most alpha.

    >>> found = hoeffding(0.9, 100_000, alpha=0.001)
    >>> float(found.lower.round(5))
    0.89412
    """
    m, n = _averaged(mean, trials)
    return _outwards(m, np.sqrt(-np.log(_levels(alpha=alpha)) / (2 * n)))


def empirical_bernstein(mean, variance, trials, *, alpha: float) -> Interval:
    """Bounds on the mean of variables in [0, 1] from their measured variance (Maurer, Pontil 2009).

    Args:
        mean: `float[...]` in [0, 1].
        variance: `float[...]`, the unbiased one (divided by `trials - 1`).
        trials: `int[...]`, at least 2.
        alpha: Level of each side, in (0, 1), a number or an array.

    Guarantee: of independent samples, each side fails with probability at most alpha.

    Raises:
        ValueError: for a mean or variance that such variables cannot have.

    >>> found = empirical_bernstein(0.9, 0.09, 100_000, alpha=0.001)
    >>> float(found.lower.round(5))
    0.89612
    """
    m, n = _averaged(mean, trials)
    level = _levels(alpha=alpha)
    v = np.asarray(variance, np.float64)
    if np.any(n < 2):
        raise ValueError(f"trials is {trials!r}; a variance needs at least 2.")
    if not np.all((v >= 0) & (v <= m * (1 - m) * n / (n - 1) * (1 + 1e-5) + 1e-9)):
        raise ValueError(
            f"variance is {variance!r}; of variables in [0, 1] it is at least 0 and at most "
            "mean (1 - mean) trials / (trials - 1)."
        )
    log = np.log(2) - np.log(level)
    return _outwards(m, np.sqrt(2 * v * log / n) + 7 * log / (3 * (n - 1)))


def chernoff_kl(mean, trials, *, alpha: float) -> Interval:
    """Bounds on the mean of variables in [0, 1] by the relative entropy.

    The lower one is the smallest p with `kl(mean, p) <= log(1 / alpha) / trials`. Never wider than
    `hoeffding`; for counts `clopper_pearson` is closer still.

    Guarantee: of independent samples, each side fails with probability at most alpha.

    Reference: Chernoff (1952); for variables in [0, 1], Hoeffding (1963), theorem 1.

    >>> found = chernoff_kl(0.9, 100_000, alpha=0.001)
    >>> float(found.lower.round(5))
    0.89644
    """
    m, n = _averaged(mean, trials)
    m, n, level = np.broadcast_arrays(m, n, _levels(alpha=alpha))
    budget = -np.log(level) / n + 1e-15  # what the entropy's two terms are off by
    upper = np.nextafter(1 - _kl_lower(1 - m, budget), 2)
    return Interval(_kl_lower(m, budget), np.minimum(upper, 1.0))


def _upper(k, n, level):
    """A p, nearly the smallest, at which at most k of n succeed with at most the chance `level`."""
    from scipy import special

    shapes = k + 1, np.maximum(n - k, 1), np.maximum(level, LEAST)
    found = _checked(special.betainccinv(*shapes), special.betaincc, shapes, 1.0)
    trivial = (k == n) | (level < LEAST) | np.isnan(found)
    return np.where(trivial, 1.0, np.minimum(found, 1.0))[()]


def _lower(k, n, level):
    """A p, nearly the largest, at which at least k of n succeed with at most the chance `level`."""
    from scipy import special

    shapes = np.maximum(k, 1), n - k + 1, np.maximum(level, LEAST)
    found = _checked(special.betaincinv(*shapes), special.betainc, shapes, -1.0)
    trivial = (k == 0) | (level < LEAST) | np.isnan(found)
    return np.where(trivial, 0.0, np.maximum(found, 0.0))


def _checked(found, tail, shapes, side):
    """Moved to that side until the tail is at most the level; NaN where it does not become so.

    The inverse functions are not as good as the functions: of 10^9 trials they are off by up to a
    relative 2e-10. Steps of twice the size end near the root.
    """
    exact, a, b, level = (x.reshape(-1) for x in np.broadcast_arrays(found, *shapes))
    rows, step = np.arange(exact.size), MARGIN / 2
    moved = exact * (1 + side * step)
    for _ in range(44):  # up to nine times the number itself
        sure = tail(a[rows], b[rows], np.clip(moved[rows], 0, 1)) <= level[rows]
        rows = rows[~sure]
        if not rows.size:
            break
        step = 2 * step
        moved[rows] = exact[rows] * (1 + side * step)
    moved[rows] = np.nan
    return (moved * (1 + side * MARGIN / 2)).reshape(np.shape(found))


def _kl_lower(m, budget):
    """The p below m with `kl(m, p) = budget`, from below.

    Newton's method in `log p` from the left: the relative entropy falls there and is convex, so that no
    step goes beyond the root.
    """
    from scipy import special

    rest = -special.xlog1py(1 - m, -m)  # what is left of the entropy where p is small
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        far = np.log(m) - (budget + rest) / m
        near = np.log(np.maximum(m - np.sqrt(2 * m * budget), 0))
        y = np.where(m > 0, np.maximum(far, near), -np.inf)
        for _ in range(16):
            p = np.exp(y)
            slope = (p - m) / (1 - p)  # of the relative entropy in y
            step = (budget - _kl(m, p)) / slope
            y = np.where((slope < 0) & (step > 0) & np.isfinite(step), y + step, y)
    return np.minimum(np.exp(y) * (1 - 1e-11), m)


def _kl(m, p):
    """`m log(m / p) + (1 - m) log((1 - m) / (1 - p))`, infinite where p leaves no room."""
    from scipy import special

    return special.rel_entr(m, p) + special.rel_entr(1 - m, 1 - p)


def _outwards(mean, shift) -> Interval:
    shift = shift * (1 + MARGIN) + MARGIN
    return Interval(np.maximum(mean - shift, 0.0), np.minimum(mean + shift, 1.0))


def _counted(successes, trials):
    """Counts as float64, which holds them exactly."""
    k, n = np.asarray(successes), np.asarray(trials)
    for name, value in (("successes", k), ("trials", n)):
        if not np.issubdtype(value.dtype, np.integer):
            raise ValueError(f"{name} has dtype {value.dtype}; counts are integers.")
    if n.size and n.min() < 1:
        raise ValueError(f"trials is {trials!r}; it must be at least 1.")
    _checks.broadcastable(successes=k, trials=n)
    if np.any(k < 0) or np.any(k > n):
        raise ValueError(
            f"successes is {successes!r}; it must lie between 0 and trials, {trials!r}."
        )
    return k.astype(np.float64), n.astype(np.float64)


def _averaged(mean, trials):
    _checks.within(0.0, 1.0, mean=mean)
    m, n = np.asarray(mean, np.float64), np.asarray(trials)
    if not np.issubdtype(n.dtype, np.integer) or np.any(n < 1):
        raise ValueError(f"trials is {trials!r}; it must be an integer of at least 1.")
    _checks.broadcastable(mean=m, trials=n)
    return m, n.astype(np.float64)


def _levels(**named) -> np.ndarray:
    """Checked, in float64: the arithmetic of smaller types would round bounds inwards."""
    ((name, value),) = named.items()
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.floating) or not np.all((array > 0) & (array < 1)):
        raise ValueError(f"{name} is {value!r}; it must be a number strictly between 0 and 1.")
    return array.astype(np.float64)
