"""CERTIFY and PREDICT: reference values, failure rates by enumeration, the edges."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from lipjax.smoothing import gaussian, multiclass
from lipjax.typing import ABSTAIN
from tests.smoothing.confidence_test import cases

pytestmark = pytest.mark.every


def test_certify_against_the_reference():
    for case in cases("cohen_certify"):
        given, exact = case["inputs"], case["exact"]
        found = gaussian.certify(
            given["counts_sel"], given["counts_est"], sigma=given["sigma"], alpha=given["alpha"]
        )
        assert found.prediction == exact["cls"]
        assert found.radius <= exact["radius"] <= found.radius * (1 + 1e-9)
        np.testing.assert_allclose(found.info["p_lower"], exact["p_lower"], rtol=1e-9)


@pytest.mark.parametrize(
    "trials,alpha,law_error", [(1, 0.5, 0.0), (100, 0.001, 0.0), (5000, 0.01, 0.02)]
)
def test_radius_table_has_every_count(trials, alpha, law_error):
    """At most the radius of `certify`, one rounding less, and more for more votes."""
    options = dict(sigma=0.7, alpha=alpha, law_error=law_error)
    table = gaussian.radius_table(trials, **options)
    votes = np.arange(trials + 1)
    counts = np.stack([votes, trials - votes], -1)
    first = np.tile([1, 0], (trials + 1, 1))
    exact = gaussian.certify(first, counts, **options).radius
    assert table.shape == (trials + 1,) and table.dtype == np.float32
    assert (table <= exact).all() and (table >= exact * (1 - 2.0**-22)).all()
    assert (np.diff(table) >= 0).all() and (table[-1] > 0) == (trials > 1)
    with pytest.raises(ValueError, match="trials is 0"):
        gaussian.radius_table(0, **options)


def test_predict_against_the_reference():
    for case in cases("cohen_predict"):
        found = gaussian.predict(case["inputs"]["counts"], alpha=case["inputs"]["alpha"])
        assert found == case["exact"]["cls"]


def test_the_largest_radius_there_is():
    for case in cases("max_radius"):
        n, alpha = case["inputs"]["n"], case["inputs"]["alpha"]
        found = gaussian.certify([1, 0], [n, 0], sigma=1.0, alpha=alpha)
        exact = max(case["exact"]["z_max"], 0)
        assert found.radius <= exact <= found.radius * (1 + 1e-9)


def test_a_batch_is_its_rows():
    rng = np.random.default_rng(0)
    selection, estimation = rng.multinomial(50, [0.5, 0.3, 0.2], (2, 7)), None
    estimation = rng.multinomial(900, [0.8, 0.15, 0.05], (2, 7))
    sigma = rng.uniform(0.1, 1, (2, 7))
    found = gaussian.certify(selection, estimation, sigma=sigma, alpha=0.01)
    for place in np.ndindex(2, 7):
        one = gaussian.certify(selection[place], estimation[place], sigma=sigma[place], alpha=0.01)
        assert one.prediction == found.prediction[place] and one.radius == found.radius[place]
    assert (found.prediction == ABSTAIN).any() and (found.radius[found.prediction == 0] > 0).all()


@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.99])
def test_failure_rate_by_enumeration(p):
    """Two classes, of which the first has chance p; a certificate is wrong above its true radius."""
    first, trials, alpha = 5, 40, 0.05
    k0, k = np.meshgrid(np.arange(first + 1), np.arange(trials + 1), indexing="ij")
    found = gaussian.certify(
        np.stack([k0, first - k0], -1), np.stack([k, trials - k], -1), sigma=1.0, alpha=alpha
    )
    true = np.where(found.prediction == 0, 1, -1) * special.ndtri(p)
    wrong = (found.prediction != ABSTAIN) & (found.radius > true)
    chance = stats.binom.pmf(k0, first, p) * stats.binom.pmf(k, trials, p)
    assert (chance * wrong).sum() <= alpha
    # Choosing the class on the sample that bounds it fails too often.
    votes = np.stack([k[0], trials - k[0]], -1)
    reused = gaussian.certify(votes, votes.copy(), sigma=1.0, alpha=alpha)
    true = np.where(reused.prediction == 0, 1, -1) * special.ndtri(p)
    bad = (reused.prediction != ABSTAIN) & (reused.radius > true)
    if p == 0.5:
        assert (stats.binom.pmf(k[0], trials, p) * bad).sum() > 1.2 * alpha


def test_predict_errs_at_most_as_often_as_allowed():
    trials, alpha = 60, 0.05
    k = np.arange(trials + 1)
    for p in (0.5, 0.45, 0.3):  # class 1 is at least as likely
        found = gaussian.predict(np.stack([k, trials - k], -1), alpha=alpha)
        assert stats.binom.pmf(k, trials, p)[found == 0].sum() <= alpha


@pytest.mark.parametrize(
    "change,word",
    [
        (dict(selection=[1.0, 0.0]), "selection has dtype"),
        (dict(selection=[3]), "selection has shape"),
        (dict(estimation=[5, 0, 0]), "estimation has shape"),
        (dict(estimation=[5, -1]), "estimation is"),
        (dict(estimation=[0, 0]), "every row counts a sample"),
        (dict(alpha=0.0), "alpha is 0.0"),
        (dict(alpha=1.5), "alpha is 1.5"),
        (dict(sigma=0.0), "sigma is 0.0"),
        (dict(sigma=float("nan")), "sigma is nan"),
    ],
)
def test_bad_input_is_named(change, word):
    good = dict(selection=[5, 0], estimation=[90, 10], sigma=0.5, alpha=0.01)
    given = good | change
    with pytest.raises(ValueError, match=word):
        gaussian.certify(given.pop("selection"), given.pop("estimation"), **given)


def test_law_error_is_taken_off():
    counts = np.array([900, 100])
    plain = gaussian.certify(counts, counts.copy(), sigma=1.0, alpha=0.01)
    off = gaussian.certify(counts, counts.copy(), sigma=1.0, alpha=0.01, law_error=0.05)
    np.testing.assert_allclose(off.info["p_lower"], plain.info["p_lower"] - 0.05)
    assert 0 < off.radius < plain.radius
    with pytest.raises(ValueError, match="law_error is -1"):
        gaussian.certify(counts, counts.copy(), sigma=1.0, alpha=0.01, law_error=-1)


def test_noise_is_of_the_batch():
    """A sigma `[2, 1]` made certificates `[2, 2]` of two inputs."""
    counts = np.array([[900, 100], [800, 200]])
    for sigma in (np.array([[1.0], [2.0]]), np.ones(3), np.ones((1, 2))):
        with pytest.raises(ValueError, match="sigma has shape"):
            gaussian.certify(counts, counts.copy(), sigma=sigma, alpha=0.01)
    with pytest.raises(ValueError, match="sigma has shape"):
        gaussian.certify(counts[0], counts[0], sigma=np.ones(1), alpha=0.01)
    found = gaussian.certify(counts, counts.copy(), sigma=np.array([1.0, 2.0]), alpha=0.01)
    assert found.radius.shape == (2,)


def test_a_law_error_from_a_device_leaves_float64():
    counts = np.array([[100, 0]]), np.array([[99_999, 1]])
    for certify in (gaussian.certify, multiclass.certify):
        narrow, wide = (
            certify(*counts, sigma=1.0, alpha=1e-3, law_error=error).radius
            for error in (jnp.float32(1e-6), float(jnp.float32(1e-6)))
        )
        assert narrow.dtype == np.float64 and narrow == wide


def test_rows_of_other_lengths_and_several_errors_are_named():
    counts = np.array([90, 10])
    with pytest.raises(ValueError, match="selection is .*rows of counts are of one length"):
        gaussian.certify([[1, 2], [3]], counts, sigma=1.0, alpha=0.1)
    with pytest.raises(ValueError, match="law_error has shape"):
        gaussian.certify(counts, counts.copy(), sigma=1.0, alpha=0.1, law_error=np.zeros(3))
