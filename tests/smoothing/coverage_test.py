"""How often each certificate is wrong, where its guarantee is hardest to keep: at most alpha.

At an input where the two leaders are equal any certified class is wrong. The chance of that is found by
enumeration of both samples, for large ones by simulation. Every number is held from both sides: a rate
far below alpha would let a mistake of that size pass unseen, so the table says how far below it is.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import pytest
from scipy import special, stats

from lipjax.smoothing import gaussian, hybrid, multiclass, sequential, soft
from lipjax.smoothing.kernels import Ablation, Categorical, Mask, Uniform
from lipjax.smoothing.sampling import Moments
from lipjax.typing import ABSTAIN

pytestmark = pytest.mark.every


def moments_of(counts, scores):
    """Of `counts[..., a]` samples with `scores[a, K]`: the digits of the sums are those of `Moments`."""
    fixed = np.floor(np.float64(scores) * 2.0**24).astype(np.int64)

    def sums(values, places):
        shifts = 12 * np.arange(places)[::-1, None]
        digits = (values[:, None] >> shifts) & np.where(shifts == shifts[0], -1, 4095)
        return np.einsum("...a,adk->...dk", counts, digits)

    return Moments(counts.sum(-1), sums(fixed, 3), sums(fixed * fixed, 5))


def of_scores(selection, estimation, *, scores=None, **options):
    """`soft.certify` of counts of score vectors, by default of votes: of all scores the widest."""
    scores = np.eye(selection.shape[-1]) if scores is None else scores
    return soft.certify(moments_of(selection, scores), moments_of(estimation, scores), **options)


class Row(NamedTuple):
    """A certificate, and what part of alpha it reaches.

    Attributes:
        certify: Of two arrays of counts.
        small: `rate / alpha` of the worst small sample at alpha 0.05, and at 0.3.
        large: The same for 10 000 samples.
        slip: By how much alpha can be multiplied to exceed 0.05; None where even 1 is not enough.
    """

    certify: object
    small: tuple[float, float]
    large: tuple[float, float]
    slip: float | None


def _soft(budget, bound, *row):
    return Row(functools.partial(of_scores, budget=budget, bound=bound), *row)


def _many(budget, *row):
    return Row(functools.partial(multiclass.certify, budget=budget), *row)


def _hybrid(kernel, *row):
    return Row(functools.partial(hybrid.certify, kernel=kernel, max_edits=1), *row)


TABLE = {
    "gaussian": Row(gaussian.certify, (0.70, 0.915), (0.99, 0.99), 2),
    "multiclass auto": _many("auto", (0.70, 0.915), (0.99, 0.99), 2),
    # Half of alpha is for bounds that fail together with the first where there are two classes.
    "multiclass weighted": _many("weighted", (0.39, 0.48), (0.49, 0.49), 4),
    "multiclass bonferroni": _many("bonferroni", (0.39, 0.48), (0.49, 0.49), 4),
    "multiclass partition": _many("partition", (0.39, 0.48), (0.49, 0.49), 4),
    "hybrid mask": _hybrid(Mask(0.8), (0.70, 0.915), (0.99, 0.99), 2),
    "hybrid uniform": _hybrid(Uniform(0.9, 3), (0.70, 0.915), (0.99, 0.99), 2),
    "hybrid ablation": _hybrid(Ablation(3, 5), (0.70, 0.915), (0.99, 0.99), 2),
    "hybrid columns": _hybrid(Categorical(0.4, (2, 3, 5)), (0.70, 0.915), (0.99, 0.99), 2),
    # Exact for unanimous votes alone, elsewhere Chernoff's bound gives away most of alpha.
    "soft auto kl": _soft("auto", "kl", (0.625, 0.833), (0.143, 0.202), 3),
    "soft auto both": _soft("auto", "both", (0.313, 0.417), (0.067, 0.085), 8),
    "soft auto bernstein": _soft("auto", "bernstein", (0.0, 0.003), (0.0385, 0.0706), None),
    "soft weighted kl": _soft("weighted", "kl", (0.313, 0.417), (0.067, 0.085), 8),
    "soft bonferroni kl": _soft("bonferroni", "kl", (0.313, 0.417), (0.067, 0.085), 8),
    "soft weighted both": _soft("weighted", "both", (0.156, 0.208), (0.030, 0.039), 15),
    "soft bonferroni both": _soft("bonferroni", "both", (0.156, 0.208), (0.030, 0.039), 15),
    # Nothing is certified from few samples; from many a fiftieth of alpha.
    "soft weighted bernstein": _soft("weighted", "bernstein", (0.0, 0.0), (0.015, 0.028), None),
    "soft bonferroni bernstein": _soft("bonferroni", "bernstein", (0.0, 0.0), (0.015, 0.028), None),
}
ROWS = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
TIES = [(0.5, 0.5), (0.5, 0.5, 0.0), (0.4, 0.4, 0.2), (1 / 3, 1 / 3, 1 / 3)]
SIZES = [(1, n) for n in range(2, 13)] + [(3, 8), (3, 11)]
COPIES = 20
"""How often the negative control counts every sample: as if all were independent."""


def outcomes(trials, p):
    """All counts, and their chances."""
    rows = itertools.product(range(trials + 1), repeat=len(p) - 1)
    rows = np.array([(*r, trials - sum(r)) for r in rows if sum(r) <= trials])
    return rows, stats.multinomial.pmf(rows, trials, p)


def rate(certify, p, first, trials, *, alpha, copies=1, reuse=False):
    """The exact chance of a certificate at a tie."""
    later, after = outcomes(trials, p)
    if reuse:
        found = certify(later, later.copy(), sigma=1.0, alpha=alpha)
        return after @ (found.prediction != ABSTAIN)
    chosen, before = outcomes(first, p)
    one, two = np.repeat(chosen, len(later), 0), np.tile(later, (len(chosen), 1))
    found = certify(one, copies * two, sigma=1.0, alpha=alpha)
    return np.outer(before, after).ravel() @ (found.prediction != ABSTAIN)


def worst(certify, **options):
    """Over ties and sizes; three classes at two of the sizes alone."""
    pairs = [(p, s) for p in TIES for s in SIZES if len(p) == 2 or s in SIZES[-3:-1]]
    return max(rate(certify, p, *size, **options) for p, size in pairs)


@ROWS
def test_small_samples_exactly(row):
    """At most alpha, and the part of it that the table says."""
    for alpha, share in zip((0.05, 0.3), row.small):
        found = worst(row.certify, alpha=alpha)
        assert found <= alpha
        np.testing.assert_allclose(found / alpha, share, rtol=0.05, atol=0.001)


@ROWS
def test_negative_control_copies_taken_for_samples(row):
    """The same check fails where each sample is counted twenty times."""
    assert worst(row.certify, alpha=0.05, copies=COPIES) > 0.05


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.slip])
def test_negative_control_a_larger_alpha(name):
    """The same check fails where alpha is too large by the factor of the table."""
    row = TABLE[name]
    assert worst(row.certify, alpha=0.05 * row.slip) > 0.05


@pytest.mark.parametrize("name", ["gaussian", "multiclass auto", "hybrid mask", "hybrid uniform"])
def test_negative_control_the_class_from_the_sample_that_certifies_it(name):
    """Those that bound the class alone, always or where the first sample is unanimous."""
    assert worst(TABLE[name].certify, alpha=0.3, reuse=True) > 1.5 * 0.3


HALVES = np.arange(4650, 5351)
"""Of 10 000 votes: all counts that occur, seven deviations to each side."""


def rate_of_many(row, p=0.5, copies=1, **options):
    """The exact chance that the first of two classes is certified from 10 000 samples."""
    votes = copies * np.stack([HALVES, 10_000 - HALVES], -1)
    found = row.certify(np.tile([1, 0], (len(votes), 1)), votes, sigma=1.0, **options)
    return stats.binom.pmf(HALVES, 10_000, p) @ (found.prediction != ABSTAIN)


@ROWS
def test_large_samples_exactly(row):
    """At most alpha, and the part of it that the table says; copies fail."""
    for alpha, share in zip((0.05, 0.3), row.large):
        found = rate_of_many(row, alpha=alpha)
        assert found <= alpha
        np.testing.assert_allclose(found / alpha, share, rtol=0.05, atol=0.001)
    assert rate_of_many(row, alpha=0.05, copies=COPIES) > 0.05
    # Negative control: the measured frequency in place of its bound.
    assert stats.binom.pmf(HALVES, 10_000, 0.5)[HALVES > 5000].sum() > 0.3


@ROWS
def test_law_error_pays_for_a_law_that_is_off(row):
    """Samples that favour the class by 0.02 more than the truth, which is a tie."""
    assert rate_of_many(row, p=0.52, alpha=0.05, law_error=0.02) <= 0.05
    assert rate_of_many(row, p=0.52, alpha=0.05) > 0.5  # negative control


@ROWS
def test_large_samples_of_several_classes_by_simulation(row):
    """At most alpha and four standard errors; copies and measured frequencies exceed it."""
    alpha, runs, rng = 0.05, 1500, np.random.default_rng(0)
    limit = alpha + 4 * np.sqrt(alpha * (1 - alpha) / runs)
    right, wrong, measured = [], [], []
    for p in ((0.4995, 0.4995, 0.001), (0.4, 0.4, 0.2), np.full(10, 0.1)):
        selection, estimation = (rng.multinomial(n, p, runs) for n in (20, 10_000))
        for copies, rates in ((1, right), (COPIES, wrong)):
            found = row.certify(selection, copies * estimation, sigma=1.0, alpha=alpha)
            rates.append((found.prediction != ABSTAIN).mean())
        measured.append((selection.argmax(-1) == estimation.argmax(-1)).mean())
    assert max(right) <= limit < max(wrong) and max(measured) > limit


@pytest.mark.few(12)
@ROWS
@pytest.mark.parametrize("p", [0.6, 0.9, 0.97])
def test_radii_of_two_classes_exactly(row, p):
    """Away from ties a certificate is wrong above the true radius, for every number of edits."""
    true = special.ndtri(p)
    kernel = getattr(row.certify, "keywords", {}).get("kernel")
    if kernel is not None:
        edited = hybrid.radius(p, 1 - p, kernel=kernel, num_edits=1, sigma=1.0)
        true = np.array([true, edited])

    def wrong(copies, trials):
        later, chance = outcomes(trials, (p, 1 - p))
        found = row.certify(np.tile([1, 0], (len(later), 1)), copies * later, sigma=1.0, alpha=0.3)
        above = found.radius > true * (1 + 1e-9)
        above = above.reshape(len(later), -1).any(-1) & (found.prediction == 0)
        return chance @ (above | (found.prediction == 1))

    assert max(wrong(1, n) for n in range(2, 40)) <= 0.3
    assert max(wrong(COPIES, n) for n in range(2, 40)) > 0.3  # negative control


@pytest.mark.parametrize("bound,least", [("bernstein", 0.01), ("both", 0.005), ("kl", 0.0)])
def test_soft_scores_that_vary_little(bound, least):
    """Scores of 0.55 and 0.45: the variance counts, and Bernstein's bound keeps its part of alpha."""
    n, scores = 200_000, np.array([[0.55, 0.45], [0.45, 0.55]])
    k = np.arange(n // 2 - 1600, n // 2 + 1601)
    votes, chance = np.stack([k, n - k], -1), stats.binom.pmf(k, n, 0.5)
    first = np.tile([1, 0], (len(k), 1))

    def rate(copies, alpha):
        found = of_scores(first, copies * votes, scores=scores, sigma=1.0, alpha=alpha, bound=bound)
        return chance @ (found.prediction != ABSTAIN)

    assert least * 0.3 <= rate(1, 0.3) <= 0.3
    assert rate(2000, 0.05) > 0.05  # negative control


def test_moments_of_counts_are_those_of_the_scores():
    """What stands for samples here has their mean and variance."""
    rng = np.random.default_rng(0)
    scores, counts = rng.dirichlet(np.ones(3), 4), rng.integers(1, 9, (5, 4))
    found = moments_of(counts, scores)
    for i, row in enumerate(counts):
        drawn = np.repeat(scores, row, axis=0)
        np.testing.assert_allclose(found.mean[i], drawn.mean(0), atol=1e-7)
        np.testing.assert_allclose(found.variance[i], drawn.var(0, ddof=1), atol=1e-7)


def crossings(target, draw):
    """Whether the target is certified when `draw` says how many votes come in each stage."""
    stages = iter(draw)
    return sequential.certify(lambda start, stop: next(stages), 0, target).prediction == 0


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_stages_exactly(alpha):
    """All votes of three small stages, for a class of just the chance that is tested for."""
    steps, shares = (5, 5, 6), []
    for radius in (0.0, 0.3, 0.8):
        rates = []
        for copies in (1, COPIES):
            looks = copies * np.cumsum(steps)
            target = sequential.plan(radius, sigma=1.0, alpha=alpha, looks=looks)
            rates.append(0.0)
            for votes in itertools.product(*(range(n + 1) for n in steps)):
                if crossings(target, copies * np.array(votes)):
                    rates[-1] += stats.binom.pmf(votes, steps, special.ndtr(radius)).prod()
        assert rates[0] <= alpha < rates[1]  # negative control: copies taken for samples
        shares.append(rates[0] / alpha)
    assert max(shares) > 0.75


def test_long_stages_by_simulation():
    """Within four standard errors of alpha: nearly all of it is spent; too low a target fails."""
    alpha, runs, rng = 0.3, 2000, np.random.default_rng(0)
    looks = [100, 1000, 10_000]
    error = np.sqrt(alpha * (1 - alpha) / runs)
    rates = []
    for tested in (0.3, 0.29):
        target = sequential.plan(tested, sigma=1.0, alpha=alpha, looks=looks)
        votes = rng.binomial(np.diff([0, *looks]), special.ndtr(0.3), (runs, 3))
        rates.append(np.mean([crossings(target, row) for row in votes]))
    assert alpha - 5 * error < rates[0] <= alpha + 4 * error < rates[1]
