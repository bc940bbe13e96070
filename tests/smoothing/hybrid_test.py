"""Tokens and a continuous part together: reference values, limits, monotony, the edges."""

import numpy as np
import pytest
from scipy import optimize, special

from lipjax.smoothing import discrete, gaussian, hybrid, multiclass
from lipjax.smoothing.discrete import rest, worst_case
from lipjax.smoothing.kernels import Ablation, Categorical, Mask, Uniform
from tests.smoothing.confidence_test import cases
from tests.smoothing.discrete_test import kernel_of

pytestmark = pytest.mark.every


def test_against_the_reference():
    for case in cases("hybrid"):
        given, exact = case["inputs"], case["exact"]["radius"]
        if isinstance(exact, str):
            continue
        found = hybrid.radius(
            given["pA"],
            kernel=kernel_of(given),
            num_edits=given["d"],
            sigma=given["sigma"],
            threshold=given["tau"],
        )
        expected = min(exact, given.get("r_max", np.inf))
        assert found <= exact * (1 + 1e-10) + 1e-12 or exact >= given["r_max"] - 1e-6, case["id"]
        np.testing.assert_allclose(
            min(found, given["r_max"]), expected, rtol=1e-9, atol=1e-9, err_msg=case["id"]
        )


def test_whole_curves():
    for case in cases("hybrid_curve"):
        given = case["inputs"]
        n, alpha = given["n"], given["alpha"]
        p = alpha ** (1 / n) if given["nA"] == n else None
        for name, kernel in (
            ("uniform", Uniform(given["beta"], given["V"])),
            ("absorb", Mask(given["beta"])),
        ):
            for d, exact in enumerate(case["exact"][name]):
                found = hybrid.radius(
                    p, kernel=kernel, num_edits=d, sigma=given["sigma"], threshold=given["tau"]
                )
                np.testing.assert_allclose(found, exact, rtol=1e-8, atol=1e-9)


def test_no_edits_are_the_gaussian_radius():
    counts = np.array([[5000, 0], [4990, 10], [3000, 2000], [2000, 3000]])
    known = gaussian.certify(counts, counts.copy(), sigma=0.7, alpha=0.001)
    p = known.info["p_lower"]
    found = hybrid.radius(p, kernel=Uniform(0.5, 10), num_edits=0, sigma=0.7)
    np.testing.assert_allclose(found, known.radius, rtol=1e-8)


@pytest.mark.parametrize("d", [1, 3])
def test_the_mask_has_a_closed_form(d):
    p, beta, sigma, threshold = np.array([0.9, 0.99, 0.9999]), 0.8, 0.5, 0.1
    v = beta**d
    inside = (p - 1 + v) / v
    exact = sigma * (special.ndtri(inside) - special.ndtri(threshold / v))
    exact = np.where(p - 1 + v >= threshold, exact, 0)
    found = hybrid.radius(p, kernel=Mask(beta), num_edits=d, sigma=sigma, threshold=threshold)
    assert (found <= exact * (1 + 1e-9)).all()
    np.testing.assert_allclose(found, exact, rtol=1e-8)


def test_falls_with_edits_and_rises_with_p():
    p = np.linspace(0.5, 0.999999, 60)
    previous = np.full(p.shape, np.inf)
    for d in range(5):
        found = hybrid.radius(p, kernel=Uniform(0.9, 50), num_edits=d, sigma=1.0)
        assert (found <= previous + 1e-9).all() and (np.diff(found) >= -1e-9).all()
        previous = found
        left = worst_case(p, kernel=Uniform(0.9, 50), num_edits=d)
        assert ((found > 0) <= (left >= 0.5)).all()


def test_attacks_on_the_worst_function_reach_the_threshold_and_not_before():
    """Monte Carlo of the function that Neyman and Pearson name, at the radius and beyond."""
    rng = np.random.default_rng(0)
    beta, vocab, sigma, p, n = 0.6, 4, 1.0, 0.95, 400_000
    r = float(hybrid.radius(p, kernel=Uniform(beta, vocab), num_edits=1, sigma=sigma))
    keep, other = 1 - beta, beta / (vocab - 1)

    def sample(token, shift):
        kept = rng.random(n) < keep
        moved = (token + rng.integers(1, vocab, n)) % vocab
        return np.where(kept, token, moved), shift + sigma * rng.normal(size=n)

    def log_ratio(token, y, rho):
        gamma = np.where(token == 1, keep / other, np.where(token == 0, other / keep, 1.0))
        return np.log(gamma) + rho * y - rho**2 / 2

    for distance, above in ((r, True), (1.1 * r, False)):
        clean = log_ratio(*sample(0, 0.0), distance)
        cut = np.quantile(clean, p)
        attacked = np.mean(log_ratio(*sample(1, distance), distance) <= cut)
        assert (attacked > 0.5 - 0.005) == above


def test_no_noise_on_tokens_proves_nothing_once_one_changes():
    assert hybrid.radius(0.99, kernel=Uniform(0.0, 30_000), num_edits=1, sigma=0.5) == 0
    assert hybrid.radius(0.99, kernel=Mask(0.0), num_edits=1, sigma=0.5) == 0
    full = hybrid.radius(0.99, kernel=Mask(1.0), num_edits=3, sigma=0.5)
    np.testing.assert_allclose(full, 0.5 * special.ndtri(0.99), rtol=1e-8)
    assert hybrid.radius(0.99, kernel=Ablation(5, 50), num_edits=2, sigma=0.5) > 0


@pytest.mark.parametrize(
    "change,word",
    [
        (dict(p_lower=2.0), "p_lower is 2.0"),
        (dict(sigma=0.0), "sigma is 0.0"),
        (dict(threshold=0.0), "threshold is 0.0"),
        (dict(threshold=1.0), "threshold is 1.0"),
        (dict(num_edits=1.5), "num_edits is 1.5"),
        (dict(kernel=None), "kernel is None"),
    ],
)
def test_bad_input_is_named(change, word):
    given = dict(p_lower=0.9, kernel=Mask(0.9), num_edits=1, sigma=0.5, threshold=0.5) | change
    with pytest.raises(ValueError, match=word):
        hybrid.radius(given.pop("p_lower"), **given)


@pytest.mark.parametrize(
    "kernel", [Uniform(0.25, 30_000), Uniform(0.9, 5), Mask(0.7), Ablation(5, 40)]
)
@pytest.mark.parametrize("threshold", [1e-5, 0.1, 0.5])
def test_the_fast_search_ends_where_bisection_does(kernel, threshold):
    p = np.r_[np.linspace(0.3, 0.99999, 200), 1 - 10.0 ** -np.arange(5, 15)]
    for d in (1, 2, 5):
        found = hybrid.radius(p, kernel=kernel, num_edits=d, sigma=1.0, threshold=threshold)
        alive = worst_case(p, kernel=kernel, num_edits=d) >= threshold
        high = -special.ndtri(1 - p) - special.ndtri(threshold)
        p_alive, atoms = p[alive], kernel.atoms(d)

        def sure(rho, missing=1 - p_alive, atoms=atoms):
            return hybrid._attacked(missing, np.maximum(rho, hybrid.LEAST), atoms) >= threshold

        expected = hybrid._bisected(high[alive] * (1 + 1e-9), sure)
        assert (found[alive] <= expected * (1 + 1e-12)).all() and not found[~alive].any()
        np.testing.assert_allclose(found[alive], expected, rtol=3e-10, atol=1e-8)


@pytest.mark.parametrize("kernel", [Uniform(0.9, 30_000), Mask(0.7), Ablation(5, 40)])
def test_the_search_between_two_chances_ends_where_bisection_does(kernel):
    p = np.random.default_rng(0).uniform(0.5, 1, 200)
    p = np.r_[p, 1 - 10.0 ** -np.arange(5, 15), 1.0]
    q = (1 - p) * np.linspace(0, 1, len(p))
    for d in (0, 1, 3):
        found = hybrid.radius(p, q, kernel=kernel, num_edits=d, sigma=1.0)
        atoms = kernel.atoms(d)
        alive = sum(worst_case(c, kernel=kernel, num_edits=d) for c in (p, rest(q))) > 1
        both = 1 - p, q  # what is missing to 1

        def sure(rho, alive=alive, atoms=atoms, both=both):
            rho = np.maximum(rho, hybrid.LEAST)
            return sum(hybrid._attacked(c[alive], rho, atoms) for c in both) > 1

        high = sum(-special.ndtri(c[alive]) for c in both) / 2
        expected = hybrid._bisected(np.minimum(high, 100.0) * (1 + 1e-9), sure)
        assert (found[alive] <= expected * (1 + 1e-12)).all() and not found[~alive].any()
        np.testing.assert_allclose(found[alive], expected, rtol=1e-8, atol=1e-8)


def test_several_classes():
    """Without tokens the radius of two chances; with them never below that of the majority."""
    p, q = np.array([0.6, 0.8, 0.95]), np.array([0.3, 0.05, 0.05])
    found = hybrid.radius(p, q, kernel=Uniform(0.5, 9), num_edits=0, sigma=0.5)
    exact = 0.25 * (special.ndtri(p) - special.ndtri(q))
    assert (found <= exact).all()
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    previous = found
    for d in (1, 2, 3):
        options = dict(kernel=Uniform(0.9, 9), num_edits=d, sigma=0.5)
        found = hybrid.radius(p, q, **options)
        assert (found <= previous * (1 + 1e-9)).all()
        majority = hybrid.radius(p, **options)
        assert (hybrid.radius(p, 1 - p, **options) >= majority * (1 - 1e-8)).all()
        assert (found >= majority * (1 - 1e-8)).all() and found[0] < found[2]
        previous = found
    masked = dict(kernel=Mask(0.9), num_edits=2, sigma=1.0)
    v = 0.81
    # Where both tokens are masked nothing else changed; where they are not, all goes to the other class.
    own, other = special.ndtri((0.95 - 1 + v) / v), special.ndtri(0.1 / v)
    exact = optimize.brentq(
        lambda r: v * special.ndtr(own - r) - v * special.ndtr(other + r) - (1 - v), 0, 5
    )
    np.testing.assert_allclose(hybrid.radius(0.95, 0.1, **masked), exact, rtol=1e-8)
    with pytest.raises(ValueError, match="p_upper is 2"):
        hybrid.radius(0.95, 2.0, **masked)


def test_the_curve_over_edits():
    options = dict(kernel=Uniform(0.9, 50), sigma=0.5)
    found = hybrid.curve(np.array([0.9, 0.999]), max_edits=4, **options)
    assert found.shape == (2, 5) and (np.diff(found) <= 0).all()
    for d in range(5):
        np.testing.assert_allclose(
            found[1, d], hybrid.radius(0.999, num_edits=d, **options), rtol=1e-9
        )


def test_certificates_of_counts():
    first = np.array([[50, 50, 0], [90, 8, 2], [100, 0, 0], [40, 30, 30]])
    second = np.array([[5000, 4990, 10], [9000, 800, 200], [10_000, 0, 0], [4000, 3000, 3000]])
    kernel = Mask(0.9)
    options = dict(sigma=0.5, alpha=0.001, budget="auto")
    found = hybrid.certify(first, second, kernel=kernel, max_edits=8, **options)
    gauss = multiclass.certify(first, second, **options)
    assert found.prediction.tolist() == gauss.prediction.tolist() == [-1, 0, 0, 0]
    assert found.radius.shape == (4, 9)
    np.testing.assert_allclose(found.radius[:, 0], gauss.radius, rtol=1e-8)
    assert (found.radius[:, 0] <= gauss.radius).all()
    assert found.edits.tolist() == [-1, 4, 6, 0]  # 2 (1 - 0.9^d) < p - q
    assert (np.diff(found.radius) <= 0).all()
    held = np.arange(9) <= found.edits[:, None]
    assert (found.radius[~held] == 0).all() and (found.radius[held] > 0).all()
    p, q = found.info["p_lower"], found.info["p_upper"]
    for d in range(3):
        expected = hybrid.radius(p, q, kernel=kernel, num_edits=d, sigma=0.5)
        np.testing.assert_allclose(found.radius[1:3, d], expected[1:3], rtol=1e-12)
    worse = hybrid.certify(first, second, kernel=kernel, max_edits=8, law_error=0.01, **options)
    assert (worse.radius <= found.radius).all() and worse.radius[2, 0] < 0.9 * found.radius[2, 0]
    one = hybrid.certify(first[2], second[2], kernel=kernel, max_edits=0, **options)
    assert one.radius.shape == (1,) and int(one.edits) == 0


@pytest.mark.parametrize("kernel", [Mask(0.9), Uniform(0.9, 5)])
def test_the_default_is_at_least_the_certificate_of_the_class_alone(kernel):
    """For every number of edits, at every input; other budgets are not."""
    rng, edits = np.random.default_rng(0), 4
    p = rng.dirichlet([8.0, 0.5, 0.1], 60)
    counts = [rng.multinomial(n, p) for n in (100, 10_000)]
    options = dict(sigma=0.5, alpha=0.001)
    alone = gaussian.certify(*counts, **options)
    alone = hybrid.curve(alone.info["p_lower"], kernel=kernel, max_edits=edits, sigma=0.5)
    more = dict(kernel=kernel, max_edits=edits, **options)
    found = hybrid.certify(*counts, **more).radius
    assert (found >= alone * (1 - 1e-8)).all() and (found.sum(0) >= alone.sum(0)).all()
    other = hybrid.certify(*counts, budget="bonferroni", **more).radius
    assert (other < alone * (1 - 1e-3)).any(0).all()
    # Where the second pair of bounds may be taken and is the worse one.
    single = [98, 1, 0], [80_090, 19_822, 88]
    pairs = multiclass.bounds(*single, alpha=0.05).radius()
    assert pairs[1] < pairs[0]
    options = dict(kernel=kernel, sigma=1.0, max_edits=2)
    one = hybrid.certify(*single, alpha=0.05, **options)
    p_lower = gaussian.certify(*single, sigma=1.0, alpha=0.05).info["p_lower"]
    assert (one.radius >= hybrid.curve(p_lower, **options) * (1 - 1e-8)).all()
    whole = discrete.certify(*counts, kernel=kernel, alpha=0.001, max_edits=edits)
    assert (whole.radius >= (alone > 0).sum(1) - 1).all()


def test_a_certificate_holds_for_all_edits_at_one_alpha():
    """Failures of the smallest mean that attacks leave to the worst function, over many counts."""
    rng = np.random.default_rng(0)
    kernel, alpha, p, runs = Mask(0.8), 0.05, 0.75, 4000
    votes = rng.binomial(200, p, runs)
    counts = np.stack([votes, 200 - votes], -1)
    first = np.tile([10, 0], (runs, 1))
    found = hybrid.certify(first, counts, kernel=kernel, sigma=1.0, alpha=alpha, max_edits=2)
    truth = [hybrid.radius(p, 1 - p, kernel=kernel, num_edits=d, sigma=1.0) for d in range(3)]
    wrong = (found.radius > np.array(truth)).any(-1).mean()
    error = 3 * np.sqrt(alpha * (1 - alpha) / runs)
    assert 0.1 * alpha < wrong <= alpha + error
    # The share of votes in place of its lower bound is wrong far more often.
    naive = hybrid.radius(votes / 200, 1 - votes / 200, kernel=kernel, num_edits=1, sigma=1.0)
    assert (naive > truth[1]).mean() > 0.3


@pytest.mark.parametrize(
    "change,word",
    [
        (dict(max_edits=-1), "max_edits is -1"),
        (dict(alpha=0.0), "alpha is 0.0"),
        (dict(kernel=None), "kernel is None"),
        (dict(budget="all"), "budget is 'all'"),
    ],
)
def test_bad_input_of_certificates_is_named(change, word):
    given = dict(kernel=Mask(0.9), sigma=0.5, alpha=0.01, max_edits=1) | change
    with pytest.raises(ValueError, match=word):
        hybrid.certify([9, 1], [90, 10], **given)


@pytest.mark.parametrize("q", [1e-5, 1e-9, 1e-12, 1e-15])
def test_small_chances_of_the_others_keep_their_digits(q):
    p = 1 - 1e-6
    found = hybrid.radius(p, q, kernel=Mask(0.5), num_edits=0, sigma=1.0)
    exact = (-special.ndtri(1 - p) - special.ndtri(q)) / 2
    assert found <= exact <= found * (1 + 1e-9)
    # As above: where the token is not masked, all goes to the other class.
    v = 0.9
    own, other = -special.ndtri((1 - p) / v), special.ndtri(q / v)
    exact = optimize.brentq(
        lambda r: v * special.ndtr(own - r) - v * special.ndtr(other + r) - (1 - v), 0, 9
    )
    found = hybrid.radius(p, q, kernel=Mask(v), num_edits=1, sigma=1.0)
    assert found <= exact * (1 + 1e-12) and exact <= found * (1 + 1e-9)


def test_too_many_edits_are_named_as_the_caller_named_them():
    kernel = Ablation(2, 4)
    options = dict(kernel=kernel, max_edits=5)
    for call in (
        lambda: hybrid.certify([9, 1], [90, 10], sigma=0.5, alpha=0.01, **options),
        lambda: hybrid.curve(0.9, sigma=0.5, **options),
    ):
        with pytest.raises(ValueError, match="max_edits is 5; it must be at most the length 4"):
            call()
    with pytest.raises(ValueError, match="num_edits is 5"):
        hybrid.radius(0.9, kernel=kernel, num_edits=5, sigma=0.5)


def test_shapes_and_types_that_do_not_fit_are_named():
    mask = Mask(0.5)
    for call, word in [
        (lambda: discrete.hold(0.9, 1.5, kernel=mask, max_edits=1), "p_upper is 1.5"),
        (lambda: discrete.worst_case(0.9, kernel=Mask, num_edits=1), "kernel is .*must be one of"),
        (lambda: Categorical(0.4, 3), "sizes is 3"),
        (
            lambda: hybrid.radius(np.ones(2), kernel=mask, num_edits=1, sigma=np.ones(3)),
            "p_lower has shape .2,., p_upper .*sigma has shape .3,.",
        ),
        (
            lambda: hybrid.radius(np.ones(2), np.zeros(3), kernel=mask, num_edits=1, sigma=1.0),
            "p_upper has shape .3,.",
        ),
    ]:
        with pytest.raises(ValueError, match=word):
            call()
