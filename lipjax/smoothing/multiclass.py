r"""Certificates from the chances of the class and of every other one.

If $p_A$ is at least $\underline p_A$ and every other class at most $\overline p_B$, the smoothed
classifier is A within $\tfrac{\sigma}{2}(\Phi^{-1}(\underline p_A) - \Phi^{-1}(\overline p_B))$. Unlike
the radius from $p_A$ alone it does not need a majority. The price is a bound for every class, and what
is left of alpha for them. That the others together have at most $1 - \underline p_A$ is the same event
as the first bound and costs nothing.

It is not shared among the classes. The radius is wrong only if the bound of A fails or that of the
likeliest other class, which is one class, the same for every sample: where its bound holds, so does the
largest of all bounds. So each of them can have all that is left. Published certificates take a part for
every class or bucket, as if all bounds had to hold, and are there for comparison.

Bounding the runner-up alone is not enough, on whichever sample it is found: another class may be the
likely one, and no alpha makes up for that.

The default is never smaller than the radius from $p_A$ alone: where enough votes went neither to A nor
to the largest other count, it takes the larger of that and the one from two bounds, both at alpha. Let
B be the likeliest other class and $\rho = 1 - p_A - p_B$. What an attack leaves of a chance is convex
in it and grows with it, so the radius from $p_A$ alone is wrong only if its bound is above
$p_A + \rho / 2$ (and above 1/2), with chance $\alpha e^{-\kappa \rho / 2}$ at most (`_slope`). Where
that is no more than the part of alpha which the other radius spends on A, this part pays for both: that
radius, and the other's bound of A, fail from some number of votes for A on, so that one of the two
failures holds the other, and the chances need not be added. Where it is more, $\rho$ is so
small that votes enough come with chance $\alpha (1 - e^{-\kappa \rho / 2})$ at most (`_enough`). With
changed tokens it is the same, and with a law that is off by no more than what is taken off. Enumeration
found no case that needs the votes; the proof does.
"""

from typing import Any, NamedTuple

import numpy as np

from lipjax import _checks
from lipjax.smoothing import _counts, confidence
from lipjax.typing import Certificate

BUDGETS = ("auto", "weighted", "bonferroni", "partition")
REST = 0.05
"""Share of alpha that "weighted" leaves to the classes that did not contend on the first sample."""
SHARE = 0.6
"""Of alpha, that "auto" spends on the class where it bounds the likeliest other one too."""
FEW = 0.8
"""The same where the first sample had votes for two classes at most."""


class Bounds(NamedTuple):
    """Pairs of chances, of the class and of the others; each proves how far the class stays ahead.

    Attributes:
        failure: `float64[j, ...]`, a bound of what the class lacks to 1.
        others: `float64[j, ...]`, a bound of the chance of every other class.
        ledger: What each kind of failure gets of alpha, `float64[j, ...]`.

    j counts the pairs: one, or with "auto" and more than two classes two. The first is then of the class
    alone; the second repeats it where too few votes were of neither leader.

    What is true of all pairs at alpha is that the class stays ahead of the others as far as each pair
    says. That the numbers themselves are bounds is true of each pair at its ledger's level, of two
    together not at alpha.
    """

    failure: np.ndarray
    others: np.ndarray
    ledger: dict[str, np.ndarray]

    def radius(self) -> np.ndarray:
        """That of each pair, `float64[j, ...]`, in units of the noise; above 0 if it proves anything."""
        from scipy import special

        return (-special.ndtri(self.failure) - special.ndtri(self.others)) / 2

    def info(self) -> dict[str, Any]:
        """Of the one with the largest radius: `p_lower`, `p_upper` and the ledger."""
        best = self.radius().argmax(0)[None]

        def of(a):
            return np.take_along_axis(a, best, 0)[0]

        ledger = {name: of(levels) for name, levels in self.ledger.items()}
        return {
            "p_lower": _counts.rest(of(self.failure)),
            "p_upper": of(self.others),
            "ledger": ledger,
        }


def certify(
    selection,
    estimation,
    *,
    sigma,
    alpha: float,
    budget: str = "auto",
    law_error: float = 0.0,
    num_samples: int | None = None,
) -> Certificate:
    """The class and a radius that it holds within, or ABSTAIN.

    Args:
        selection: `int[..., K]`, votes of a first sample; they choose the class and the levels.
        estimation: `int[..., K]`, votes of a second, independent one.
        sigma: Standard deviation of the noise, a number or `float[...]`.
        alpha: Chance, for each input, that the certificate is wrong.
        budget: How alpha is spent. `"auto"`: all on the class, as in
            `lipjax.smoothing.gaussian.certify`; where enough votes are neither the class's nor of the
            largest other count, the larger of that radius and one that spends six tenths on the class
            (eight if the first sample had votes for two classes at most) and the rest on the likeliest
            other class, whichever that is. `"weighted"`: half on the class, most of the rest shared by
            those that came near the second on the first sample, a twentieth by all others.
            `"bonferroni"`: the same on every class. `"partition"`: classes are put into buckets as in
            the reference, each bounded as one.
        law_error: Of the noise, see `lipjax.smoothing.noise`; taken off every chance.
        num_samples: Of the estimation, if its rows are to be checked against it.

    Returns:
        `Certificate` with float64 NumPy radii; `info` has `p_lower`, `p_upper` of the others, and the
        ledger, what each kind of failure got of alpha. With "auto" the two are of a pair that the
        samples chose: they prove that the class stays ahead of the others, and are no confidence
        bounds at alpha, see `Bounds`.

    Guarantee: as `lipjax.smoothing.gaussian.certify`, for every budget. With "auto" the radius is at
    least that of `gaussian.certify`.

    Raises:
        ValueError: as `lipjax.smoothing.gaussian.certify`; for an unknown budget.

    Reference: the partition by Delattre et al. (2025), https://arxiv.org/abs/2504.02412; the weights are
    this library's.

    >>> found = certify([45, 35, 20], [45_000, 35_000, 20_000], sigma=1.0, alpha=0.001)
    >>> int(found.prediction), float(found.radius.round(4))
    (0, 0.1166)
    """
    selection, estimation = _counts.checked(2, selection=selection, estimation=estimation)
    alpha, sigma = _counts.levels(alpha, sigma)
    _counts.check_batch(selection.shape[:-1], sigma=sigma)
    options = dict(alpha=alpha, budget=budget, law_error=law_error, num_samples=num_samples)
    found = bounds(selection, estimation, **options)
    best = _counts.chosen(selection)[..., 0]
    return _counts.certificate(best, sigma * found.radius().max(0), found.info())


def bounds(
    selection,
    estimation,
    *,
    alpha: float,
    budget: str = "auto",
    law_error: float = 0.0,
    num_samples: int | None = None,
) -> Bounds:
    """What `certify` and its relatives are made of; arguments and errors as there.

    Guarantee: with probability at least `1 - alpha`, for every pair and every attack: if the smallest
    attacked mean of functions into [0, 1] with mean `1 - failure` is above the largest of those with
    mean `others`, the class stays the likeliest. So the best pair may be taken, for each attack anew.

    >>> found = bounds([100, 0, 0], [99_000, 900, 100], alpha=0.001)
    >>> found.radius().round(3).tolist()
    [2.29, 2.306]
    """
    _checks.one_of(BUDGETS, budget=budget)
    selection, estimation = _counts.checked(2, selection=selection, estimation=estimation)
    alpha, _ = _counts.levels(alpha, 1.0)
    _counts.check_sums(num_samples, estimation=estimation)
    best = _counts.chosen(selection)
    votes = np.take_along_axis(estimation, best, -1)[..., 0]
    trials = estimation.sum(-1)
    if budget == "auto":
        most = _counts.without(estimation, best).max(-1)
        seen = np.count_nonzero(_counts.without(selection, best), axis=-1)
        return _auto(votes, most, trials, seen, selection.shape[-1], alpha, law_error)
    spend = {"weighted": _weighted, "bonferroni": _bonferroni, "partition": _partition}[budget]
    own, groups = spend(selection, estimation, best, _counts.spendable(alpha))
    failure = confidence.failure(votes, trials, alpha=own)
    others = np.zeros(failure.shape)
    ledger = {"the class is less likely": own[None]}
    for name, most, level, count in groups:
        level = np.where(count > 0, level, 0.5)
        bound = confidence.failure(trials - most, trials, alpha=level)  # of not being among them
        others = np.maximum(others, np.where(count > 0, bound, 0.0))
        ledger[name] = (level * count)[None]
    return _capped(failure[None], others[None], law_error, ledger)


def _capped(failure, others, law_error, ledger):
    """Another class has at most what the class lacks."""
    failure = _counts.less_sure(failure, law_error)
    others = np.minimum(_counts.less_sure(others, law_error), failure)
    return Bounds(failure, others, ledger)


def _bonferroni(selection, estimation, best, alpha):
    classes = selection.shape[-1]
    level = np.full(best.shape[:-1], alpha / classes)
    others = _counts.without(estimation, best)
    return level, [("another class is more likely", others.max(-1), level, classes - 1)]


def _weighted(selection, estimation, best, alpha):
    """Contenders came within three deviations of the second on the first sample."""
    votes, later = _counts.without(selection, best), _counts.without(estimation, best)
    second = votes.max(-1, keepdims=True)
    contends = votes >= np.maximum(1, second - 3 * np.sqrt(second + 1.0))
    contends |= (second == 0) & (np.arange(votes.shape[-1]) == votes.argmax(-1)[..., None])
    near = contends.sum(-1)
    far = votes.shape[-1] - near
    shared = np.where(far > 0, 1 - REST, 1.0) * alpha / 2
    most, rest = (np.where(kept, later, 0).max(-1) for kept in (contends, ~contends))
    return shared, [
        ("a contender is more likely", most, shared / np.maximum(near, 1), near),
        ("another class is more likely", rest, REST * alpha / np.maximum(far, 1), far),
    ]


def _auto(votes, most, trials, seen, classes, alpha, law_error):
    """The class alone, and with the largest of the others; `seen` of them had votes at first."""
    failure = confidence.failure(votes, trials, alpha=alpha)
    if classes == 2:  # a bound for one is a bound for the other
        ledger = {"the class is less likely": np.full((1, *failure.shape), alpha)}
        return _capped(failure[None], failure[None], law_error, ledger)
    share = np.where(seen > 1, SHARE, FEW)
    apart = _enough(trials - votes - most, votes, trials, alpha=alpha, share=share)
    own = _counts.spendable(alpha) * share
    left = _counts.spendable(alpha) - own
    shared = np.where(apart, confidence.failure(votes, trials, alpha=own), failure)
    other = np.where(apart, confidence.failure(trials - most, trials, alpha=left), failure)
    ledger = {
        "the class is less likely": np.stack(
            [np.full(own.shape, alpha), np.where(apart, own, alpha)]
        ),
        "the likeliest other class is more likely": np.stack(
            [np.zeros(own.shape), np.where(apart, left, 0.0)]
        ),
    }
    return _capped(np.stack([failure, shared]), np.stack([failure, other]), law_error, ledger)


def _enough(rest, votes, trials, *, alpha: float, share):
    r"""Whether the `rest`, neither for the class nor for the largest other count, has votes enough.

    Enough of n are m if at $\rho_0 = 2 \log(1 / s) / \kappa$, with s the share, m or more come with
    chance $(1 - s) \alpha$ at most. Below $\rho_0$ it is then at most
    $\alpha (1 - e^{-\kappa \rho / 2})$: that is concave in $\rho$, the chance is convex up to
    $(m - 1) / (n - 1)$, both are 0 at 0.

    $\kappa$ may depend on the votes of the class, as it grows with them. Let the first radius be wrong
    from c votes on. Either it is, or there were fewer, and the rest needed at least what it needs at c.
    B is not known; as its count is at most the largest of the others, the rest is at most the votes
    that are neither A's nor B's.
    """
    from scipy import special

    if alpha >= 0.5:
        return np.zeros(np.shape(rest), bool)
    few = -2 * np.log(share) / _slope(votes, trials, alpha) * (1 + 1e-9)
    few = np.minimum(few, 1.0)
    chance = special.betainc(np.maximum(rest, 1), trials - rest + 1, few)
    return (rest - 1 >= (trials - 1) * few) & (chance * (1 + 1e-9) <= (1 - share) * alpha)


def _slope(votes, trials, alpha):
    r"""$\kappa$: a bound of so many votes is above $p + t$ with chance $\alpha e^{-\kappa t}$ at most.

    For bounds above 1/2 and alpha below it. The chance of as many votes is a beta distribution function
    of p, whose logarithm is concave; it is alpha at the bound and at least 1/2 at the share q of the
    votes. With $e = \log(1 / \alpha) / n$ the two differ, by Chernoff, by at most g with
    $g^2 = 2 e (q - g)(1 - q + g)$, which falls in q, while $q - g \ge 1/2$, and by Hoeffding by no more
    than the root of $e / 2$.
    """
    q, e = votes / trials, -np.log(alpha) / trials
    away = 2 * q - 1
    root = np.sqrt((e * away) ** 2 + 2 * e * (1 + 2 * e) * q * (1 - q))
    gap = (e * away + root) / (1 + 2 * e)
    gap = np.where(q - gap >= 0.5, gap, np.sqrt(e / 2))
    return -np.log(2 * alpha) / gap


def _partition(selection, estimation, best, alpha):
    """Largest classes by themselves until the rest together is at most as large as the second."""
    order = np.argsort(-selection, axis=-1, kind="stable")
    votes = np.take_along_axis(selection, order, -1)
    later = np.take_along_axis(estimation, order, -1)
    rest = votes[..., ::-1].cumsum(-1)[..., ::-1]  # of a place and all after it
    small = rest <= votes[..., 1:2]
    small[..., :2] = False
    classes = votes.shape[-1]
    alone = np.where(small.any(-1), small.argmax(-1), classes)
    merged = alone < classes
    level = alpha / (alone + merged)
    places = np.arange(classes)
    single = np.where((places >= 1) & (places < alone[..., None]), later, 0).max(-1)
    together = np.where(places >= alone[..., None], later, 0).sum(-1)
    return level, [
        ("another class is more likely", single, level, alone - 1),
        ("a bucket is more likely", together, level, merged.astype(np.int64)),
    ]
