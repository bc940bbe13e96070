"""The worst case of changed tokens: reference values, brute force, the edges of every kernel."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from scipy import optimize

from lipjax.smoothing.discrete import certify, hold, rest, worst_case
from lipjax.smoothing.kernels import Ablation, Categorical, Mask, Uniform
from tests.smoothing.confidence_test import cases

pytestmark = pytest.mark.every


def kernel_of(given):
    if given.get("kernel", "uniform") == "uniform":
        return Uniform(given["beta"], given["V"])
    return Mask(given["beta"])


@pytest.mark.parametrize("family", ["discrete", "sparse_smoothing"])
def test_against_the_reference(family):
    for case in cases(family):
        given, exact = case["inputs"], case["exact"]
        found = worst_case(given["pA"], kernel=kernel_of(given), num_edits=given["d"])
        assert found <= exact * (1 + 1e-12) + 1e-15, case["id"]
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-12, err_msg=case["id"])


def test_the_published_thresholds():
    for case in cases("lee_rho_inv"):
        given, threshold = case["inputs"], float(case["exact"])
        kernel = Uniform(given["beta"], given["V"])
        left = worst_case(threshold, kernel=kernel, num_edits=given["d"])
        np.testing.assert_allclose(left, 0.5, rtol=1e-8)


def test_ablation_stops_before_the_first_radius_that_fails():
    for case in cases("ranmask"):
        given = case["inputs"]
        kernel = Ablation(given["keep"], given["length"])
        left = [
            worst_case(given["p_lower"], kernel=kernel, num_edits=d)
            for d in range(given["length"] + 1)
        ]
        assert int(np.sum(np.array(left) > 0.5)) - 1 == case["exact"]["certified"]


def brute_force(p, kernel, d):
    """The linear program over all outcomes of d tokens; clean 0, attacked 1, of a small alphabet."""
    if isinstance(kernel, Mask):
        clean, attacked = [1 - kernel.beta, 0, kernel.beta], [0, 1 - kernel.beta, kernel.beta]
    else:
        other = kernel.beta / (kernel.vocab_size - 1)
        clean = [other] * kernel.vocab_size
        attacked = list(clean)
        clean[0] = attacked[1] = 1 - kernel.beta
    outcomes = list(itertools.product(range(len(clean)), repeat=d))
    one = np.array([np.prod([clean[t] for t in o]) for o in outcomes])
    two = np.array([np.prod([attacked[t] for t in o]) for o in outcomes])
    found = optimize.linprog(two, A_ub=-one[None], b_ub=[-p], bounds=(0, 1), method="highs")
    return found.fun


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.6, 2 / 3, 0.9, 1.0])
@pytest.mark.parametrize("vocab", [2, 3, 4])
def test_the_uniform_kernel_by_brute_force(beta, vocab):
    for d, p in itertools.product((1, 2, 3), (0.2, 0.9, 0.999)):
        found = worst_case(p, kernel=Uniform(beta, vocab), num_edits=d)
        exact = brute_force(p, Uniform(beta, vocab), d)
        assert found <= exact + 1e-9
        np.testing.assert_allclose(found, exact, atol=2e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95, 1.0])
def test_the_mask_by_brute_force(beta):
    for d, p in itertools.product((1, 2, 3), (0.2, 0.9, 0.999)):
        np.testing.assert_allclose(
            worst_case(p, kernel=Mask(beta), num_edits=d), brute_force(p, Mask(beta), d), atol=2e-9
        )


def test_no_noise_proves_nothing_and_all_noise_everything():
    """A public code certifies a radius where every token is kept."""
    assert worst_case(0.99, kernel=Uniform(0.0, 30_000), num_edits=1) == 0
    assert worst_case(0.99, kernel=Mask(0.0), num_edits=1) == 0
    np.testing.assert_allclose(worst_case(0.99, kernel=Mask(1.0), num_edits=5), 0.99)
    np.testing.assert_allclose(worst_case(0.7, kernel=Uniform(0.25, 10), num_edits=0), 0.7)


def test_more_edits_leave_less_and_hundreds_do_not_overflow():
    p = np.linspace(0.0, 1.0, 101)
    previous = p
    for d in (1, 2, 5, 30, 200):
        left = worst_case(p, kernel=Uniform(0.99, 30_000), num_edits=d)
        assert np.isfinite(left).all() and (left <= previous + 1e-12).all()
        assert (np.diff(left) >= -1e-12).all()
        previous = left
    assert worst_case(1.0, kernel=Uniform(0.99, 30_000), num_edits=200) > 0.9


@pytest.mark.parametrize(
    "call,word",
    [
        (lambda: worst_case(1.1, kernel=Mask(0.5), num_edits=1), "p_lower is 1.1"),
        (lambda: worst_case(0.9, kernel="mask", num_edits=1), "kernel is 'mask'"),
        (lambda: worst_case(0.9, kernel=Mask(0.5), num_edits=-1), "num_edits is -1"),
        (lambda: Mask(1.5), "beta is 1.5"),
        (lambda: Uniform(0.5, 1), "vocab_size is 1"),
        (lambda: Ablation(5, 4), "keep is 5"),
        (lambda: worst_case(0.9, kernel=Ablation(1, 4), num_edits=5), "num_edits is 5"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


@pytest.mark.parametrize(
    "p,kernel,num_edits",
    [
        (0.999, Uniform(0.25, 30_000), 100),
        (0.999, Uniform(0.25, 30_000), 70),
        (0.999, Uniform(0.01, 50_000), 49),
        (0.999, Uniform(0.001, 2), 108),
        (0.9, Uniform(1e-300, 3), 2),
    ],
)
def test_clean_masses_too_small_for_a_number_count_as_missing(p, kernel, num_edits):
    """Their attacked mass is nearly 1: kept, they made certificates of up to 0.99 (truth: 0)."""
    assert worst_case(p, kernel=kernel, num_edits=num_edits) <= 1e-12
    log_mass, log_ratio, _ = kernel.atoms(num_edits)
    lost = np.exp(log_mass) == 0
    assert lost.any() and np.exp(log_mass + log_ratio)[lost].sum() > 1e-4  # the negative control
    everything = worst_case(1.0, kernel=kernel, num_edits=num_edits)
    assert 1 - 1e-9 <= everything <= 1  # nothing is missing of a function that is always one


@pytest.mark.parametrize(
    "keep,length,d", [(5, 10**6, 1), (5, 10**5, 3), (300, 10**6, 200), (7, 9, 3)]
)
def test_ablation_of_long_texts_is_exact(keep, length, d):
    seen = Fraction(1)
    for i in range(d):
        seen *= Fraction(max(length - keep - i, 0), length - i)
    truth = max(Fraction(999, 1000) - (1 - seen), 0)
    got = worst_case(0.999, kernel=Ablation(keep, length), num_edits=d)
    assert got <= truth and truth - Fraction(float(got)) <= 1e-9


def test_certified_edits_are_those_that_keep_the_class():
    selection, estimation = [[90, 10, 0]] * 2, [[9_900, 80, 20], [5_100, 4_800, 100]]
    kernel = Mask(0.9)
    found = certify(selection, estimation, kernel=kernel, alpha=0.001, max_edits=20)
    own, other = found.info["p_lower"], found.info["p_upper"]
    assert found.prediction.tolist() == [0, -1] and found.radius[1] == 0
    assert 0 < found.radius[0] <= 20
    for d in range(21):
        kept = worst_case(own[0], kernel=kernel, num_edits=d) > 1 - worst_case(
            1 - other[0], kernel=kernel, num_edits=d
        )
        assert kept == (d <= found.radius[0])
    few = certify(selection, estimation, kernel=kernel, alpha=0.001, max_edits=2)
    assert few.radius[0] == 2
    with pytest.raises(ValueError, match="num_samples is 9"):
        certify(selection, estimation, kernel=kernel, alpha=0.001, max_edits=2, num_samples=9)


def test_too_many_edits_are_named_as_the_caller_named_them():
    for kernel, words in (
        (Ablation(2, 4), "max_edits is 5; it must be at most the length 4"),
        (Categorical(0.3, (3, 4)), "max_edits is 5; it must be at most the 2 columns"),
    ):
        with pytest.raises(ValueError, match=words):
            certify([9, 1], [90, 10], kernel=kernel, alpha=0.01, max_edits=5)
        with pytest.raises(ValueError, match=words):
            hold(0.9, 0.1, kernel=kernel, max_edits=5)


@pytest.mark.parametrize("beta", [5e-324, 1e-320, 1e-310])
@pytest.mark.parametrize("vocab", [2, 3, 30_000])
def test_chances_too_small_to_be_divided(beta, vocab):
    """`beta / (vocab_size - 1)` is 0 as a number; the worst case was NaN."""
    kernel = Uniform(beta, vocab)
    for d in (1, 3):
        found = worst_case([0.0, 0.3, 0.9, 1 - 1e-16], kernel=kernel, num_edits=d)
        assert (found >= 0).all() and (found <= 1e-300).all()
        everything = worst_case(1.0, kernel=kernel, num_edits=d)
        assert 1 - 1e-9 <= everything <= 1


def test_the_rest_is_rounded_down_by_less_than_its_last_digit():
    chance = np.r_[0, 1, 5e-324, 0.5, 0.3, 10.0 ** -np.arange(1, 320, 7.3), 1 - 2.0**-53]
    chance = np.r_[chance, np.random.default_rng(0).uniform(size=1000)]
    for c, found in zip(chance.tolist(), rest(chance).tolist()):
        exact = 1 - Fraction(c)
        assert Fraction(found) <= exact < Fraction(float(np.nextafter(found, 2)))
