"""Curves: the shares themselves, the coverage of their bounds, the alpha behind published radii."""

import numpy as np
import pytest

from lipjax.smoothing import curves
from tests.smoothing.confidence_test import cases

pytestmark = pytest.mark.every

RNG = np.random.default_rng(0)


def test_shares_at_radii():
    radii = np.array([0.0, 0.5, 0.5, 1.0, 2.0])
    correct = np.array([False, True, True, False, True])
    found = curves.curve(radii, correct, [0, 0.5, 0.50001, 3], alpha=0.001)
    assert found.certified.tolist() == [0.6, 0.6, 0.2, 0.0]
    assert (found.these <= found.certified).all() and (found.lower <= found.certified).all()
    assert (found.upper >= found.certified).all()
    exact = curves.curve(radii, correct, [0.5], alpha=0.0)
    assert exact.these == exact.certified  # deterministic certificates are never wrong
    # An abstention is wrong also at radius 0, and a correct class without a radius abstained.
    assert curves.curve([0.0], [True], [0.0], alpha=0.0).certified == 0
    assert curves.mean_radius(radii, correct) == pytest.approx(0.6)


def test_bounds_fail_as_rarely_as_they_say():
    """Inputs are truly certified with chance q, and each certificate is wrong with chance alpha."""
    alpha, level, size, q = 0.02, 0.05, 200, 0.7
    truth = RNG.random((3000, size)) < q
    claimed = truth | (RNG.random(truth.shape) < alpha)
    failed = population = naive = 0
    for true, claim in zip(truth, claimed):
        found = curves.curve(np.ones(size), claim, [0.5], alpha=alpha, level=level)
        failed += found.these[0] > true.mean()
        naive += found.certified[0] > true.mean()
        rate = q + (1 - q) * alpha
        population += found.lower[0] > rate or found.upper[0] < rate
    assert failed <= 3000 * level + 3 * np.sqrt(3000 * level)
    assert population <= 3000 * 2 * level + 3 * np.sqrt(3000 * 2 * level)
    assert naive > 0.5 * 3000  # negative control: the share itself


def test_the_alpha_of_published_radii():
    for case in cases("max_radius"):
        n, alpha = case["inputs"]["n"], case["inputs"]["alpha"]
        z = case["exact"]["z_max"]
        if z > 0:
            found = curves.implied_alpha(z, sigma=1.0, num_samples=n)
            np.testing.assert_allclose(found, alpha, rtol=1e-6)


def test_bad_input_is_named():
    good = dict(radii=[1.0], correct=[True], at=[0.5], alpha=0.001)
    for change, word in (
        (dict(radii=[1.0, 2.0]), "radii has shape"),
        (dict(radii=[np.nan]), "radii is .*at least 0"),
        (dict(at=[-1.0]), "at least 0"),
        (dict(alpha=1.0), "alpha is 1.0"),
        (dict(level=0.0), "level is 0.0"),
    ):
        given = good | change
        with pytest.raises(ValueError, match=word):
            curves.curve(given.pop("radii"), given.pop("correct"), given.pop("at"), **given)


@pytest.mark.parametrize(
    "radii,correct,word",
    [
        ([1.0, 2.0, 3.0], [True], "radii has shape"),
        ([], [], "N at least 1"),
        ([[1.0]], [[True]], "radii has shape"),
        ([np.nan, 1.0], [False, True], "radii is .*at least 0"),
        ([-1.0], [True], "at least 0"),
    ],
)
def test_the_mean_of_bad_radii_is_refused(radii, correct, word):
    with pytest.raises(ValueError, match=word):
        curves.mean_radius(radii, correct)
    with pytest.raises(ValueError, match=word):
        curves.curve(radii, correct, [0.5], alpha=0.001)


def test_levels_of_any_type_are_used_in_float64():
    alpha, level = np.float16(0.01), np.float32(0.123)
    found = curves.curve(np.ones(50), np.ones(50, bool), [0.5], alpha=alpha, level=level)
    exact = curves.curve(
        np.ones(50), np.ones(50, bool), [0.5], alpha=float(alpha), level=float(level)
    )
    assert found.these == exact.these and found.lower == exact.lower


def test_each_argument_is_named():
    for call, word in [
        (lambda: curves.curve([0.5], [True], [0.0], alpha=0.001, level=2.0), "level is 2.0"),
        (
            lambda: curves.curve([1], [True], [0], alpha=0.1, level=np.ones(2) / 9),
            "level has shape",
        ),
        (lambda: curves.curve([0.5], [True], [0.0], alpha=np.ones(2) / 9), "alpha has shape"),
        (lambda: curves.curve([-0.5], [True], [0.0], alpha=0.001), "radii is .*at least 0"),
        (lambda: curves.curve([0.5], [True], [-1.0], alpha=0.001), "at is .*at least 0"),
        (
            lambda: curves.curve([1, 1], [7, -1], [0], alpha=0.1),
            "correct is .*prediction == label",
        ),
        (lambda: curves.mean_radius([0.5], [float("nan")]), "correct is"),
        (
            lambda: curves.implied_alpha(np.ones(2), sigma=1.0, num_samples=10),
            "largest_radius has shape",
        ),
    ]:
        with pytest.raises(ValueError, match=word):
            call()
