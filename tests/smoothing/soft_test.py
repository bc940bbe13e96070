"""Soft scores: reference values, failure rates, and the per-input choice that is not sound."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special, stats

from lipjax import models
from lipjax.smoothing import confidence, gaussian, moments, multiclass, sampling, simplex, soft
from lipjax.smoothing.sampling import Moments, sample_counts, sample_moments
from lipjax.typing import ABSTAIN, Bound
from tests.smoothing.confidence_test import cases

RNG = np.random.default_rng(0)


def moments_of(scores) -> Moments:
    """Of `float[..., n, K]`."""
    fixed = np.floor(np.clip(np.float32(scores), 0, 1) * 2.0**24).astype(np.int32)
    fixed = np.moveaxis(fixed, -2, 0)
    found = [moments._summed(part, jnp.int32(len(part))) for part in np.array_split(fixed, 8)]
    total = found[0]
    for part in found[1:]:
        total = sampling.merge(total, part)
    lead = fixed.shape[1:-1]
    digits = [np.moveaxis(np.asarray(d), 0, -2) for d in total[1:]]
    return Moments(np.full(lead, int(total.count)), *digits)


def logits_of(given):
    i = np.arange(given["n"])[:, None]
    c = np.arange(given["K"])
    wave = given["amp"] * np.sin(0.7 * i * (c + 1) + 0.3 * c) + 0.3 * np.cos(1.9 * i + c)
    return np.float32(np.asarray(given["bias"]) + wave)


def test_one_fixed_map_against_the_reference():
    for case in cases("lvmrs"):
        given = case["inputs"]
        logits = logits_of(given)
        for name, exact in case["exact"].items():
            map_name, _, scale = name.partition("_T")
            scores = getattr(simplex, map_name)(jnp.asarray(logits), temperature=1 / float(scale))
            moments = moments_of(scores)
            np.testing.assert_allclose(moments.mean, exact["mean"], atol=2e-7)
            np.testing.assert_allclose(np.sqrt(moments.variance), exact["std_ddof1"], atol=2e-6)
            found = soft.certify(
                moments,
                moments,
                sigma=given["sigma"],
                alpha=given["alpha"],
                budget="bonferroni",
                bound="bernstein",
            )
            assert found.prediction == exact["cls"]
            np.testing.assert_allclose(found.info["p_lower"], exact["lower_A"], atol=1e-6)
            np.testing.assert_allclose(found.radius, exact["radius"], atol=1e-5)
            assert found.radius <= exact["radius"] + 2e-6
            # The better of both bounds, at levels that follow the first sample, gives no less here.
            better = soft.certify(moments, moments, sigma=given["sigma"], alpha=given["alpha"])
            assert better.radius >= 0.97 * found.radius


def test_bernstein_against_the_published_figure():
    for case in cases("macer_soft"):
        given = case["inputs"]
        n, mean = given["n"], given["sum"] / given["n"]
        variance = (given["sumsq"] - given["sum"] ** 2 / n) / (n - 1)
        found = confidence.empirical_bernstein(mean, variance, n, alpha=given["alpha"]).lower
        np.testing.assert_allclose(found, case["exact"], rtol=1e-9)


def test_the_ledger_sums_to_alpha():
    scores = RNG.dirichlet(np.full(6, 0.3), (4, 50))
    moments = moments_of(scores)
    for budget in soft.BUDGETS:
        found = soft.certify(moments, moments, sigma=1.0, alpha=0.01, budget=budget)
        total = sum(found.info["ledger"].values())
        assert (total <= 0.01 * (1 + 1e-12)).all() and (total >= 0.0094).all()
        _, levels, _ = soft._spend(moments, 0.01, budget)
        spent = np.sort(levels, -1)[..., -2:].sum(-1) if budget == "auto" else levels.sum(-1)
        np.testing.assert_allclose(spent, total, rtol=1e-9)


def counter_example(x):
    """Votes favour class 0 left of 0, averages class 1: base logits of the reference."""
    left = x[..., 0] < 0
    return jnp.stack([jnp.where(left, 0.01, -100.0), jnp.zeros(left.shape)], -1)


def test_the_choice_of_a_map_for_each_input_contradicts_itself():
    (case,) = cases("lvmrs_counterexample")
    n, alpha, sigma = case["inputs"]["n"], case["inputs"]["alpha"], case["inputs"]["sigma"]
    places = (case["inputs"]["x"], -0.35)
    unsound, fixed = [], []
    for i, place in enumerate(places):
        key, x = jax.random.key(i), jnp.array([place], jnp.float32)
        options = dict(sigma=sigma, num_classes=2, batch_size=500)

        def scores(x):
            return simplex.softmax(counter_example(x), temperature=1.0)

        counts = sample_counts(key, counter_example, x, num_samples=n, **options)
        found = sample_moments(key, scores, x, num_samples=n, **options)
        several = Moments(found.count, found.total[None], found.squares[None])
        unsound.append(
            soft.unsound_per_input(np.asarray(counts), several, sigma=sigma, alpha=alpha)
        )
        first = sample_moments(jax.random.key(9), scores, x, num_samples=200, **options)
        fixed.append(soft.certify(first, found, sigma=sigma, alpha=alpha))
    distance = abs(places[0] - places[1])
    assert [int(c.prediction) for c in unsound] == [0, 1]
    assert unsound[0].radius > distance  # and class 1 is certified inside of that ball
    np.testing.assert_allclose(unsound[0].radius, case["published"][1], atol=0.06)
    assert not (
        {int(c.prediction) for c in fixed} == {0, 1}
        and fixed[0].radius + fixed[1].radius > distance
    )


def test_one_map_keeps_contradicting_balls_apart():
    """Along a line through both classes: balls of different classes never meet."""
    sigma, alpha = 0.5, 0.001
    places = jnp.linspace(-2, 2, 41)

    def scores(x):
        logits = jnp.stack([jnp.tanh(2 * x[..., 0]), jnp.sin(3 * x[..., 0]), -x[..., 0]], -1)
        return simplex.sparsemax(logits, temperature=0.5)

    @jax.jit
    def draw(key, x):
        options = dict(sigma=sigma, num_classes=3)
        first, second = jax.random.split(key)
        return (
            sample_moments(first, scores, x, num_samples=100, batch_size=100, **options),
            sample_moments(second, scores, x, num_samples=4000, batch_size=4000, **options),
        )

    keys = jax.random.split(jax.random.key(0), len(places))
    first, second = jax.vmap(draw)(keys, places[:, None])
    found = soft.certify(first, second, sigma=sigma, alpha=alpha)
    prediction, radius = found.prediction, found.radius
    assert len(set(prediction[prediction >= 0])) > 1 and (radius > 0.1).sum() > 10
    gap = np.abs(np.subtract.outer(np.asarray(places), np.asarray(places)))
    clash = (prediction[:, None] != prediction) & (prediction[:, None] >= 0) & (prediction >= 0)
    assert (radius[:, None] + radius <= gap)[clash].all()


def test_soft_scores_of_a_lipschitz_network_gain():
    """The radius that knows the constant of the scores is never smaller."""
    model = models.LipschitzConvNet(
        models.ConvNetConfig(image_shape=(8, 8, 1), num_classes=4, conv_depth=0, dense_depth=1),
        rngs=nnx.Rngs(0),
    )
    bound = model.bound()
    temperature = 0.1
    x = jax.random.uniform(jax.random.key(1), (8, 8, 1))

    def scores(x):
        return simplex.softmax(model(x), temperature=temperature)

    options = dict(sigma=0.1, num_classes=4, batch_size=500)
    first = sample_moments(jax.random.key(2), scores, x, num_samples=100, **options)
    second = sample_moments(jax.random.key(3), scores, x, num_samples=5000, **options)
    known = bound * Bound(
        simplex.component("softmax", temperature=temperature, num_classes=4), "upper"
    )
    plain = soft.certify(first, second, sigma=0.1, alpha=0.001)
    aware = soft.certify(first, second, sigma=0.1, alpha=0.001, lipschitz=known)
    assert aware.prediction == plain.prediction and aware.radius >= plain.radius
    if plain.prediction != ABSTAIN:
        assert aware.radius > 1.05 * plain.radius
    options = dict(sigma=0.1, alpha=0.001, lipschitz=known)
    off = [soft.certify(first, second, slope_error=e, **options).radius for e in (1e-6, 1e-3, 0.3)]
    assert off[1] < off[0] < aware.radius  # taken off
    np.testing.assert_allclose(off[0], aware.radius, rtol=1e-4)
    assert off[2] == plain.radius  # more than the constant is worth
    kept = soft.certify(first, second, slope_error=0.3, law_error=0.001, **options)
    np.testing.assert_allclose(kept.info["p_lower"], plain.info["p_lower"] - 0.001)
    with pytest.raises(ValueError, match="slope_error is 0.1 without lipschitz"):
        soft.certify(first, second, sigma=0.1, alpha=0.001, slope_error=0.1)


def test_votes_as_scores_give_what_counts_give_or_less():
    counts = RNG.multinomial(5000, [0.7, 0.2, 0.1], 20)
    votes = np.stack([np.repeat(np.eye(3), c, axis=0) for c in counts])
    moments = moments_of(votes)
    found = soft.certify(moments, moments, sigma=0.5, alpha=0.001)
    exact = multiclass.certify(counts, counts.copy(), sigma=0.5, alpha=0.001)
    assert (found.radius <= exact.radius * (1 + 1e-6)).all()
    np.testing.assert_allclose(found.radius, exact.radius, rtol=0.1)
    assert (gaussian.certify(counts, counts.copy(), sigma=0.5, alpha=0.001).radius > 0).all()


def test_law_error_is_taken_off():
    moments = moments_of(RNG.dirichlet([9, 1], 400))
    plain = soft.certify(moments, moments, sigma=1.0, alpha=0.01)
    off = soft.certify(moments, moments, sigma=1.0, alpha=0.01, law_error=0.01)
    np.testing.assert_allclose(off.info["p_lower"], plain.info["p_lower"] - 0.01)
    assert off.radius < plain.radius
    with pytest.raises(
        ValueError, match="law_error has shape .2,.; it must have 0 axes, one number"
    ):
        soft.certify(moments, moments, sigma=1.0, alpha=0.01, law_error=np.array([0.1, 0.1]))


def test_the_trade_off_of_temperatures():
    """Colder maps have larger margins, variances and constants; votes are the coldest."""
    xs = jnp.linspace(-1.5, 1.5, 7)[:, None]
    labels = np.asarray(xs[:, 0] < 0, np.int64)
    maps = [("softmax", t) for t in (2.0, 0.5, 0.05)] + [("hardmax", 1.0)]
    found = soft.trade_off(
        jax.random.key(0),
        lambda x: jnp.concatenate([x, -x], -1),
        xs,
        labels,
        maps=maps,
        sigma=0.5,
        alpha=0.001,
        num_samples=20_000,
        num_classes=2,
        batch_size=5000,
        planned_samples=100_000,
    )
    for values in (found.spread, found.margin, found.constant):
        assert (np.diff(values) > 0).all()
    assert found.best in maps and found.radius.max() > 0.3
    # What is planned is what is found: the certificates of the map, with as many samples.
    name, temperature = found.best

    def scores(x):
        return getattr(simplex, name)(jnp.concatenate([x, -x], -1), temperature=temperature)

    options = dict(sigma=0.5, num_classes=2, batch_size=5000)
    radii = []
    for x, label in zip(xs, labels):
        first = sample_moments(jax.random.key(5), scores, x, num_samples=100, **options)
        second = sample_moments(jax.random.key(6), scores, x, num_samples=100_000, **options)
        one = soft.certify(first, second, sigma=0.5, alpha=0.001)
        radii.append(one.radius * (one.prediction == label))
    np.testing.assert_allclose(np.mean(radii), found.radius.max(), rtol=0.05)


def test_the_constant_of_margins_makes_radii_larger_for_sparsemax():
    """And never beyond a ramp of the margin, which changes its sign at its distance."""
    sigma, kinds = 0.5, dict(temperature=0.8, num_classes=3)
    each, both = simplex.component("sparsemax", **kinds), simplex.whole("sparsemax", **kinds)
    line = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)  # of the logits z = t line, of constant 1

    def scores(x):
        far = jnp.float32([0, 0, -9])[None]  # a third class that gets nothing
        return simplex.sparsemax(jnp.outer(x, jnp.float32(line)) + far, temperature=0.8)

    options = dict(sigma=sigma, num_classes=3, batch_size=5000)
    for x in (0.1, 0.4, 0.8):
        first = sample_moments(
            jax.random.key(0), scores, jnp.float32(x), num_samples=100, **options
        )
        second = sample_moments(
            jax.random.key(1), scores, jnp.float32(x), num_samples=50_000, **options
        )
        given = dict(sigma=sigma, alpha=0.001, lipschitz=each)
        without = soft.certify(first, second, **given).radius
        found = soft.certify(first, second, margin_lipschitz=np.sqrt(2) * both, **given).radius
        assert without < found <= x
        same = soft.certify(first, second, margin_lipschitz=9 * each, **given).radius
        np.testing.assert_allclose(same, without, rtol=1e-6)
        wrong = soft.certify(first, second, margin_lipschitz=0.5 * both, **given).radius
        assert wrong > x  # negative control
    with pytest.raises(ValueError, match="margin_lipschitz is 1.0 without lipschitz"):
        soft.certify(first, second, sigma=1.0, alpha=0.01, margin_lipschitz=1.0)


def test_kl_bounds_solve_their_equation():
    mean = np.r_[0, 1e-12, 1e-6, 0.001, RNG.uniform(0, 1, 300), 1 - 1e-9, 1]
    for n, alpha in ((2, 0.3), (100, 0.001), (10**6, 1e-9)):
        found = confidence.chernoff_kl(mean, n, alpha=alpha)
        budget = -np.log(alpha) / n
        inner = (mean > 0) & (found.lower > 0)
        reached = special.rel_entr(mean, found.lower) + special.rel_entr(1 - mean, 1 - found.lower)
        assert (reached >= budget * (1 - 1e-9))[inner].all()
        assert (reached <= budget * (1 + 1e-6) + 1e-13)[inner].all() and inner.sum() > 250
        assert found.lower[0] == 0 and (found.lower <= mean).all()
    counts = np.arange(41)
    lower = confidence.chernoff_kl(counts / 40, 40, alpha=0.05).lower
    for p in (0.1, 0.5, 0.93):
        assert stats.binom.pmf(counts, 40, p)[lower > p].sum() <= 0.05


@pytest.mark.every
@pytest.mark.parametrize(
    "change,word",
    [
        (dict(selection=np.array([5, 5])), "selection is a ndarray"),
        (dict(estimation=moments_of(np.full((1, 2), 0.5))), "estimation.count is 1"),
        (dict(estimation=moments_of(np.full((9, 3), 0.3))), "estimation has sums of shape"),
        (dict(estimation=moments_of(np.full((9, 2), 0.7))), "scores that sum to"),
        (dict(sigma=0.0), "sigma is 0.0"),
        (dict(alpha=1.0), "alpha is 1.0"),
        (dict(budget="partition"), "budget is 'partition'"),
        (dict(bound="hoeffding"), "bound is 'hoeffding'"),
        (dict(lipschitz=Bound(1.0, "estimate")), "must be an upper bound"),
        (dict(lipschitz="steep"), "lipschitz is 'steep'"),
        (dict(lipschitz=1.0, margin_lipschitz=0.0), "margin_lipschitz is 0.0"),
        (dict(lipschitz=1.0, margin_lipschitz=Bound(1.0, "lower")), "margin_lipschitz is Bound"),
    ],
)
def test_bad_input_is_named(change, word):
    good = moments_of(np.full((20, 2), 0.5))
    given = dict(selection=good, estimation=good, sigma=1.0, alpha=0.01) | change
    with pytest.raises(ValueError, match=word):
        soft.certify(given.pop("selection"), given.pop("estimation"), **given)


@pytest.mark.parametrize("budget", soft.BUDGETS)
@pytest.mark.parametrize("bound", soft.BOUNDS)
def test_each_sum_is_bounded_with_its_own_number_of_samples(budget, bound):
    """Counts of two images, sums of two maps each: axes that could be taken for one another."""
    few, many = (moments_of(RNG.dirichlet([8, 1, 1], (2, n))) for n in (60, 4000))
    joined = [np.stack(parts) for parts in zip(few, many)]  # [image, map, ...]
    both = Moments(joined[0][:, 0], *joined[1:])
    assert both.count.tolist() == [60, 4000] and both.total.shape == (2, 2, 3, 3)
    options = dict(sigma=1.0, alpha=0.01, budget=budget, bound=bound)
    found = soft.certify(both, both, **options)
    for i, part in enumerate((few, many)):
        alone = soft.certify(part, part, **options)
        np.testing.assert_array_equal(found.radius[i], alone.radius)
        np.testing.assert_array_equal(found.info["p_lower"][i], alone.info["p_lower"])
    assert (found.radius[0] < found.radius[1]).all()
    one = Moments(np.int32(60), few.total, few.squares)
    np.testing.assert_array_equal(soft.certify(one, one, **options).radius, found.radius[0])
    turned = Moments(np.array([60, 60, 60]), both.total, both.squares)
    with pytest.raises(ValueError, match=r"selection.count has shape \(3,\)"):
        soft.certify(turned, turned, **options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [3, 7, 10, 1000])
def test_exact_sums_of_the_ledger_are_at_most_alpha(dtype, classes):
    scores = np.r_[[np.full(classes, 1 / classes)] * 20, RNG.dirichlet(np.ones(classes), 20)]
    moments = moments_of(scores * (1 - 1e-6))
    for budget in soft.BUDGETS:
        for alpha in np.linspace(0.001, 0.05, 20).astype(dtype):
            found = soft.certify(moments, moments, sigma=1.0, alpha=alpha, budget=budget)
            total = sum(Fraction(float(level)) for level in found.info["ledger"].values())
            assert 0.94 * Fraction(float(alpha)) <= total <= Fraction(float(alpha))
            best, levels, _ = soft._spend(moments, float(alpha), budget)
            if budget == "auto":  # the class, and one other, whichever
                others = np.delete(levels, int(best[0]))
                assert (others == others[0]).all()
                levels = np.array([levels[int(best[0])], others[0]])
            assert sum(map(Fraction, levels.tolist())) <= Fraction(float(alpha))


def test_noise_and_constants_are_of_the_batch():
    moments = moments_of(RNG.dirichlet([9, 1], (2, 400)))
    wide = np.array([[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"sigma has shape \(2, 1\)"):
        soft.certify(moments, moments, sigma=wide, alpha=0.01)
    with pytest.raises(ValueError, match=r"lipschitz has shape \(2, 1\)"):
        soft.certify(moments, moments, sigma=1.0, alpha=0.01, lipschitz=wide)
    found = soft.certify(moments, moments, sigma=np.array([1.0, 2.0]), alpha=0.01)
    assert found.radius.shape == (2,)


@pytest.mark.parametrize("name", ["num_samples", "planned_samples"])
def test_a_trade_off_needs_two_samples(name):
    given = dict(num_samples=10, planned_samples=10) | {name: 1}
    with pytest.raises(ValueError, match=f"{name} is 1"):
        soft.trade_off(
            jax.random.key(0),
            lambda x: jnp.stack([x, -x], -1),
            jnp.zeros(2),
            np.array([1, 0]),
            maps=[("softmax", 1.0)],
            sigma=0.5,
            alpha=0.001,
            num_classes=2,
            batch_size=5,
            **given,
        )


def test_an_empty_batch_has_no_certificates():
    none = Moments(jnp.int32(10), np.zeros((0, 3, 2)), np.zeros((0, 5, 2)))
    assert soft.certify(none, none, sigma=1.0, alpha=0.01).radius.shape == (0,)
