r"""Certifying one target radius with as few samples as it takes.

Whether the radius of a class is at least r is a test of $p_A > \Phi(r / \sigma)$. The samples come in
stages, and after each the number of votes is compared with a boundary. The boundaries are found by
exact dynamic programming over the binomial law, so that the chance ever to cross one of them at
$p_A = \Phi(r / \sigma)$ is at most alpha, and nearly it: no inequality is in between. Giving up early
costs no alpha, since it certifies nothing.

The class is chosen on a sample of its own, as always.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lipjax import _checks
from lipjax.typing import ABSTAIN, Certificate


class Plan(NamedTuple):
    """When to look, and what to look for.

    Attributes:
        radius: The target.
        sigma: Standard deviation of the noise.
        chance: What the chance of the class is tested to be above, rounded up.
        looks: `int64[S]`, samples after which to look, increasing.
        boundary: `int64[S]`, votes that certify at each look; above the look's samples where none do.
        least: `int64[S]`, votes below which it is given up.
        alpha: The level.
        spent: The exact chance to cross a boundary if the chance of the class is `chance`.
    """

    radius: float
    sigma: float
    chance: float
    looks: np.ndarray
    boundary: np.ndarray
    least: np.ndarray
    alpha: float
    spent: float


def plan(
    radius: float,
    *,
    sigma: float,
    alpha: float,
    looks,
    give_up: float = 0.001,
    law_error: float = 0.0,
) -> Plan:
    """Boundaries for a target radius.

    Args:
        radius: What to certify, at least 0.
        sigma: Standard deviation of the noise.
        alpha: Chance of a wrong certificate.
        looks: Numbers of samples after which to look, increasing.
        give_up: Chance to give up too early on a class whose chance is just what is tested for. It never
            makes a certificate wrong; 0 goes on while a boundary can be reached.
        law_error: Of the noise, see `lipjax.smoothing.noise`; added to the chance that is tested for.

    The first look gets one part of alpha, the second two, the third three, and each what earlier ones
    left: later looks decide the classes that are close.

    Guarantee: a class whose chance is at most `Phi(radius / sigma)` crosses with chance at most `spent`,
    which is at most alpha. Chances too small to be kept count as crossing; with an alpha below about
    1e-280 that leaves nothing to certify with.

    >>> found = plan(0.5, sigma=0.5, alpha=0.001, looks=[100, 1000, 10_000])
    >>> found.boundary.tolist(), bool(found.spent <= 0.001)
    ([97, 879, 8533], True)
    """
    from scipy import special

    _checks.nonnegative(radius=radius)
    _checks.positive(sigma=sigma)
    for name, value in (("radius", radius), ("sigma", sigma)):
        if np.ndim(value):
            raise ValueError(f"{name} has shape {np.shape(value)}; it must be one number.")
    radius, sigma = float(radius), float(sigma)
    if not (isinstance(alpha, float | np.floating) and 0 < alpha < 1):
        raise ValueError(f"alpha is {alpha!r}; it must be a number strictly between 0 and 1.")
    looks = np.asarray(looks)
    if looks.ndim != 1 or not looks.size or not np.issubdtype(looks.dtype, np.integer):
        raise ValueError(f"looks is {looks!r}; it must be a list of integers.")
    looks = looks.astype(np.int64)  # differences of unsigned integers wrap around
    if looks[0] < 1 or np.any(np.diff(looks) < 1):
        raise ValueError(f"looks is {looks!r}; it must increase, from at least 1.")
    _checks.within(0.0, 1.0, give_up=give_up, law_error=law_error)
    alpha = float(alpha)
    chance = min((float(special.ndtr(radius / sigma)) + float(law_error)) * (1 + 1e-12), 1.0)
    law, before, carry, spent, lost, boundary = np.ones(1), 0, 0.0, 0.0, 0.0, []
    shares = alpha * np.arange(1, len(looks) + 1) / (len(looks) * (len(looks) + 1) / 2)
    for n, share in zip(looks, shares):
        law, cut = _more(law, int(n) - before, chance, alpha)
        lost += cut
        tail = np.cumsum(law[::-1])[::-1] + lost  # chance of at least so many, never having crossed
        room = (share + carry) * (1 - 1e-8 - 1e-14 * n)  # for the rounding of log factorials
        low = np.flatnonzero(tail <= room)
        at = int(low[0]) if low.size else int(n) + 1
        crossed = float(tail[at]) if at <= n else 0.0
        spent, carry = spent + crossed, max(share + carry - crossed, 0.0)
        law = law.copy()
        law[at:] = 0.0
        boundary.append(at)
        before = int(n)
    boundary = np.array(boundary)
    least = [
        max(
            int(np.min(boundary[i:] - (looks[i:] - n))),  # no later boundary can be reached
            int(np.searchsorted(special.bdtr(np.arange(n + 1), n, chance), give_up / len(looks))),
        )
        for i, n in enumerate(looks)
    ]
    return Plan(
        radius,
        sigma,
        chance,
        looks,
        boundary,
        np.array(least),
        alpha,
        spent,
    )


def power(plan: Plan, p: float) -> tuple[float, float]:
    """The chance to certify a class of chance p, and the mean number of samples, exactly.

    >>> found = plan(0.5, sigma=0.5, alpha=0.001, looks=[100, 1000, 10_000])
    >>> chance, samples = power(found, 0.95)
    >>> bool(chance > 0.999), bool(samples < 1500)
    (True, True)
    """
    _checks.within(0.0, 1.0, p=p)
    law, before, certified, samples = np.ones(1), 0, 0.0, 0.0
    for n, at, least in zip(plan.looks, plan.boundary, plan.least):
        samples += law.sum() * (n - before)
        law, _ = _more(law, int(n) - before, p, plan.alpha)
        certified += law[at:].sum()
        law[at:] = 0.0
        law[: max(least, 0)] = 0.0
        before = int(n)
    return float(certified), float(samples)


def certify(draw: Callable[[int, int], int], prediction: int, plan: Plan) -> Certificate:
    """Draws until the radius of the plan is certified, or cannot be any more.

    Args:
        draw: `(start, stop) -> votes` for the class among those samples, fresh ones.
        prediction: The class, chosen on another sample.
        plan: Of `plan`.

    Returns:
        `Certificate` with the plan's radius, or ABSTAIN with 0; `info` has the samples drawn, the votes
        and the ledger.

    Guarantee: with probability at least 1 less the plan's alpha over the samples, it abstains or the
    class has the majority everywhere closer than the radius.

    >>> rng = np.random.default_rng(0)
    >>> target = plan(0.5, sigma=0.5, alpha=0.001, looks=[100, 1000, 10_000])
    >>> found = certify(lambda a, b: rng.binomial(b - a, 0.99), 3, target)
    >>> int(found.prediction), float(found.radius), found.info["samples"]
    (3, 0.5, 100)
    """
    _checks.integer(0, prediction=prediction)
    if not isinstance(plan, Plan) or not callable(draw):
        raise ValueError(
            f"draw is {draw!r} and plan {plan!r}; they must be a function and what `plan` made."
        )
    votes, before, sure = 0, 0, False
    for n, at, least in zip(plan.looks, plan.boundary, plan.least):
        found = draw(before, int(n))
        if np.ndim(found) or not np.issubdtype(np.asarray(found).dtype, np.integer):
            raise ValueError(
                f"draw returned {found!r}; it must return one integer, a number of votes."
            )
        found = int(found)
        if not 0 <= found <= n - before:
            raise ValueError(f"draw returned {found} votes among {n - before} samples.")
        votes, before = votes + found, int(n)
        sure = votes >= at
        if sure or votes < least:
            break
    info = {
        "samples": before,
        "votes": votes,
        "ledger": {"the class is less likely": plan.spent},
    }
    return Certificate(
        np.int32(prediction if sure else ABSTAIN), np.float64(plan.radius if sure else 0.0), info
    )


def _more(law, trials, p, alpha):
    """The law of a count after that many more trials, and at least the chance that it lacks."""
    from scipy import special

    k = np.arange(trials + 1)
    log = special.gammaln(trials + 1) - special.gammaln(k + 1) - special.gammaln(trials - k + 1)
    log = log + special.xlogy(k, p) + special.xlog1py(trials - k, -p)
    steps = np.exp(log)
    found = np.zeros(len(law) + trials)
    (first, one, cut), (second, other, also) = (
        _trimmed(law, alpha),
        _trimmed(steps / steps.sum(), alpha),
    )
    if len(one):
        found[first + second : first + second + len(one) + len(other) - 1] = np.convolve(one, other)
    return found, cut + also


def _trimmed(law, alpha):
    """Where the chances that count begin, those, and at least the sum of the others."""
    least = max(min(alpha * 1e-25, 1e-40), 1e-290)  # what is smaller may have lost its digits
    kept = np.flatnonzero(law > least)
    if not len(kept):
        return 0, law[:0], len(law) * least
    first, last = kept[0], kept[-1] + 1
    return first, law[first:last], (len(law) - (last - first)) * least
