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
"""

import numpy as np

from lipjax import _checks
from lipjax.smoothing import _counts, confidence
from lipjax.typing import Certificate

BUDGETS = ("auto", "weighted", "bonferroni", "partition")
REST = 0.05
"""Share of alpha that "weighted" leaves to the classes that did not contend on the first sample."""


SURE = 0.99
"""Share of alpha that "auto" gives a class that got all votes of the first sample."""
LIKELY = 0.9
"""And one that shared them with one other class, which then has nearly all that it lacks."""


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
        budget: How alpha is spent. `"auto"`: on the class half of it, nine tenths where the first
            sample had votes for it and one other class alone, 99 hundredths where it had all of them;
            the rest on the likeliest other class, whichever that is. All on one of two classes, as the
            other has what it lacks. `"weighted"`: half on the class, most of the rest shared by those
            that came near the second on the first sample, a twentieth by all others. `"bonferroni"`:
            the same on every class. `"partition"`: classes are put into buckets as in the reference,
            each bounded as one.
        law_error: Of the noise, see `lipjax.smoothing.noise`; taken off every chance.
        num_samples: Of the estimation, if its rows are to be checked against it.

    Returns:
        `Certificate` with float64 NumPy radii; `info` has `p_lower`, `p_upper` of the others, and the
        ledger, what each kind of failure got of alpha.

    Guarantee: as `lipjax.smoothing.gaussian.certify`, for every budget.

    Raises:
        ValueError: as `lipjax.smoothing.gaussian.certify`; for an unknown budget.

    Reference: the partition by Delattre et al. (2025), https://arxiv.org/abs/2504.02412; the weights are
    this library's.

    >>> found = certify([45, 35, 20], [45_000, 35_000, 20_000], sigma=1.0, alpha=0.001)
    >>> int(found.prediction), float(found.radius.round(4))
    (0, 0.1166)
    """
    from scipy import special

    _checks.one_of(BUDGETS, budget=budget)
    selection, estimation = _counts.checked(2, selection=selection, estimation=estimation)
    alpha, sigma = _counts.levels(alpha, sigma)
    _counts.check_batch(selection.shape[:-1], sigma=sigma)
    _counts.check_sums(num_samples, estimation=estimation)
    best = _counts.chosen(selection)
    votes = np.take_along_axis(estimation, best, -1)[..., 0]
    spend = {
        "weighted": _weighted,
        "auto": _auto,
        "bonferroni": _bonferroni,
        "partition": _partition,
    }[budget]
    own, groups = spend(selection, estimation, best, _counts.spendable(alpha))
    trials = estimation.sum(-1)
    failure = confidence.failure(votes, trials, alpha=own)
    others = np.zeros(failure.shape) if groups else failure
    ledger = {"the class is less likely": own}
    for name, most, level, count in groups:
        level = np.where(count > 0, level, 0.5)
        bound = confidence.failure(trials - most, trials, alpha=level)  # of not being among them
        bound = np.where(count > 0, bound, 0.0)
        others = np.maximum(others, bound)
        ledger[name] = level * count
    failure = _counts.less_sure(failure, law_error)
    others = np.minimum(_counts.less_sure(others, law_error), failure)
    radius = sigma / 2 * (-special.ndtri(failure) - special.ndtri(others))
    info = {"p_lower": _counts.rest(failure), "p_upper": others, "ledger": ledger}
    return _counts.certificate(best[..., 0], radius, info)


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


def _auto(selection, estimation, best, alpha):
    own = alpha * auto_share(_counts.without(selection, best))
    if selection.shape[-1] == 2:
        return own, []
    most = _counts.without(estimation, best).max(-1)
    return own, [("the likeliest other class is more likely", most, alpha - own, np.int64(1))]


def auto_share(others, enough: float = 1.0):
    """Share of alpha that "auto" gives the class, from what the others had on the first sample.

    Args:
        others: `[..., K - 1]`, votes or mean scores.
        enough: Share of their sum from which on the largest counts as the only one.

    >>> auto_share(np.array([[0, 0], [3, 0], [3, 1]])).tolist(), auto_share(np.array([5])).item()
    ([0.99, 0.9, 0.5], 1.0)
    """
    if others.shape[-1] == 1:  # a bound for one is a bound for the other
        return np.ones(others.shape[:-1])
    second, total = others.max(-1), others.sum(-1)
    return np.where(total == 0, SURE, np.where(second >= enough * total, LIKELY, 0.5))


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
