"""Sequential certificates: the level by exact enumeration, fewer samples, and what breaks it."""

import itertools

import numpy as np
import pytest
from scipy import special, stats

from lipjax.smoothing import gaussian, sequential
from lipjax.typing import ABSTAIN

pytestmark = pytest.mark.every

LOOKS = [100 * 2**k for k in range(8)]


def test_the_level_by_enumeration_of_all_outcomes():
    """Small looks, every sequence of votes of each stage."""
    plan = sequential.plan(0.3, sigma=0.5, alpha=0.05, looks=[8, 14, 20])
    p = plan.chance
    steps = np.diff([0, *plan.looks])
    crossed = 0.0
    for votes in itertools.product(*(range(n + 1) for n in steps)):
        if (np.cumsum(votes) >= plan.boundary).any():
            crossed += np.prod([stats.binom.pmf(v, n, p) for v, n in zip(votes, steps)])
    np.testing.assert_allclose(crossed, plan.spent, rtol=1e-9)
    assert 0.015 < plan.spent <= 0.05
    chance, _ = sequential.power(plan, p)
    assert chance <= plan.spent * (1 + 1e-9)  # giving up never certifies


def test_looking_every_time_with_the_whole_level_fails():
    """Negative control: Clopper and Pearson's boundary at alpha at each look."""
    plan = sequential.plan(0.5, sigma=0.5, alpha=0.01, looks=LOOKS)
    naive = np.array([int(stats.binom.isf(0.01, n, plan.chance)) + 1 for n in LOOKS])
    wrong, _ = sequential.power(plan._replace(boundary=naive), plan.chance)
    right, _ = sequential.power(plan, plan.chance)
    assert right <= 0.01 < 2 * 0.01 < wrong


def test_fewer_samples_than_a_fixed_number():
    plan = sequential.plan(1.5, sigma=1.0, alpha=0.001, looks=LOOKS)
    assert 0.0009 < plan.spent <= 0.001
    for p, most, least_power in ((0.983, 430, 1.0), (0.963, 1250, 1.0), (0.943, 10_100, 0.86)):
        power, samples = sequential.power(plan, p)
        assert samples <= most and power >= least_power - 1e-6
    hopeless, samples = sequential.power(plan, 0.6)
    assert hopeless < 1e-12 and samples < 101  # gives up early
    stubborn = sequential.plan(1.5, sigma=1.0, alpha=0.001, looks=LOOKS, give_up=0.0)
    assert sequential.power(stubborn, 0.6)[1] > 1000
    assert sequential.power(stubborn, 0.943)[0] - sequential.power(plan, 0.943)[0] < 0.001


def test_power_is_what_simulation_finds():
    plan = sequential.plan(1.0, sigma=1.0, alpha=0.01, looks=[50, 150, 500])
    rng = np.random.default_rng(0)
    found = [
        sequential.certify(lambda a, b: rng.binomial(b - a, 0.9), 2, plan) for _ in range(3000)
    ]
    power, samples = sequential.power(plan, 0.9)
    sure = np.array([c.prediction == 2 for c in found])
    drawn = np.array([c.info["samples"] for c in found])
    assert abs(sure.mean() - power) < 4 * np.sqrt(power * (1 - power) / 3000)
    assert abs(drawn.mean() - samples) < 4 * drawn.std() / np.sqrt(3000)
    assert {float(c.radius) for c in found} == {0.0, 1.0}
    assert {int(c.prediction) for c in found} == {2, ABSTAIN}


def test_one_look_is_the_fixed_test():
    """With a single look the class is certified exactly when Cohen's radius reaches the target."""
    n, sigma, alpha, target = 1000, 0.5, 0.001, 0.4
    plan = sequential.plan(target, sigma=sigma, alpha=alpha, looks=[n])
    votes = np.arange(n + 1)
    found = gaussian.certify(
        np.tile([1, 0], (n + 1, 1)), np.stack([votes, n - votes], -1), sigma=sigma, alpha=alpha
    )
    first = int(np.flatnonzero(found.radius >= target)[0])
    assert abs(first - int(plan.boundary[0])) <= 1 and plan.boundary[0] <= first
    assert plan.chance == pytest.approx(special.ndtr(target / sigma))


def test_targets_that_cannot_be_reached():
    plan = sequential.plan(5.0, sigma=0.5, alpha=0.001, looks=[100, 1000])
    assert (plan.boundary > plan.looks).all() and plan.spent == 0
    found = sequential.certify(lambda a, b: b - a, 0, plan)
    assert found.prediction == ABSTAIN and found.info["samples"] == 100


@pytest.mark.parametrize(
    "change,word",
    [
        (dict(radius=-1.0), "radius is -1.0"),
        (dict(sigma=0.0), "sigma is 0.0"),
        (dict(alpha=0.0), "alpha is 0.0"),
        (dict(looks=[]), "looks is"),
        (dict(looks=[10, 10]), "must increase"),
        (dict(looks=[1.5]), "list of integers"),
    ],
)
def test_bad_input_is_named(change, word):
    given = dict(radius=0.5, sigma=0.5, alpha=0.01, looks=[10, 20]) | change
    with pytest.raises(ValueError, match=word):
        sequential.plan(given.pop("radius"), **given)
    plan = sequential.plan(0.5, sigma=0.5, alpha=0.01, looks=[10, 20])
    with pytest.raises(ValueError, match="draw returned 11 votes"):
        sequential.certify(lambda a, b: 11, 0, plan)
    with pytest.raises(ValueError, match="draw is Plan.* and plan <function"):
        sequential.certify(plan, 0, lambda a, b: 9)


@pytest.mark.parametrize("alpha", [1e-30, 1e-45, 1e-60, 1e-150, 1e-250])
def test_tiny_levels_are_kept(alpha):
    """The chance of the boundary itself; chances below 1e-40 once counted as zero."""
    for looks in ([4000], [400, 1200, 6000]):
        plan = sequential.plan(0.4, sigma=0.5, alpha=alpha, looks=looks)
        reached = plan.boundary <= plan.looks
        assert reached[-1] and 0.05 * alpha < plan.spent <= alpha
        choose = stats.binom.logpmf(plan.boundary[reached], plan.looks[reached], plan.chance)
        assert (choose <= np.log(alpha)).all()
        exact = stats.binom.logsf(plan.boundary[:1] - 1, plan.looks[:1], plan.chance)
        assert not reached[0] or exact <= np.log(plan.spent) + 1e-8
    nothing = sequential.plan(0.4, sigma=0.5, alpha=1e-300, looks=[1000, 4000])
    assert (nothing.boundary > nothing.looks).all() and nothing.spent == 0


def test_looks_of_any_integer_type():
    for dtype in (np.uint8, np.int8, np.uint64):
        looks = np.array([20, 60, 100], dtype)
        plan = sequential.plan(0.5, sigma=0.5, alpha=0.01, looks=looks)
        expected = sequential.plan(0.5, sigma=0.5, alpha=0.01, looks=[20, 60, 100])
        assert plan.looks.dtype == np.int64 and plan.boundary.tolist() == expected.boundary.tolist()
        with pytest.raises(ValueError, match="must increase"):
            sequential.plan(0.5, sigma=0.5, alpha=0.01, looks=looks[::-1])


@pytest.mark.parametrize("votes", [99.9, 99.0, True, [99], np.array([99])])
def test_votes_are_whole_numbers(votes):
    plan = sequential.plan(0.5, sigma=0.5, alpha=0.01, looks=[100])
    with pytest.raises(ValueError, match="must return one integer"):
        sequential.certify(lambda a, b: votes, 0, plan)
    assert sequential.certify(lambda a, b: np.array(99), 0, plan).prediction == 0


@pytest.mark.parametrize("sigma", [np.float16(0.978515625), np.float32(0.8528867)])
def test_a_narrow_sigma_is_tested_for_as_it_is(sigma):
    found = sequential.plan(1.0, sigma=sigma, alpha=0.01, looks=[1000])
    assert found.chance >= special.ndtr(1 / float(sigma))
    assert found.chance == sequential.plan(1.0, sigma=float(sigma), alpha=0.01, looks=[1000]).chance


def test_several_targets_are_several_plans():
    with pytest.raises(ValueError, match="radius has shape .2,.; it must be one number"):
        sequential.plan(np.array([0.5, 1.0]), sigma=1.0, alpha=0.01, looks=[100])
    with pytest.raises(ValueError, match="sigma has shape .2,.; it must be one number"):
        sequential.plan(0.5, sigma=np.array([0.5, 1.0]), alpha=0.01, looks=[100])
