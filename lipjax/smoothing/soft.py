r"""Certificates from averaged scores instead of votes.

A smoothed classifier may average f(x + noise) for scores f on the simplex, a map of
`lipjax.smoothing.simplex` after the logits. Everything that holds for chances of votes holds for means
of scores; only their confidence bounds differ, and those gain from a small variance.

The map is a part of the classifier: one map for all inputs, chosen on data that is not certified, by
`trade_off` for example. Choosing the map with the largest radius for each input, as the published code
does, certifies another classifier at every input: its balls overlap with different classes in them.
`unsound_per_input` shows it.

Reference: Delattre et al. (2024), https://arxiv.org/abs/2309.16883.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import _checks
from lipjax.smoothing import _counts, confidence, simplex
from lipjax.smoothing.lipschitz import margin_radius
from lipjax.smoothing.lipschitz import radius as lipschitz_radius
from lipjax.smoothing.multiclass import REST
from lipjax.smoothing.sampling import Moments, sample_moments
from lipjax.typing import Certificate

BUDGETS = ("auto", "weighted", "bonferroni")
BOUNDS = ("both", "bernstein", "kl")
DECIDED = 0.99
"""A score at which it is decided whether a Lipschitz constant is worth its error."""
SURE = 0.99
"""Share of alpha that "auto" gives a class that had all of the first sample."""
LIKELY = 0.9
"""And one that shared it with one other class, which then has nearly all that it lacks."""
ENOUGH = 0.9
"""Share of the scores of all other classes that makes one of them the only one that counts."""
GRID = 2.0**-24
"""How much a mean of `Moments` may lie below that of the scores."""


def certify(
    selection: Moments,
    estimation: Moments,
    *,
    sigma,
    alpha: float,
    budget: str = "auto",
    bound: str = "both",
    lipschitz=None,
    margin_lipschitz=None,
    law_error: float = 0.0,
    slope_error: float = 0.0,
) -> Certificate:
    """The class with the largest smoothed score and a radius that it holds within, or ABSTAIN.

    Args:
        selection: Moments of a first sample, which choose the class and how alpha is spent.
        estimation: Moments of a second, independent one, of at least 2 samples. Both of the same shape,
            for any leading axes, of scores that sum to at most one. Their counts may lack the last of
            these axes.
        sigma: Standard deviation of the noise, a number or `float[...]`, for each input of the batch.
        alpha: Chance, for each input, that the certificate is wrong.
        budget: How alpha is spent. `"auto"`: on the class half of it, nine tenths where one other class
            had at least that part of all other scores of the first sample, 99 hundredths where there
            were none; the rest on the likeliest other class, whichever that is. With two classes, all of
            it on the class. `"weighted"` and `"bonferroni"`: as in `lipjax.smoothing.multiclass`.
        bound: `"bernstein"`, `"kl"`, or for each mean the better of them, each at half the level.
        lipschitz: l2 constant of every score on the whole space, a number or an upper `Bound`, for
            the larger radius of `lipjax.smoothing.lipschitz`.
        margin_lipschitz: With `lipschitz`, that of every difference of two scores, where it is less
            than twice the other, as for sparsemax and entmax: `lipschitz.margin_radius` may then be
            larger, and follows from the same bounds.
        law_error: Of the noise, see `lipjax.smoothing.noise`; taken off.
        slope_error: With `lipschitz`, the noise's `law_error(size, lipschitz=...)` for the same
            constant: rounding to a grid makes steps of a slope. The certificate is then about scores
            averaged over exactly Gaussian noise. Where it costs more than the constant is worth, at a
            score of 0.99, the constant is not used; that depends on the constants alone, so that all
            certificates are about one classifier.

    Returns:
        `Certificate` with float64 NumPy radii; `info` has `p_lower`, `p_upper` of the others, the
        ledger, what each kind of failure got of alpha, and with `lipschitz` whether it was used.

    Guarantee: with probability at least `1 - alpha` over the samples, either it abstains or
    `prediction` has the largest smoothed score everywhere closer than `radius`. With `lipschitz` this is
    about scores that have that constant: up to the rounding of their evaluation.

    Raises:
        ValueError: for moments of different shapes or of scores that sum to more than one, fewer than 2
            samples, one class, alpha outside (0, 1), sigma not positive or of another batch, unknown
            options.

    >>> from lipjax.smoothing.sampling import sample_moments
    >>> fn = lambda x: simplex.softmax(jnp.stack([x, -x], -1), temperature=0.5)
    >>> options = dict(sigma=0.5, num_classes=2, batch_size=1000)
    >>> first = sample_moments(jax.random.key(0), fn, jnp.float32(1), num_samples=100, **options)
    >>> second = sample_moments(jax.random.key(1), fn, jnp.float32(1), num_samples=9000, **options)
    >>> found = certify(first, second, sigma=0.5, alpha=0.001)
    >>> int(found.prediction), bool(0.6 < found.radius < 0.8)
    (0, True)
    """
    from scipy import special

    _checks.one_of(BUDGETS, budget=budget)
    _checks.one_of(BOUNDS, bound=bound)
    _checked(selection, estimation)
    alpha, sigma = _counts.levels(alpha, sigma)
    batch = estimation.total.shape[:-2]
    _counts.check_batch(batch, sigma=sigma)
    for name, value in (("lipschitz", lipschitz), ("margin_lipschitz", margin_lipschitz)):
        if value is not None:
            number = np.asarray(_counts.constant(value, name), np.float64)
            if not np.all(number > 0):
                raise ValueError(f"{name} is {value!r}; it must be above 0 (inf is allowed).")
            _counts.check_batch(batch, **{name: number})
    if margin_lipschitz is not None and lipschitz is None:
        raise ValueError(
            f"margin_lipschitz is {margin_lipschitz!r} without lipschitz; give the constant of a score "
            "too."
        )
    _checks.ranked(0, "one number", law_error=law_error, slope_error=slope_error)
    _checks.within(0.0, 1.0, law_error=law_error, slope_error=slope_error)
    law_error, slope_error = float(law_error), float(slope_error)
    if slope_error and lipschitz is None:
        raise ValueError(f"slope_error is {slope_error} without lipschitz; nothing would use it.")
    best, levels, ledger = _spend(selection, alpha, budget)
    mean, variance = estimation.mean, estimation.variance
    trials = estimation._of_each().astype(np.int64)
    lower, upper = _bounds(mean, variance, trials, levels, bound)
    np.put_along_axis(upper, best, 0.0, -1)

    own = np.take_along_axis(lower, best, -1)[..., 0]
    other = upper.max(-1) + GRID

    def chances(error):
        p_lower = np.maximum(own - error, 0.0)
        cap = 1 - p_lower + _excess(mean.shape[-1])
        return p_lower, np.minimum(np.minimum(other + error, cap), 1.0)

    info = {}
    p_lower, p_upper = chances(law_error)
    with np.errstate(invalid="ignore"):  # a score that is at least 0 and one that is at most 1
        radius = sigma / 2 * (-special.ndtri(1 - p_lower) - special.ndtri(p_upper))
    radius = np.where(np.isnan(radius), 0.0, radius)
    if lipschitz is not None:
        error = max(law_error, slope_error)
        worth = lipschitz_radius(max(DECIDED - error, 0.0), lipschitz=lipschitz, sigma=sigma)
        used = worth >= sigma * special.ndtri(max(DECIDED - law_error, 0.5))
        aware = chances(error)
        p_lower, p_upper = (np.where(used, a, p) for a, p in zip(aware, (p_lower, p_upper)))
        found = lipschitz_radius(*aware, lipschitz=lipschitz, sigma=sigma)
        if margin_lipschitz is not None:
            # At most twice that of a score, for which the slope's error is.
            each = np.asarray(_counts.constant(lipschitz), np.float64)
            two = np.minimum(np.asarray(_counts.constant(margin_lipschitz), np.float64), 2 * each)
            margin = np.maximum(aware[0] - aware[1], 0.0)
            of_margin = margin_radius(margin, lipschitz=two, sigma=sigma)
            found = np.maximum(found, np.where(margin > 0, of_margin, 0.0))
        radius = np.where(used, found, radius)
        info["lipschitz_used"] = used
    info |= {"p_lower": p_lower, "p_upper": p_upper, "ledger": ledger}
    return _counts.certificate(best[..., 0], radius, info)


class TradeOff(NamedTuple):
    """What each map and temperature gives, averaged over inputs.

    Attributes:
        maps: `(name, temperature)` of each, M of them.
        spread: `float64[M]`, standard deviation of the score of the class.
        margin: `float64[M]`, mean score of the class less the next one's.
        constant: `float64[M]`, Lipschitz constant of a score per unit of that of the logits.
        radius: `float64[M]`, mean certified radius, 0 for a wrong class.
    """

    maps: tuple[tuple[str, float], ...]
    spread: np.ndarray
    margin: np.ndarray
    constant: np.ndarray
    radius: np.ndarray

    @property
    def best(self) -> tuple[str, float]:
        """The map with the largest mean radius, the first of several."""
        return self.maps[int(np.argmax(self.radius))]


def trade_off(
    key,
    fn,
    xs,
    labels,
    *,
    maps,
    sigma: float,
    alpha: float,
    num_samples: int,
    num_classes: int,
    batch_size: int,
    planned_samples: int | None = None,
    lipschitz=None,
) -> TradeOff:
    """Variance, margin, Lipschitz constant and radius of maps, on inputs kept for this choice.

    Args:
        key: One random key.
        fn: `float[b, ...] -> float[b, num_classes]`, logits.
        xs: `float[N, ...]`, inputs that will not be certified: a validation split.
        labels: `int[N]`, their classes.
        maps: `(name, temperature)` of each candidate, names of `lipjax.smoothing.simplex.MAPS`.
        sigma: Standard deviation of the noise.
        alpha: Level of the certificates that are planned.
        num_samples: Noisy copies of each input, used for all candidates; at least 2.
        num_classes: Number of classes.
        batch_size: Examples in a call of `fn`.
        planned_samples: Samples of the certificates that are planned; by default `num_samples`. Means
            and variances are estimated with `num_samples`, their bounds are those of so many.
        lipschitz: Of the logits, for Lipschitz-aware radii; a number or an upper `Bound`.

    Returns:
        A `TradeOff`, whose `best` is the map to deploy. An estimate: the radii here certify nothing.

    >>> found = trade_off(
    ...     jax.random.key(0), lambda x: jnp.stack([x, -x], -1), jnp.linspace(-2, 2, 8),
    ...     np.array([1, 1, 1, 1, 0, 0, 0, 0]), maps=[("softmax", 1.0), ("softmax", 0.1)], sigma=0.5,
    ...     alpha=0.001, num_samples=500, num_classes=2, batch_size=500, planned_samples=100_000,
    ... )
    >>> found.best
    ('softmax', 0.1)
    """
    _checks.integer(2, num_samples=num_samples)
    planned = num_samples if planned_samples is None else planned_samples
    _checks.integer(2, planned_samples=planned)
    alpha, _ = _counts.levels(alpha, sigma)
    if not len(xs):
        raise ValueError("xs is empty; it must hold the examples that the maps are compared on.")
    labels = np.asarray(labels)
    if labels.shape != (len(xs),):
        raise ValueError(
            f"labels has shape {labels.shape}; it must have one for each of {len(xs)} xs."
        )
    maps = tuple((str(name), float(temperature)) for name, temperature in maps)
    if not maps:
        raise ValueError("maps is empty; it must hold (name, temperature) pairs.")
    constants, whole = (
        np.array([of(n, temperature=t, num_classes=num_classes) for n, t in maps])
        for of in (simplex.component, simplex.whole)
    )

    def scores(x):
        logits = fn(x)
        parts = [getattr(simplex, n)(logits, temperature=t) for n, t in maps]
        return jnp.concatenate(parts, axis=-1)

    @jax.jit
    def moments(key, x):
        return sample_moments(
            key,
            scores,
            x,
            sigma=sigma,
            num_samples=num_samples,
            num_classes=num_classes * len(maps),
            batch_size=batch_size,
        )

    found = [moments(jax.random.fold_in(key, i), x) for i, x in enumerate(xs)]
    shape = (len(found), len(maps), num_classes)
    mean = np.stack([m.mean for m in found]).reshape(shape)
    variance = np.stack([m.variance for m in found]).reshape(shape) * (1 - 1 / num_samples)
    radii = np.zeros(shape[:2])
    best, levels, _ = _shares(mean, variance / num_samples, alpha, "auto", 1.0 / num_samples)
    trials = np.full((*shape[:2], 1), planned)
    lower, upper = _bounds(mean, variance, trials, levels, "both")
    own = np.take_along_axis(lower, best, -1)[..., 0]
    rest = upper.copy()
    np.put_along_axis(rest, best, 0.0, -1)
    other = np.minimum(rest.max(-1), 1 - own)
    for i, constant in enumerate(constants):
        limit = np.inf
        if lipschitz is not None:
            limit = np.float64(_counts.constant(lipschitz)) * constant
        radii[:, i] = lipschitz_radius(own[:, i], other[:, i], lipschitz=limit, sigma=sigma)
        if np.isfinite(limit):
            both = np.maximum(own[:, i] - other[:, i], 0.0)
            limit = limit / constant * np.sqrt(2) * whole[i]
            of_margin = margin_radius(both, lipschitz=limit, sigma=sigma)
            radii[:, i] = np.maximum(radii[:, i], of_margin)
    radii *= best[..., 0] == labels[:, None]
    ordered = np.sort(mean, axis=-1)
    spread = np.sqrt(np.take_along_axis(variance, best, -1)[..., 0])
    margin = (ordered[..., -1] - ordered[..., -2]).mean(0)
    return TradeOff(maps, spread.mean(0), margin, constants, radii.mean(0))


def unsound_per_input(counts, moments: Moments, *, sigma, alpha: float) -> Certificate:
    """The published choice of a map for each input. NOT SOUND: for reproduction and comparison alone.

    Args:
        counts: `int[..., K]`, votes.
        moments: Of the scores of M maps on the same samples: their sums have shape `[..., M, 3, K]`.
        sigma: Standard deviation of the noise.
        alpha: What the published code calls so; the chance of a wrong certificate is not bounded by it.

    Returns:
        Of votes and maps the largest radius, and its class. Two inputs closer than either radius can
        get different classes.

    >>> counts = np.array([900, 100])
    >>> votes = Moments(jnp.int32(1000), np.zeros((1, 3, 2)), np.zeros((1, 5, 2)))
    >>> votes.total[0, 0], votes.squares[0, 0] = counts, counts
    >>> bool(unsound_per_input(counts, votes, sigma=1.0, alpha=0.001).radius > 1)
    True
    """
    from scipy import special

    (counts,) = _counts.checked(2, counts=counts)
    alpha, sigma = _counts.levels(alpha, sigma)
    classes = counts.shape[-1]
    trials = counts.sum(-1, keepdims=True)
    interval = confidence.clopper_pearson(counts, trials, alpha=alpha / classes)
    n = moments._of_each()
    log = np.log(2 * classes / alpha)
    shift = np.sqrt(2 * moments.variance * log / n) + 7 * log / (3 * (n - 1))
    lower = np.concatenate([interval.lower[..., None, :], moments.mean - shift], -2)
    upper = np.concatenate([interval.upper[..., None, :], moments.mean + shift], -2)
    best = lower.argmax(-1)
    p = np.clip(lower.max(-1), 0, 1)
    q = np.clip(np.sort(upper, -1)[..., -2], 0, 1)
    with np.errstate(invalid="ignore"):
        radii = np.where(p > 0, sigma[..., None] / 2 * (special.ndtri(p) - special.ndtri(q)), 0.0)
    largest = np.nan_to_num(radii).argmax(-1)[..., None]
    radius = np.take_along_axis(radii, largest, -1)[..., 0]
    prediction = np.take_along_axis(best, largest, -1)[..., 0]
    return _counts.certificate(prediction, radius, {"map": largest[..., 0] - 1})


def _bounds(mean, variance, trials, levels, bound):
    """Lower and upper bounds on means, each at the level of its class; of level 0 nothing is known."""
    spent = levels > 0
    levels = np.where(spent, levels, 0.5)
    variance = variance + 2.0**-50  # what float64 cancels of sums of squares
    if bound == "bernstein":
        found = confidence.empirical_bernstein(mean, variance, trials, alpha=levels)
    elif bound == "kl":
        found = confidence.chernoff_kl(mean, trials, alpha=levels)
    else:
        one = confidence.empirical_bernstein(mean, variance, trials, alpha=levels / 2)
        other = confidence.chernoff_kl(mean, trials, alpha=levels / 2)
        found = np.maximum(one.lower, other.lower), np.minimum(one.upper, other.upper)
    return np.where(spent, found[0], 0.0), np.where(spent, found[1], 1.0)


def _spend(selection, alpha, budget):
    least = 1.0 / selection._of_each()
    error = np.nan_to_num(selection.variance) * least  # of a single sample: nothing known
    return _shares(selection.mean, error, alpha, budget, least)


def _shares(mean, error, alpha, budget, least):
    """The class, a level for each class, and the ledger, from the first sample alone.

    Contenders came within three deviations of the second.
    """
    classes, alpha = mean.shape[-1], _counts.spendable(alpha)
    best = np.argmax(mean, axis=-1)[..., None]
    if budget == "bonferroni":
        level = np.full(mean.shape, alpha / classes)
        total = np.full(mean.shape[:-1], alpha * (1 - 1 / classes))
        ledger = {"the class is less likely": level[..., 0], "another class is more likely": total}
        return best, level, ledger
    if budget == "auto":
        own = alpha * _own_share(_counts.without(mean, best))
        level = np.broadcast_to((alpha - own)[..., None], mean.shape).copy()
        np.put_along_axis(level, best, own[..., None], -1)
        ledger = {
            "the class is less likely": own,
            "the likeliest other class is more likely": alpha - own,
        }
        return best, level, ledger
    others = mean.copy()
    np.put_along_axis(others, best, -1.0, -1)
    second = others.argmax(-1)[..., None]
    reach = 3 * np.sqrt(error + least * least)
    floor = np.take_along_axis(others - reach, second, -1)
    contends = others + reach >= np.maximum(least, floor)
    np.put_along_axis(contends, second, True, -1)
    np.put_along_axis(contends, best, False, -1)
    near = contends.sum(-1, keepdims=True)
    far = classes - 1 - near
    shared = np.where(far > 0, 1 - REST, 1.0) * alpha / 2
    level = np.where(contends, shared / near, REST * alpha / np.maximum(far, 1))
    np.put_along_axis(level, best, shared, -1)
    ledger = {
        "the class is less likely": shared[..., 0],
        "a contender is more likely": shared[..., 0],
        "another class is more likely": np.where(far > 0, REST * alpha, 0.0)[..., 0],
    }
    return best, level, ledger


def _own_share(others):
    """Share of alpha that "auto" gives the class, from the mean scores `[..., K - 1]` of the others."""
    if others.shape[-1] == 1:  # a bound for one is a bound for the other
        return np.ones(others.shape[:-1])
    second, total = others.max(-1), others.sum(-1)
    return np.where(total == 0, SURE, np.where(second >= ENOUGH * total, LIKELY, 0.5))


def _excess(classes: int) -> float:
    """By which float32 scores on the simplex may sum to more than one."""
    return (classes + 2) * 2.0**-23


def _checked(selection, estimation):
    for name, moments in (("selection", selection), ("estimation", estimation)):
        if not isinstance(moments, Moments):
            raise ValueError(f"{name} is a {type(moments).__name__}; it must be Moments.")
        batch, count = moments.total.shape[:-2], np.shape(moments.count)
        if count != batch[: len(count)]:
            raise ValueError(
                f"{name}.count has shape {count} and the sums {moments.total.shape}; its axes must be "
                f"the first of those of the batch, {batch}."
            )
        least = 2 if name == "estimation" else 1
        if np.any(np.asarray(moments.count) < least):
            raise ValueError(
                f"{name}.count is {np.asarray(moments.count)}; it must be at least {least}."
            )
        classes = moments.total.shape[-1]
        if classes < 2:
            raise ValueError(f"{name} has {classes} class; it must have at least 2.")
        most = moments.mean.sum(-1).max(initial=0.0)
        if most > 1 + _excess(classes):
            raise ValueError(
                f"{name} has scores that sum to {most}; scores must sum to at most 1 "
                "(those of half-precision logits do after logits.astype(jnp.float32), before the map)."
            )
    if selection.total.shape != estimation.total.shape:
        raise ValueError(
            f"estimation has sums of shape {estimation.total.shape} and selection "
            f"{selection.total.shape}; they must be the same."
        )
