"""Confidence bounds: against the reference values, and their failure rates by enumeration."""

import decimal
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from lipjax.smoothing import confidence
from lipjax.smoothing.confidence import clopper_pearson

pytestmark = pytest.mark.every

VALUES = json.loads((Path(__file__).parent / "reference_values.json").read_text())
"""Computed in float64 by programs that share nothing with the library."""


def cases(family):
    """The reference values of one family; there are some."""
    found = [case for case in VALUES if case["family"] == family]
    assert found
    return found


def test_counts_against_the_reference():
    for case in cases("cp"):
        k, n, alpha = (case["inputs"][name] for name in ("k", "n", "alpha"))
        found, exact = clopper_pearson(k, n, alpha=alpha), case["exact"]
        assert found.lower <= exact["lower"] <= found.lower + 1e-9
        assert found.upper - 1e-9 <= exact["upper"] <= found.upper
        q = confidence.failure(k, n, alpha=alpha)
        assert exact["q_fail_upper"] <= q <= exact["q_fail_upper"] * (1 + 1e-9)


def test_means_against_the_reference():
    for case in cases("bernstein"):
        mean, std, n, alpha = (case["inputs"][name] for name in ("mean", "std", "n", "alpha"))
        exact = case["exact"]
        found = confidence.empirical_bernstein(mean, std**2, n, alpha=alpha)
        np.testing.assert_allclose(found.lower, exact["lower"], rtol=1e-9)
        found = confidence.chernoff_kl(mean, n, alpha=alpha)
        np.testing.assert_allclose(found.lower, exact["kl_lower"], rtol=1e-9)
        found = confidence.hoeffding(mean, n, alpha=alpha)
        np.testing.assert_allclose(mean - found.lower, exact["hoeffding_shift"], rtol=1e-9)


@pytest.mark.parametrize("trials", [1, 2, 10, 100, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize("alpha", [1e-12, 1e-3, 0.3])
def test_conservative_by_at_most_1e_8(trials, alpha):
    rng = np.random.default_rng(0)
    k = np.unique(np.r_[0, 1, trials // 2, trials - 1, trials, rng.integers(0, trials + 1, 200)])
    exact = np.where(k == 0, 0, special.betaincinv(np.maximum(k, 1), trials - k + 1, alpha))
    found = clopper_pearson(k, trials, alpha=alpha)
    assert (found.lower <= exact).all() and (found.lower >= exact - 1e-11).all()
    np.testing.assert_allclose(
        found.upper, 1 - clopper_pearson(trials - k, trials, alpha=alpha).lower, atol=1e-11
    )
    if trials <= 1000:
        table, exact = (
            confidence.failure_table(trials, alpha=alpha),
            confidence.failure(np.arange(trials + 1), trials, alpha=alpha),
        )
        assert table.dtype == np.float32 and (np.diff(table) <= 0).all()
        assert (table >= exact).all() and (table <= exact * (1 + 2.0**-22)).all()
        wide = confidence.failure_table(trials, alpha=alpha, dtype=np.float64)
        np.testing.assert_array_equal(wide, exact)


def failure_rate(lower, trials, p):
    """The exact chance that a lower bound, given for every count, exceeds p."""
    return stats.binom.pmf(np.arange(trials + 1), trials, p)[lower > p].sum()


PROBABILITIES = np.r_[np.linspace(0.001, 0.999, 400), 1 - np.geomspace(1e-6, 1e-2, 50)]


@pytest.mark.parametrize("trials", [1, 7, 60])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_failure_rates_are_at_most_alpha(trials, alpha):
    k = np.arange(trials + 1)
    mean = k / trials
    bounds = {
        "clopper_pearson": clopper_pearson(k, trials, alpha=alpha),
        "hoeffding": confidence.hoeffding(mean, trials, alpha=alpha),
        "chernoff_kl": confidence.chernoff_kl(mean, trials, alpha=alpha),
    }
    if trials > 1:
        variance = mean * (1 - mean) * trials / (trials - 1)
        bounds["bernstein"] = confidence.empirical_bernstein(mean, variance, trials, alpha=alpha)
    for name, found in bounds.items():
        rates = [failure_rate(found.lower, trials, p) for p in PROBABILITIES]
        assert max(rates) <= alpha * (1 + 1e-9), name
        flipped = [failure_rate(1 - found.upper[::-1], trials, p) for p in PROBABILITIES]
        assert max(flipped) <= alpha * (1 + 1e-9), name
    near = np.nextafter(bounds["clopper_pearson"].lower[1:], 0)  # just below each bound: tight
    assert (
        max(failure_rate(bounds["clopper_pearson"].lower, trials, p) for p in near) > 0.99 * alpha
    )


def test_negative_control_the_normal_approximation_fails_too_often():
    trials, alpha = 60, 0.05
    mean = np.arange(trials + 1) / trials
    wald = mean - special.ndtri(1 - alpha) * np.sqrt(mean * (1 - mean) / trials)
    assert max(failure_rate(wald, trials, p) for p in PROBABILITIES) > 2 * alpha


@pytest.mark.few(1)
@pytest.mark.parametrize("p", [0.3, 0.9, 0.999])
def test_the_randomized_bounds_fail_exactly_as_often_as_allowed(p):
    trials, alpha = 20, 0.05
    k, u = np.meshgrid(np.arange(trials + 1), (np.arange(2000) + 0.5) / 2000, indexing="ij")
    found = confidence.randomized_clopper_pearson(k, trials, u, alpha=alpha)
    chances = stats.binom.pmf(np.arange(trials + 1), trials, p)
    rate = (chances[:, None] * (found.lower > p)).sum() / 2000
    np.testing.assert_allclose(rate, alpha, atol=1e-3)
    rate = (chances[:, None] * (found.upper < p)).sum() / 2000
    np.testing.assert_allclose(rate, alpha, atol=1e-3)
    plain = clopper_pearson(k, trials, alpha=alpha)
    assert (found.lower >= plain.lower - 1e-11).all() and (found.upper <= plain.upper + 1e-11).all()


def test_kl_is_inside_hoeffding():
    mean, n = np.linspace(0, 1, 101), 500
    kl = confidence.chernoff_kl(mean, n, alpha=0.01)
    wide = confidence.hoeffding(mean, n, alpha=0.01)
    assert (kl.lower >= wide.lower - 1e-11).all() and (kl.upper <= wide.upper + 1e-11).all()


@pytest.mark.parametrize(
    "call,word",
    [
        (lambda: clopper_pearson(3, 2, alpha=0.1), "successes is 3"),
        (lambda: clopper_pearson(-1, 2, alpha=0.1), "successes is -1"),
        (lambda: clopper_pearson(1.0, 2, alpha=0.1), "successes has dtype"),
        (lambda: clopper_pearson(1, 0, alpha=0.1), "trials is 0"),
        (lambda: clopper_pearson(1, 2, alpha=0.0), "alpha is 0.0"),
        (lambda: clopper_pearson(1, 2, alpha=float("nan")), "alpha is nan"),
        (lambda: clopper_pearson(1, 2, alpha=1), "alpha is 1"),
        (lambda: confidence.hoeffding(1.5, 2, alpha=0.1), "mean is 1.5"),
        (lambda: confidence.empirical_bernstein(0.5, 0.1, 1, alpha=0.1), "trials is 1"),
        (lambda: confidence.empirical_bernstein(0.5, 0.3, 100, alpha=0.1), "variance is 0.3"),
        (lambda: confidence.randomized_clopper_pearson(1, 2, 1.0, alpha=0.1), "uniform is 1.0"),
        (lambda: confidence.failure_table(0, alpha=0.1), "trials is 0"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_failure_in_jit():
    """Never below the exact value, and at most one rounding above, under jit and vmap."""
    import jax

    for n, alpha in ((1, 0.3), (10, 1e-12), (1000, 0.05), (10**6, 1e-6)):
        k = np.unique(np.linspace(0, n, 60).astype(np.int32))
        exact = confidence.failure(k, n, alpha=alpha)
        bound = jax.vmap(lambda k, n=n, a=alpha: confidence.failure_in_jit(k, n, alpha=a))
        found = jax.jit(bound)(k)
        assert found.dtype == np.float32 and found.shape == k.shape
        assert (np.float64(found) >= exact).all() and (found <= exact * (1 + 1.3e-7)).all()
        assert (
            np.float64(exact.astype(np.float32)) < exact
        ).any()  # rounding to nearest is too low
        with jax.enable_x64(True):
            wide = jax.jit(bound)(k)
        assert wide.dtype == np.float64
        np.testing.assert_allclose(wide, exact, rtol=1e-12)
    with pytest.raises(ValueError, match="dtype is float16"):
        confidence.failure_table(10, alpha=0.1, dtype=np.float16)
    beyond = jax.jit(lambda k: confidence.failure_in_jit(k, 10, alpha=0.1))
    assert beyond(11) == beyond(-1) == 1
    with pytest.raises(ValueError, match="successes has dtype"):
        confidence.failure_in_jit(1.5, 10, alpha=0.1)


@pytest.mark.parametrize("trials", [10**5, 2**31 - 1])
def test_kl_bounds_hold_to_the_last_digit(trials):
    """Where the entropy is a small difference of large terms, and where alpha is nearly 1."""
    decimal.getcontext().prec = 60
    for alpha in (0.001, 1 - 1e-12):
        for mean in (0.5, 0.9, 1e-6):
            p = decimal.Decimal(float(confidence.chernoff_kl(mean, trials, alpha=alpha).lower))
            m, one = decimal.Decimal(mean), decimal.Decimal(1)
            entropy = m * (m / p).ln() + (one - m) * ((one - m) / (one - p)).ln()
            assert entropy >= -decimal.Decimal(alpha).ln() / trials


def test_levels_too_small_for_the_inverse_give_trivial_bounds():
    found = confidence.clopper_pearson(np.array([0, 5, 9, 10]), 10, alpha=1e-300)
    assert not np.isnan(found.lower).any() and not np.isnan(found.upper).any()
    assert (found.lower <= 1e-20).all() and (found.upper >= 1 - 1e-20).all()


@pytest.mark.parametrize("trials", [10**6, 10**8, 2**31 - 1])
def test_many_trials_are_bounded_outwards(trials):
    """The inverse functions are off by up to a relative 2e-10 there, the functions are not."""
    rng = np.random.default_rng(0)
    k = np.r_[72_124_474 % trials, (trials * rng.uniform(size=400) ** 4).astype(int), trials - 9]
    k = np.maximum(k, 1)
    alpha = np.r_[0.001, 10.0 ** -rng.uniform(0.3, 14, 400), 0.001]
    found = clopper_pearson(k, trials, alpha=alpha)
    assert (special.betainc(k, trials - k + 1, found.lower) <= alpha)[found.lower < 0.5].all()
    assert (special.betaincc(k + 1, trials - k, found.upper) <= alpha).all()
    failed = confidence.failure(k, trials, alpha=alpha)
    assert (special.betaincc(trials - k + 1, k, failed) <= alpha).all()
    inverse = special.betaincinv(k, trials - k + 1, alpha)
    np.testing.assert_allclose(found.lower, inverse, rtol=1e-9)
    np.testing.assert_allclose(failed, special.betainccinv(trials - k + 1, k, alpha), rtol=1e-9)
    if trials > 10**6:  # negative control: the margin alone
        inverse = inverse * (1 - confidence.MARGIN)
        assert (special.betainc(k, trials - k + 1, inverse) > alpha * (1 + 1e-9)).any()


@pytest.mark.parametrize("alpha", [1e-199, 1e-250, 1e-280, 1e-300])
def test_counts_at_tiny_levels_are_not_bounded_inwards(alpha):
    """The chance of the count itself at its lower bound is at most alpha; at 1e-250 it was 1e-228."""
    k = np.array([2964, 2900, 2990, 65])
    n = np.array([3000, 3000, 3000, 100])
    choose = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    missed = np.array(confidence.failure(k, n, alpha=alpha))
    chance = choose + special.xlog1py(k, -missed) + special.xlogy(n - k, missed)
    assert (chance <= np.log(alpha) + 1e-9).all()
    lower = clopper_pearson(k, n, alpha=alpha).lower
    chance = choose + special.xlogy(k, lower) + special.xlog1py(n - k, -lower)
    assert (chance <= np.log(alpha) + 1e-9).all()
    assert alpha < confidence.LEAST or (lower > 1e-4).all()


@pytest.mark.parametrize("trials", [10**5, 10**7, 10**9])
def test_lower_bounds_near_one_keep_the_digits_of_what_is_missing(trials):
    lower = clopper_pearson(trials, trials, alpha=0.001).lower
    exact = -np.expm1(np.log(0.001) / trials)
    assert exact <= 1 - lower <= exact * (1 + 2e-12) + 2.0**-53


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_levels_of_any_type_are_used_in_float64(dtype):
    """Numbers too: next to Python's numbers they keep arithmetic in their own type."""
    several = np.linspace(0.001, 0.3, 100).astype(dtype)
    for bound in (
        lambda alpha: confidence.hoeffding(0.9, 20, alpha=alpha),
        lambda alpha: confidence.empirical_bernstein(0.5, 0.25, 20, alpha=alpha),
        lambda alpha: confidence.chernoff_kl(0.9, 20, alpha=alpha),
        lambda alpha: clopper_pearson(9, 20, alpha=alpha),
        lambda alpha: confidence.randomized_clopper_pearson(9, 20, 0.5, alpha=alpha),
    ):
        np.testing.assert_array_equal(bound(several), bound(several.astype(np.float64)))
        for alpha in several[:3]:
            assert bound(alpha) == bound(float(alpha))


def test_counts_of_any_integer_types():
    expected = confidence.failure(3, 5, alpha=0.1)
    for one, other in ((np.uint64, np.int64), (np.uint8, np.int32), (np.int8, np.uint64)):
        assert confidence.failure(one(3), other(5), alpha=0.1) == expected
        assert clopper_pearson(one(3), other(5), alpha=0.1) == clopper_pearson(3, 5, alpha=0.1)


@pytest.mark.parametrize("batch", [2, 3])
def test_trials_and_levels_keep_their_axes_under_vmap(batch):
    """The axes of counts were taken for those of the trials: bounds of other counts."""
    k, n, levels = np.array([90, 80, 70])[:batch], np.array([100, 200]), np.array([0.1, 0.01])
    for options in (dict(alpha=0.1), dict(alpha=levels)):
        found = jax.vmap(lambda k: confidence.failure_in_jit(k, jnp.asarray(n), **options))(  # noqa: B023
            jnp.asarray(k)
        )
        exact = confidence.failure(k[:, None], n, **options)
        assert (exact <= found).all() and (found <= exact * (1 + 1e-6)).all()


def test_several_levels_under_jit():
    levels = np.array([0.1, 0.01])
    found = jax.jit(lambda k: confidence.failure_in_jit(k, 100, alpha=levels))(90)
    exact = confidence.failure(90, 100, alpha=levels)
    assert found.shape == (2,)
    assert (exact <= found).all() and (found <= exact * (1 + 1e-6)).all()


def test_what_does_not_fit_is_named():
    for call, word in [
        (lambda: confidence.failure_table(3, alpha=np.array([0.1, 0.2])), "alpha has shape"),
        (lambda: confidence.failure_table(3, alpha=0.1, dtype="foo"), "dtype is foo"),
        (
            lambda: confidence.failure(np.zeros(2, int), np.full(3, 5), alpha=0.1),
            "successes has shape",
        ),
        (lambda: confidence.chernoff_kl(1j, 10, alpha=0.1), "mean is 1j"),
        (
            lambda: jax.jit(lambda a: confidence.failure_in_jit(1, 3, alpha=a))(0.1),
            "alpha is .*jit",
        ),
    ]:
        with pytest.raises(ValueError, match=word):
            call()
