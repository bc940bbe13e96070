"""Lipschitz-aware radii: exact, never below Cohen's, 1-Lipschitz along real functions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import integrate, special

from lipjax import models
from lipjax.data import load, to_unit
from lipjax.smoothing import lipschitz, simplex
from lipjax.smoothing.lipschitz import quantile, radius
from lipjax.typing import Bound
from tests.smoothing.confidence_test import cases


def test_one_score_against_the_reference():
    for case in cases("lip_radius_mono"):
        p, constant, sigma = (case["inputs"][name] for name in ("p", "L", "sigma"))
        exact = case["exact"]["R"]
        found = radius(p, lipschitz=constant, sigma=sigma)
        assert found <= exact * (1 + 1e-12) and exact <= found * (1 + 1e-9) + 1e-12, case["id"]
        official = lipschitz.published_radius(p, lipschitz=constant, sigma=sigma)
        if "published" in case:
            np.testing.assert_allclose(official, case["published"], rtol=1e-6)
        assert official <= found * (1 + 1e-9)


def test_two_scores_against_the_reference():
    for case in cases("lip_radius_multi"):
        given, exact = case["inputs"], case["exact"]["R"]
        found = radius(given["p1"], given["p2"], lipschitz=given["L"], sigma=given["sigma"])
        assert found <= exact * (1 + 1e-12) and exact <= found * (1 + 2e-9), case["id"]
        options = dict(lipschitz=given["L"], sigma=given["sigma"])
        official = lipschitz.published_radius(given["p1"], given["p2"], **options)
        np.testing.assert_allclose(official, case["published"], rtol=1e-6, err_msg=case["id"])


P = np.r_[np.linspace(0.5, 0.999, 60), 1 - np.geomspace(1e-14, 1e-4, 20)]


@pytest.mark.parametrize("sigma", [0.12, 1.0])
def test_between_cohen_and_the_width_of_the_ramp(sigma):
    cohen = sigma * -special.ndtri(1 - P)
    previous = np.full(P.shape, np.inf)
    for constant in np.geomspace(1e-3, 1e7, 30):
        found = quantile(P, lipschitz=constant, sigma=sigma)
        assert (found >= cohen * (1 - 1e-9)).all()
        assert (found <= cohen + 1 / (2 * constant)).all()
        assert (found <= previous * (1 + 1e-9)).all()
        assert (np.diff(found[:60]) >= 0).all()
        previous = found
    np.testing.assert_allclose(found, cohen, rtol=1e-9, atol=1e-9)
    exact = quantile(P, lipschitz=np.inf, sigma=sigma)
    np.testing.assert_allclose(exact, cohen, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(
        quantile(1 - P[:60], lipschitz=2.0, sigma=sigma),
        -quantile(1 - (1 - P[:60]), lipschitz=2.0, sigma=sigma),
    )


@pytest.mark.parametrize("width", [1e-4, 9e-4, 1.1e-3, 0.1, 3.0, 100.0])
def test_the_tail_against_integration(width):
    for t in (0.0, 0.3, 2.0, 7.0, 20.0):

        def below(u, t=t):
            return special.ndtr(width * u - t)

        exact = integrate.quad(below, -0.5, 0.5, epsabs=0, epsrel=1e-12, limit=400)[0]
        np.testing.assert_allclose(lipschitz._tail(np.float64(t), width), exact, rtol=1e-9)


def smoothed(f, x, sigma):
    """The Gaussian mean of a function of one variable, by quadrature."""
    z = np.linspace(-9, 9, 20_001)
    return (np.exp(-z * z / 2) * f(x + sigma * z)).sum() * (z[1] - z[0]) / np.sqrt(2 * np.pi)


def test_one_lipschitz_along_functions_and_tight_for_ramps():
    rng = np.random.default_rng(0)
    sigma, constant = 0.5, 0.8
    steepest = 0.0
    for kind in range(8):
        a, b = rng.uniform(0.5, 3, 2)
        if kind == 0:

            def f(x):
                return np.clip(0.5 + constant * x, 0, 1)
        else:

            def f(x, a=a, b=b):
                wave = np.abs((x + 0.3 * np.sin(b * x)) / (1 + 0.3 * b) % (2 * a) - a)
                return np.clip(constant * wave, 0, 1)

        x = np.linspace(-2, 2, 400)
        scores = np.array([smoothed(f, xi, sigma) for xi in x])
        inside = (scores > 1e-4) & (scores < 1 - 1e-4)
        x, scores = x[inside], scores[inside]
        scale = quantile(scores, lipschitz=constant, sigma=sigma)
        slopes = np.abs(np.diff(scale) / np.diff(x))
        assert slopes.max() <= 1 + 2e-3  # what the quadrature leaves at the kinks
        steepest = max(steepest, slopes.max())
    assert steepest > 0.999


def test_margins_keep_their_sign_and_ramps_change_it_at_the_radius():
    """Functions in [-1, 1] of constant 0.8; half of it and no less is that of the score."""
    sigma, constant, at = 0.5, 0.8, np.linspace(-3, 3, 601)
    rng = np.random.default_rng(0)
    for kind in range(6):
        a, b, shift = rng.uniform(1, 4), rng.uniform(0.5, 3), rng.uniform(-0.5, 0.5)

        def f(x, a=a, b=b, shift=shift, kind=kind):
            if kind == 0:
                return np.clip(constant * x, -1, 1)
            wave = np.abs((x + 0.3 * np.sin(b * x)) / (1 + 0.3 * b) % (2 * a) - a) - a / 2
            return np.clip(constant * (wave + shift), -1, 1)

        means = np.array([smoothed(f, x, sigma) for x in at])
        radii = lipschitz.margin_radius(np.clip(means, -1, 1), lipschitz=constant, sigma=sigma)
        wrong = at[means <= 0]
        distance = np.array([np.abs(x - wrong).min(initial=np.inf) for x in at])
        assert (radii <= distance + 1e-6)[means > 0].all()
        if kind == 0:
            np.testing.assert_allclose(radii[301:500], at[301:500], rtol=1e-5)
            loose = lipschitz.margin_radius(means[450], lipschitz=constant / 2, sigma=sigma)
            assert loose > at[450] * 1.01  # negative control


def test_margins_and_scores():
    """The same where two scores sum to one; two scores are better with the constant of the margin."""
    p = np.linspace(0.5, 0.9999, 40)
    for constant in (0.1, 1.0, 30.0, np.inf):
        one = radius(p, lipschitz=constant, sigma=0.5)
        both = lipschitz.margin_radius(2 * p - 1, lipschitz=2 * constant, sigma=0.5)
        assert (both <= one * (1 + 1e-9)).all()
        np.testing.assert_allclose(both, one, rtol=1e-8, atol=1e-12)
        q = 0.7 * (1 - p)
        two = radius(p, q, lipschitz=constant, sigma=0.5)
        of_margin = lipschitz.margin_radius(p - q, lipschitz=2 * constant, sigma=0.5)
        assert (of_margin <= two * (1 + 1e-9)).all()
    assert lipschitz.margin_radius(1.0, lipschitz=1.0, sigma=1.0) == np.inf
    assert lipschitz.margin_radius(0.0, lipschitz=1.0, sigma=1.0) == 0
    assert lipschitz.margin_radius(-1.0, lipschitz=1.0, sigma=1.0) == 0
    with pytest.raises(ValueError, match="margin is 1.5"):
        lipschitz.margin_radius(1.5, lipschitz=1.0, sigma=1.0)


def test_negative_control_a_constant_too_small_promises_too_much():
    """A ramp of slope 4 that is said to have slope 1: the certified score falls below 1/2."""

    def f(x):
        return np.clip(0.5 + 4 * x, 0, 1)

    score = smoothed(f, 0.6, 0.25)
    wrong = radius(score, lipschitz=1.0, sigma=0.25)
    right = radius(score, lipschitz=4.0, sigma=0.25)
    assert smoothed(f, 0.6 - wrong, 0.25) < 0.5 <= smoothed(f, 0.6 - right, 0.25) + 1e-6


def test_bounds_are_taken_and_estimates_refused():
    value = radius(0.9, lipschitz=Bound(1.0, "upper"), sigma=1.0)
    assert value == radius(0.9, lipschitz=1.0, sigma=1.0)
    with pytest.raises(ValueError, match="must be an upper bound"):
        radius(0.9, lipschitz=Bound(1.0, "estimate"), sigma=1.0)


def test_the_edges():
    assert radius(0.5, lipschitz=1.0, sigma=1.0) == 0 == radius(0.2, lipschitz=1.0, sigma=1.0)
    assert radius(1.0, lipschitz=1.0, sigma=1.0) == np.inf
    assert radius(0.6, 0.6, lipschitz=1.0, sigma=1.0) == 0
    assert radius(0.6, 0.4, lipschitz=1.0, sigma=1.0) <= radius(0.6, lipschitz=1.0, sigma=1.0)


@pytest.mark.every
@pytest.mark.parametrize(
    "change,word",
    [
        (dict(p_lower=1.2), "p_lower is 1.2"),
        (dict(p_lower=float("nan")), "p_lower is nan"),
        (dict(p_upper=-0.1), "p_upper is -0.1"),
        (dict(lipschitz=0.0), "lipschitz is 0.0"),
        (dict(lipschitz=float("nan")), "lipschitz is nan"),
        (dict(sigma=0.0), "sigma is 0.0"),
    ],
)
def test_bad_input_is_named(change, word):
    given = dict(p_lower=0.9, p_upper=0.1, lipschitz=1.0, sigma=1.0) | change
    with pytest.raises(ValueError, match=word):
        radius(given.pop("p_lower"), given.pop("p_upper"), **given)


def test_constants_of_smoothed_functions():
    for case in cases("lip_smoothed"):
        given, exact = case["inputs"], case["exact"]
        given = {k: float(v) for k, v in given.items()}
        options = dict(lipschitz=given["L"], sigma=given["sigma"], largest=given["r"])
        one = lipschitz.smoothed(**options)
        np.testing.assert_allclose(one, exact["scalar_0_r"], rtol=1e-9)
        whole = lipschitz.smoothed(scores="all", **options)
        np.testing.assert_allclose(whole, exact["vector_simplex_r"], rtol=1e-9)
        limit = lipschitz.smoothed(**options | {"lipschitz": np.inf})
        np.testing.assert_allclose(limit, exact["limit_scalar"], rtol=1e-9)
        assert one <= min(limit, given["L"]) * (1 + 1e-12)
        assert case["published"] >= one * (1 - 1e-9)  # valid, and loose


def test_smoothed_ramps_reach_their_constant():
    """`E f(x + sigma Z)` of a ramp of slope L, by quadrature; half the constant is too small."""
    nodes = np.linspace(-8, 8, 20_001)
    weights = np.exp(-nodes * nodes / 2)
    weights /= weights.sum()
    for slope, sigma in ((1.0, 0.5), (4.0, 0.5), (0.3, 1.0)):
        x = np.linspace(-0.01, 0.01, 3)[:, None]
        ramp = np.clip(slope * (x + sigma * nodes) + 0.5, 0, 1) @ weights
        measured = (ramp[2] - ramp[0]) / 0.02
        constant = lipschitz.smoothed(lipschitz=slope, sigma=sigma)
        np.testing.assert_allclose(measured, constant, rtol=1e-3)
        assert measured > constant / 2


SIGMA, TEMPERATURE = 0.25, 0.1


@pytest.fixture(scope="module")
def trained():
    """Soft scores of a network trained under noise, their constant, digits it has not seen."""
    digits = load("digits")
    images = to_unit(digits.train.images, 16)
    labels = jnp.asarray(digits.train.labels, jnp.int32)
    config = models.ConvNetConfig(
        image_shape=(8, 8, 1),
        conv_depth=0,
        pool=1,
        dense_depth=2,
        dense_hidden=64,
        head="orthogonal",
    )
    graph, params = nnx.split(models.LipschitzConvNet(config, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(0.01)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            logits = nnx.merge(graph, params)(images + noise_of(key, images.shape)) / TEMPERATURE
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # optax
        for i in range(30):
            params, state = step(params, state, jax.random.key(i))
    model = nnx.merge(graph, params)
    factor = simplex.component("softmax", temperature=TEMPERATURE, num_classes=10)
    constant = model.bound() * Bound(factor, "upper")

    @jax.jit
    def scores(x):
        return simplex.softmax(model(x), temperature=TEMPERATURE)

    return scores, constant, to_unit(digits.test.images, 16), digits.test.labels


def noise_of(key, shape):
    return SIGMA * jax.random.normal(key, shape)


def steepest(scores, constant, x, y, classes, noise):
    """Slopes of the quantile between neighbours on a line, and their standard errors."""
    places = np.linspace(-0.2, 1.2, 22)
    step = (places[1] - places[0]) * float(jnp.linalg.norm((y - x).ravel()))
    values = [scores((x + jnp.float32(t) * (y - x))[None] + noise) for t in places]
    values = np.float64(np.stack(values)[..., classes])  # [places, samples, classes]
    p = values.mean(1)
    h = 1e-4 * np.minimum(p, 1 - p)
    at, above, below = (quantile(q, lipschitz=constant, sigma=SIGMA) for q in (p, p + h, p - h))
    # The same noise everywhere: what is left of its error is that of the difference.
    linear = ((above - below) / (2 * h))[:, None] * values
    error = np.diff(linear, axis=0).std(1) / np.sqrt(len(noise))
    inside = ((p > 0.01) & (p < 0.99))[1:] & ((p > 0.01) & (p < 0.99))[:-1]
    return np.abs(np.diff(at, axis=0))[inside] / step, error[inside] / step


@pytest.mark.few(1)
def test_one_lipschitz_along_lines_between_digits(trained):
    """Slopes of up to half of what is allowed; a constant ten times too small allows too little."""
    scores, constant, images, labels = trained
    noise = noise_of(jax.random.key(1), (2000, 8, 8, 1))
    largest, of_wrong = [], []
    for i in range(0, 12, 2):
        classes = np.unique(labels[i : i + 2])
        line = images[i], images[i + 1], classes, noise
        slope, error = steepest(scores, constant, *line)
        assert (slope <= 1 + 4 * error).all() and error.max() < 0.02
        largest.append(slope.max())
        slope, error = steepest(scores, constant.value / 10, *line)
        of_wrong.append((slope - 4 * error).max())
    assert max(largest) > 0.3
    assert max(of_wrong) > 1.2  # negative control


def attacked(scores, x, own, other, radius, noise):
    """Within the radius of every x: ascent of the difference of two smoothed scores, on fixed noise."""
    radius = jnp.asarray(radius, jnp.float32).reshape(-1, 1, 1, 1)

    def lengths(moves):
        return jnp.maximum(jnp.sqrt((moves * moves).sum((1, 2, 3), keepdims=True)), 1e-20)

    @jax.jit
    def gradient(moves):
        def gain(moves):
            smoothed = jax.vmap(lambda x: scores(x[None] + noise).mean(0))(x + moves)
            rows = jnp.arange(len(x))
            return (smoothed[rows, other] - smoothed[rows, own]).sum()

        return jax.grad(gain)(moves)

    moves, steps = jnp.zeros_like(x), 15
    for i in range(steps):
        along = gradient(moves)
        moves = moves + (1 - i / steps) * radius * along / lengths(along)
        moves = moves * jnp.minimum(1, radius / lengths(moves))
    return x + moves


def leads(scores, x, own, key):
    """By how much the smoothed score of the class leads, on fresh noise, and the standard error."""
    values = np.float64([scores(one[None] + noise_of(key, (6000, 8, 8, 1))) for one in x])
    rows = np.arange(len(x))
    rest = values.mean(1)
    rest[rows, own] = -1
    gap = values[rows, :, own] - values[rows, :, rest.argmax(1)]
    return gap.mean(1), gap.std(1) / np.sqrt(gap.shape[1]), rest.argmax(1)


def test_attacks_on_the_smoothed_scores_stay_outside(trained):
    """No change inside the radius, one within two radii; a constant 20 times too small is refuted."""
    scores, constant, images, _ = trained
    x = images[:6]
    values = np.float64(
        [scores(one[None] + noise_of(jax.random.key(1), (6000, 8, 8, 1))) for one in x]
    )
    rows, mean, error = np.arange(6), values.mean(1), 4 * values.std(1) / np.sqrt(6000)
    own = mean.argmax(1)
    other = leads(scores, x, own, jax.random.key(1))[2]
    p, rest = (mean - error)[rows, own], mean + error
    rest[rows, own] = 0
    bounds = p, np.minimum(rest.max(1), 1 - p)
    certified = radius(*bounds, lipschitz=constant, sigma=SIGMA)
    wrong = radius(*bounds, lipschitz=constant.value / 20, sigma=SIGMA)
    assert (certified > 0).all()
    noise = noise_of(jax.random.key(2), (128, 8, 8, 1))

    def change(within):
        found = attacked(scores, x, own, other, within, noise)
        lead, error, _ = leads(scores, found, own, jax.random.key(3))
        return lead < -4 * error

    assert not change(0.99 * certified).any()
    assert change(2 * certified).sum() >= 4
    assert change(0.99 * wrong).all()  # negative control


@pytest.mark.parametrize(
    "constant,sigma", [(1e305, 1e10), (1e308, 1.0), (1e200, 1e150), (3e38, 1e10)]
)
@pytest.mark.parametrize("scores", ["one", "all"])
def test_constants_whose_product_with_the_noise_overflows(constant, sigma, scores):
    """Their smoothed constant is that of votes; it was 0."""
    found = lipschitz.smoothed(lipschitz=constant, sigma=sigma, scores=scores)
    limit = lipschitz.smoothed(lipschitz=np.inf, sigma=sigma, scores=scores)
    assert found == limit >= 1 / (sigma * np.sqrt(2 * np.pi)) > 0
    near = lipschitz.smoothed(lipschitz=1e9 / sigma, sigma=sigma, scores=scores)
    np.testing.assert_allclose(near, limit, rtol=1e-12)
    assert lipschitz.smoothed(lipschitz=1e-200, sigma=1e-200, scores=scores) >= 1e-200
    huge = lipschitz.smoothed(lipschitz=np.inf, sigma=1.7e308, scores=scores)
    assert huge >= 1 / (1.7e308 / 4) / (4 * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("width", [1e-6, 0.9e-3, 1.1e-3, 0.1, 3.0, 1265.3, 1e7])
def test_near_one_half_the_gap_decides(width):
    """The quantile of `1/2 + gap` is the gap over the density at 0, up to its cube."""
    sigma = 0.7
    options = dict(lipschitz=1 / (width * sigma), sigma=sigma)
    density = special.erf(width / np.sqrt(8)) / width
    for gap in 2.0 ** -np.arange(24, 53):
        exact = sigma * gap / density
        found = quantile(0.5 + gap, **options)
        assert found <= exact * (1 + 1e-12) and exact <= found * (1 + 1e-9)
        assert quantile(0.5 - gap, **options) == -found


@pytest.mark.parametrize("width", [1e-6, 0.01, 1.0, 30.0, 1e5])
def test_the_middle_against_integration(width):
    options = dict(lipschitz=1 / width, sigma=1.0)
    for p in (0.501, 0.55, 0.599999, 0.6, 0.600001, 0.7):
        t = quantile(p, **options)

        def density(x):
            wide = special.ndtr(width / 2 - x) - special.ndtr(-width / 2 - x)
            return wide / width if width > 1e-3 else np.exp(-x * x / 2) / np.sqrt(2 * np.pi)

        chance = integrate.quad(density, 0, t, epsabs=0, epsrel=1e-13)[0]
        assert chance <= (p - 0.5) * (1 + 1e-12)
        np.testing.assert_allclose(chance, p - 0.5, rtol=1e-10)


def test_scores_that_differ_by_rounding_alone():
    """Two chances near 1/2 and a flat law: the radius is their exact difference over the density."""
    rng = np.random.default_rng(0)
    p, q = 0.49999999999868144, 0.4999999999986096
    found = radius(p, q, lipschitz=4.33e-6, sigma=182.64)
    exact = (p - q) / (2 * 4.33e-6)  # the law is uniform there, to 1e-300
    assert 0.99 * exact < found <= exact
    for _ in range(60):
        low = 0.5 + rng.uniform(-1, 1) * 2.0 ** -rng.integers(20, 52)
        high = low + rng.integers(1, 1000) * 2.0**-53
        found = radius(high, low, lipschitz=4.33e-6, sigma=182.64)
        assert found <= (high - low) / (2 * 4.33e-6) * (1 + 1e-13)


def test_the_published_radius_is_never_larger():
    rng = np.random.default_rng(0)
    p = np.r_[rng.uniform(0.5, 1, 4000) ** 0.3, 0.95, 0.5 + 1e-9]
    for product in (1e-3, 1.0, 1e3, 1e5, 1e7, 1e9, 1e15, np.inf):
        for sigma in (0.01, 1.0, 100.0):
            options = dict(lipschitz=product / sigma, sigma=sigma)
            published, exact = lipschitz.published_radius(p, **options), radius(p, **options)
            assert (published <= exact).all()
            if product >= 1e3:
                cohen = np.maximum(sigma * special.ndtri(p), 0)
                np.testing.assert_allclose(
                    published, cohen, rtol=1e-4 * (1e3 / product) ** 2 + 1e-9
                )


def test_the_published_radius_of_two_scores_is_no_larger_before_it_is_cut_off():
    low, high = np.meshgrid(np.linspace(0.001, 0.5, 80), np.linspace(0.01, 0.999, 80))
    inside = (low < high) & (low + high <= 1)
    low, high = low[inside], high[inside]
    for constant in (0.1, 0.5, 2.0, 50.0, 1e6):
        options = dict(lipschitz=constant, sigma=0.5)
        gap = lipschitz._published(high, constant, 0.5) - lipschitz._published(low, constant, 0.5)
        exact = radius(high, low, **options)
        assert (gap / 2 <= exact + 1e-8).all()


@pytest.mark.parametrize("constant", [0.5, np.inf])
def test_the_published_radius_of_certain_scores(constant):
    found = lipschitz.published_radius(np.array([0.0, 1.0]), lipschitz=constant, sigma=0.5)
    exact = lipschitz.radius(1.0, lipschitz=constant, sigma=0.5)
    assert found[0] == 0 and found[1] == exact
    with np.errstate(invalid="raise"):
        two = lipschitz.published_radius([1.0, 1.0], [0.0, 1.0], lipschitz=constant, sigma=0.5)
    assert two.tolist() == [np.inf, 0.0]
    narrow = lipschitz.radius(0.9, lipschitz=jnp.bfloat16(2), sigma=0.5)
    assert narrow == lipschitz.radius(0.9, lipschitz=2.0, sigma=0.5)


@pytest.mark.parametrize("constant, sigma", [(1e-200, 1e-200), (1e-3, 1e-306), (1e-160, 1e-160)])
def test_constants_and_deviations_whose_product_vanishes(constant, sigma):
    for p in (0.45, 0.55, 0.9):
        found = quantile(p, lipschitz=constant, sigma=sigma)
        assert np.isfinite(found) and (found >= 0) == (p >= 0.5)
        assert abs(found) <= abs(p - 0.5) / constant * (1 + 1e-9)
        assert radius(p, lipschitz=constant, sigma=sigma) >= 0


@pytest.mark.parametrize("p_upper", [5e-324, 1e-320, 1e-310])
def test_chances_without_digits_make_no_radius_larger(p_upper):
    """With 60 digits 20.10346 for 5e-324: rounding among subnormals gave 20.112."""
    found = lipschitz.radius(0.9, p_upper, lipschitz=1.0, sigma=1.0)
    assert found <= lipschitz.radius(0.9, 1e-300, lipschitz=1.0, sigma=1.0) < 20.0
    assert found > 19.0


def test_a_score_of_zero_never_wins():
    assert lipschitz.radius(0.9, 0.0, lipschitz=1.0, sigma=1.0) == np.inf
