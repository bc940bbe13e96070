"""Every class bounded: reference values, failure rates by enumeration, budgets against each other."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest
from scipy import special, stats

from lipjax.smoothing import confidence, gaussian, multiclass
from lipjax.typing import ABSTAIN
from tests.smoothing.confidence_test import cases

pytestmark = pytest.mark.every

BUDGETS = ["weighted", "auto", "bonferroni", "partition"]


def counts(given):
    """Counts of a reference case, which may be shortened."""
    if isinstance(given, list):
        return np.array(given)
    rest = np.full(given["K"] - len(given["head"]), given["rest"])
    return np.r_[given["head"], rest]


@pytest.mark.parametrize(
    "family,budget",
    [("weighted_bonferroni", "weighted"), ("bonferroni_multi", "bonferroni"), ("cpm", "partition")],
)
def test_against_the_reference(family, budget):
    for case in cases(family):
        given, exact = case["inputs"], case["exact"]
        if given.get("mode", "Rmulti") != "Rmulti":
            continue
        found = multiclass.certify(
            counts(given["counts_sel"]),
            counts(given["counts_est"]),
            sigma=given["sigma"],
            alpha=given["alpha"],
            budget=budget,
        )
        assert found.prediction == exact["cls"], case["id"]
        expected = exact.get("radius_capped", exact["radius"])
        assert found.radius <= expected <= found.radius * (1 + 1e-9) + 1e-12, case["id"]
        assert sum(np.sum(level) for level in found.info["ledger"].values()) <= given["alpha"] * (
            1 + 1e-12
        )


def wrong(found, p):
    """Whether certificates exceed the truth for chances p: the boundary of a multi-class half-space."""
    order = special.ndtri(p)
    true = np.array([(order[a] - max(np.delete(order, a))) / 2 for a in range(len(p))])
    return (found.prediction != ABSTAIN) & (found.radius > true[found.prediction] + 1e-12)


def all_counts(trials):
    rows = [(a, b, trials - a - b) for a in range(trials + 1) for b in range(trials + 1 - a)]
    return np.array(rows)


HARD = [(0.4, 0.4, 0.2), (0.34, 0.33, 0.33), (0.6, 0.3, 0.1), (0.9, 0.05, 0.05)]


def rate(p, certify, first=4, trials=12):
    """The exact chance of a wrong certificate for three classes."""
    one, two = all_counts(first), all_counts(trials)
    chances = [stats.multinomial.pmf(c, c[0].sum(), p) for c in (one, two)]
    i, j = np.meshgrid(np.arange(len(one)), np.arange(len(two)), indexing="ij")
    bad = wrong(certify(one[i], two[j]), np.array(p))
    return (chances[0][i] * chances[1][j] * bad).sum()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("p", HARD)
def test_failure_rates_by_enumeration(budget, p):
    options = dict(sigma=1.0, alpha=0.05, budget=budget)
    assert rate(p, lambda a, b: multiclass.certify(a, b, **options)) <= 0.05


def runner_up_only(selection, estimation, *, sigma, alpha):
    """The wrong recipe: bounds for the class and the second of the first sample alone."""
    order = np.argsort(-selection, axis=-1, kind="stable")
    a, b = (np.take_along_axis(estimation, order[..., i : i + 1], -1)[..., 0] for i in (0, 1))
    n = estimation.sum(-1)
    low = confidence.clopper_pearson(a, n, alpha=alpha / 2).lower
    high = confidence.clopper_pearson(b, n, alpha=alpha / 2).upper
    radius = sigma / 2 * (special.ndtri(low) - special.ndtri(high))
    found = gaussian.certify(selection, estimation, sigma=sigma, alpha=alpha)
    return found._replace(
        prediction=np.where(radius > 0, order[..., 0], ABSTAIN), radius=np.maximum(radius, 0)
    )


def test_negative_control_the_runner_up_alone_is_not_enough():
    """Of p = (0.4, 0.4, 0.2) the third class may come second on a small first sample."""
    p, rng = np.array([0.4, 0.4, 0.2]), np.random.default_rng(0)
    selection, estimation = rng.multinomial(20, p, 20_000), rng.multinomial(200, p, 20_000)
    options = dict(sigma=1.0, alpha=0.05)
    assert wrong(runner_up_only(selection, estimation, **options), p).mean() > 2 * 0.05
    for budget in BUDGETS:
        found = multiclass.certify(selection, estimation, budget=budget, **options)
        assert wrong(found, p).mean() < 0.05


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_smaller_than_the_majority_radius_at_the_same_level(budget):
    rng = np.random.default_rng(0)
    for classes in (2, 3, 10):
        p = rng.dirichlet(np.full(classes, 0.3), 50)
        selection, estimation = (
            np.stack([rng.multinomial(n, row) for row in p]) for n in (100, 10_000)
        )
        found = multiclass.certify(selection, estimation, sigma=0.5, alpha=0.001, budget=budget)
        own = found.info["ledger"]["the class is less likely"]
        for i in range(50):
            one = gaussian.certify(selection[i], estimation[i], sigma=0.5, alpha=float(own[i]))
            assert found.radius[i] >= one.radius * (1 - 1e-9)
        total = sum(found.info["ledger"].values())
        assert (total <= 0.001 * (1 + 1e-12)).all()


@pytest.mark.parametrize("trials", [1000, 10_000, 100_000])
@pytest.mark.parametrize(
    "classes,concentration,sure",
    [
        (2, 0.3, 0),
        (3, 0.5, 0),
        (3, 0.5, 0.9),
        (3, 0.2, 0),
        (10, 0.15, 0),
        (10, 0.1, 0.97),
        (10, 1.0, 0),
        (500, 0.1, 0.4),
    ],
)
def test_the_default_has_the_largest_radius(classes, concentration, sure, trials):
    """Never smaller than Cohen's; of all other budgets its mean is the largest, on the same counts."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(classes, concentration), 300)
    if sure:
        p *= (1 - np.linspace(sure, 0.9999, 300))[:, None]
        p[:, 0] += 1 - p.sum(1)
    counts = [rng.multinomial(n, p) for n in (100, trials)]
    options = dict(sigma=0.5, alpha=0.001)
    found = multiclass.certify(*counts, **options).radius
    cohen = gaussian.certify(*counts, **options).radius
    assert (found >= cohen).all() and (classes == 2 or found.mean() > cohen.mean())
    for budget in ("bonferroni", "partition", "weighted"):
        other = multiclass.certify(*counts, budget=budget, **options).radius
        assert found.mean() > other.mean()


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_the_default_costs_nothing_where_one_class_has_what_the_other_lacks(classes):
    """Where nothing is to be gained: unanimous votes, and a third class that hardly occurs."""
    rng, options = np.random.default_rng(0), dict(sigma=0.5, alpha=0.001)
    for share in (0.0, 1.0):
        lacks = share * 10.0 ** rng.uniform(-5, -0.4, 300)
        p = np.zeros((300, classes))
        p[:, 0], p[:, 1], p[:, 2] = 1 - lacks, 0.995 * lacks, 0.005 * lacks
        counts = [rng.multinomial(n, p) for n in (100, 10_000)]
        cohen = gaussian.certify(*counts, **options).radius
        assert (multiclass.certify(*counts, **options).radius >= cohen).all()
        weighted = multiclass.certify(*counts, budget="weighted", **options).radius
        assert weighted.mean() < (1 - 4e-3) * cohen.mean()


def at_the_edge(c, rho, trials, alpha):
    """Chances (a, b, rho) at which the radius of the class alone is just too large from c votes on."""
    z = -special.ndtri(confidence.failure(c, trials, alpha=alpha))
    low, high = 0.0, special.ndtr(z)
    for _ in range(80):
        a = (low + high) / 2
        above = special.ndtri(a) + special.ndtri(min(a + rho, 1.0)) > 2 * z
        low, high = (low, a) if above else (a, high)
    a = low * (1 - 1e-9)
    return np.array([a, 1 - a - rho, rho])


@pytest.mark.parametrize("seen", [0, 1])
@pytest.mark.parametrize("trials,alpha", [(40, 0.05), (60, 0.3), (150, 0.01)])
def test_the_larger_of_two_radii_is_wrong_no_more_often(trials, alpha, seen):
    """Exact chances, where the radius of Cohen et al. alone spends all of alpha; three classes.

    No such chance shows that votes enough are needed: what they rest on has its own test below.
    """
    counts = all_counts(trials)
    first = np.broadcast_to([98, 1, seen], counts.shape)
    found = multiclass.certify(first, counts, sigma=1.0, alpha=alpha).radius
    more = multiclass.certify(first, counts, sigma=1.0, alpha=2 * alpha).radius  # negative control
    alone = gaussian.certify(first, counts, sigma=1.0, alpha=alpha).radius
    assert (found > alone).any()
    rates, beyond = [], []
    for c in range(trials // 2, trials, 3):
        if confidence.failure(c, trials, alpha=alpha) >= 0.5:
            continue
        for rho in np.geomspace(0.01, 0.3 * trials, 12) / trials:
            p = at_the_edge(c, rho, trials, alpha)
            if p[1] <= 0 or p[0] <= p[1]:
                continue
            chances = stats.multinomial.pmf(counts, trials, p)
            true = (special.ndtri(p[0]) - special.ndtri(p[1])) / 2
            rates.append(chances[found > true].sum())
            beyond.append(chances[more > true].sum())
    assert 0.97 * alpha < max(rates) <= alpha < max(beyond)


@pytest.mark.parametrize(
    "first,share",
    [([98, 2, 0], multiclass.FEW), ([97, 2, 1], multiclass.SHARE), ([9, 0, 0], multiclass.FEW)],
)
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_two_pairs_at_the_levels_of_the_ledger(first, share, alpha):
    """The second one from that many votes on which are of neither leader; it repeats the first below."""
    trials, rest = 10_000, np.arange(90)
    votes, most = 9300 - rest // 2, 700 - (rest + 1) // 2
    counts = np.stack([votes, most, rest], -1)
    found = multiclass.bounds(np.broadcast_to(first, counts.shape), counts, alpha=alpha)
    own, other = found.ledger.values()
    other = np.where(other > 0, other, 0.5)  # not spent
    alone = confidence.failure(votes, trials, alpha=alpha)
    assert (found.failure[0] == alone).all() and (found.others[0] == alone).all()
    assert (own[0] == alpha).all()
    enough = multiclass._enough(rest, votes, np.full(90, trials), alpha=alpha, share=share)
    assert not enough[:3].any() and enough[-1]
    np.testing.assert_allclose(own[1], np.where(enough, share * alpha, alpha), rtol=1e-12)
    np.testing.assert_allclose(
        found.ledger["the likeliest other class is more likely"][1],
        np.where(enough, (1 - share) * alpha, 0.0),
        rtol=1e-12,
    )
    bounded = confidence.failure(votes, trials, alpha=own[1])
    np.testing.assert_allclose(found.failure[1], bounded, rtol=1e-12)
    upper = np.minimum(confidence.failure(trials - most, trials, alpha=other[1]), bounded)
    np.testing.assert_allclose(found.others[1], np.where(enough, upper, alone), rtol=1e-12)
    assert (found.others[1][enough] < bounded[enough]).any()


@pytest.mark.parametrize("share", [0.5, multiclass.SHARE, multiclass.FEW, 0.99])
@pytest.mark.parametrize("trials,alpha", [(100, 0.05), (1000, 0.3), (10_000, 0.001), (10**6, 1e-6)])
def test_the_two_inequalities_behind_the_larger_radius(trials, alpha, share):
    """How fast the first becomes sure, how rarely the rest has votes enough; less of either fails."""
    votes = np.unique(np.linspace(trials // 2 + 1, trials - 1, 40).astype(int))
    bound = 1 - confidence.failure(votes, trials, alpha=alpha)
    votes, bound = votes[bound > 0.5], bound[bound > 0.5]
    slope = multiclass._slope(votes, trials, alpha)
    assert (np.diff(slope) >= 0).all()
    away = np.geomspace(1e-3, 20, 30)[:, None] / slope
    chance = special.betainc(votes, trials - votes + 1, np.maximum(bound - away, 0))
    assert (chance <= alpha * np.exp(-slope * away)).all()
    assert (chance > alpha * np.exp(-4 * slope * away)).any()  # negative control
    rest = np.arange(trials) if trials <= 10_000 else np.arange(10_000)
    least = []
    for v, k in zip(votes, slope):
        options = dict(alpha=alpha, share=share)
        enough = multiclass._enough(
            rest, np.full(rest.shape, v), np.full(rest.shape, trials), **options
        )
        if not enough.any():
            continue
        m = int(enough.argmax())
        assert enough[m:].all()
        least.append(m)
        last = -2 * np.log(share) / k
        rho = last * np.linspace(0.001, 1, 50)
        room = alpha * -np.expm1(-k * rho / 2)
        assert (stats.binom.sf(m - 1, trials, rho) <= room).all()
        assert stats.binom.sf(m - 2, trials, last) > room[-1]  # negative control
    assert least and (np.diff(least) <= 0).all()


@pytest.mark.parametrize("p", [(0.3, 0.28, 0.28, 0.14), (0.7, 0.1, 0.1, 0.1)])
def test_what_is_left_of_alpha_need_not_be_shared(p):
    """Each other class has all that is left of alpha; samples counted twenty times are too many."""
    rng, alpha = np.random.default_rng(0), 0.1
    selection, estimation = rng.multinomial(20, p, 20_000), rng.multinomial(500, p, 20_000)
    rates = [
        wrong(multiclass.certify(selection, n * estimation, sigma=1.0, alpha=alpha), p).mean()
        for n in (1, 20)
    ]
    assert rates[0] <= alpha < rates[1]


def test_a_class_without_a_majority_can_be_certified():
    found = multiclass.certify([45, 30, 25], [4500, 3000, 2500], sigma=1.0, alpha=0.001)
    assert found.prediction == 0 and found.radius > 0.1
    assert gaussian.certify([45, 30, 25], [4500, 3000, 2500], sigma=1.0, alpha=0.001).radius == 0


def test_ties_and_single_samples_abstain():
    for budget, n in itertools.product(BUDGETS, (1, 2)):
        found = multiclass.certify([1, 0, 0], [n, 0, 0], sigma=1.0, alpha=0.001, budget=budget)
        assert found.prediction == ABSTAIN and found.radius == 0
    found = multiclass.certify([5, 5], [500, 500], sigma=1.0, alpha=0.001)
    assert found.prediction == ABSTAIN


@pytest.mark.parametrize(
    "change,word",
    [
        (dict(budget="cpm"), "budget is 'cpm'"),
        (dict(selection=[7]), "selection has shape"),
        (dict(alpha=2.0), "alpha is 2.0"),
        (dict(sigma=-1.0), "sigma is -1.0"),
        (dict(estimation=[1.5, 2.0, 3.0]), "estimation has dtype"),
        (dict(estimation=[2**62] * 3), "estimation has a count of 4611686018427387904"),
        (dict(estimation=np.full(3, 2**63 + 1, np.uint64)), "estimation has a count of 92233"),
        (dict(budget=np.array(["auto", "weighted"])), "budget is array"),
    ],
)
def test_bad_input_is_named(change, word):
    given = dict(selection=[5, 1, 0], estimation=[90, 8, 2], sigma=0.5, alpha=0.01) | change
    with pytest.raises(ValueError, match=word):
        multiclass.certify(given.pop("selection"), given.pop("estimation"), **given)


@pytest.mark.parametrize("certify", [gaussian.certify, multiclass.certify])
def test_one_sample_is_not_two(certify):
    counts = np.array([90, 8, 2])
    with pytest.raises(
        ValueError, match="selection and estimation are the same object; .* two indep"
    ):
        certify(counts, counts, sigma=1.0, alpha=0.01)


@pytest.mark.parametrize("certify", [gaussian.certify, multiclass.certify])
def test_inside_of_jit_the_way_out_is_named(certify):
    with pytest.raises(ValueError, match="selection is .* outside of jit and vmap"):
        jax.jit(lambda a, b: certify(a, b, sigma=1.0, alpha=0.01).radius)(*np.ones((2, 3), int))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [3, 7, 10, 1000])
def test_exact_sums_of_the_ledger_are_at_most_alpha(budget, dtype, classes):
    rng = np.random.default_rng(0)
    selection = np.concatenate(
        [rng.multinomial(100, p, 5) for p in rng.dirichlet(np.ones(classes), 5)]
    )
    selection = np.r_[selection, [np.eye(classes, dtype=int)[0] * 100]]
    for alpha in np.linspace(0.001, 0.05, 20).astype(dtype):
        found = multiclass.certify(
            selection, selection.copy(), sigma=1.0, alpha=alpha, budget=budget
        )
        ledger = [np.broadcast_to(level, 26) for level in found.info["ledger"].values()]
        for row in zip(*ledger):
            total = sum(Fraction(float(level)) for level in row)
            assert Fraction(float(alpha)) * 99 / 100 <= total <= Fraction(float(alpha))


def test_noise_is_of_the_batch():
    counts = np.array([[900, 90, 10], [800, 150, 50]])
    with pytest.raises(ValueError, match=r"sigma has shape \(2, 1\)"):
        multiclass.certify(counts, counts.copy(), sigma=np.array([[1.0], [2.0]]), alpha=0.01)
    found = multiclass.certify(counts, counts.copy(), sigma=np.array([1.0, 2.0]), alpha=0.01)
    assert found.radius.shape == (2,)


@pytest.mark.parametrize("trials", [10**5, 2**31 - 9])
def test_the_chance_of_the_class_is_rounded_down(trials):
    """What is missing to 1 has few digits left in a float64 near 1; the last one is on the safe side."""
    votes = trials - np.arange(40)
    counts = np.stack([votes, trials - votes], -1)
    first = np.tile([10, 0], (40, 1))
    missing = confidence.failure(votes, trials, alpha=0.001)
    found = gaussian.certify(first, counts, sigma=1.0, alpha=0.001).info["p_lower"]
    assert all(Fraction(p) <= 1 - Fraction(q) for p, q in zip(found.tolist(), missing.tolist()))
    np.testing.assert_allclose(1 - found, missing, rtol=1e-7)
    several = multiclass.certify(first, counts, sigma=1.0, alpha=0.001, budget="bonferroni")
    level = several.info["ledger"]["the class is less likely"][0]
    missing = confidence.failure(votes, trials, alpha=level)
    pairs = zip(several.info["p_lower"].tolist(), missing.tolist())
    assert all(Fraction(p) <= 1 - Fraction(q) for p, q in pairs)
