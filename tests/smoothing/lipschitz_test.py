"""Lipschitz-aware radii: exact, never below Cohen's, 1-Lipschitz along real functions."""

import numpy as np
import pytest
from scipy import integrate, special

from lipjax.smoothing import lipschitz
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
