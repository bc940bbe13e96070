"""Maps to the simplex: reference values, against a solver, Lipschitz constants from both sides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from lipjax.smoothing import simplex, soft
from tests.marks import slow
from tests.smoothing.confidence_test import cases

RNG = np.random.default_rng(0)
SOFT = ("softmax", "sparsemax", "entmax")


def test_sparsemax_against_the_reference():
    for case in cases("sparsemax"):
        given = np.float32(case["inputs"]["z"])
        np.testing.assert_allclose(simplex.sparsemax(given), case["exact"], atol=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_against_the_problem_that_defines_it(name):
    """`argmax <z, p> + H(p)` on the simplex; the condition of optimality at the returned point."""
    for k in (2, 3, 10):
        z = RNG.normal(size=k) * 2
        p = np.asarray(getattr(simplex, name)(np.float32(z)), np.float64)
        np.testing.assert_allclose(p.sum(), 1, atol=1e-6)
        support = p > 0
        inside = p[support]
        choices = {"softmax": np.log(inside), "sparsemax": inside, "entmax": 2 * np.sqrt(inside)}
        gradient = choices[name]
        level = z[support] - gradient
        np.testing.assert_allclose(level, level[0], atol=1e-4)
        assert (z[~support] <= level[0] + 1e-4).all()


def test_entmax_against_bisection():
    z = RNG.normal(size=(50, 7)) * 3
    found = simplex.entmax(np.float32(z))
    for row, p in zip(z, found):

        def excess(tau, row=row):
            return np.square(np.maximum(row / 2 - tau, 0)).sum() - 1

        tau = optimize.brentq(excess, row.max() / 2 - 1, row.max() / 2)
        np.testing.assert_allclose(p, np.square(np.maximum(row / 2 - tau, 0)), atol=2e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("k", [2, slow(5), 30])
def test_constants_hold_and_are_reached(name, k):
    temperature = 0.7
    fn = functools.partial(getattr(simplex, name), temperature=temperature)
    jacobian = jax.jit(jax.vmap(jax.jacobian(fn)))
    z = RNG.normal(size=(2000, k)) * RNG.uniform(0, 3, (2000, 1))
    # Ties of any number of classes, and one class above k - 1 others: where the constants are reached.
    ties = [np.r_[np.zeros(i), np.full(k - i, -50.0)] for i in range(1, k + 1)]
    above = [np.r_[t, np.zeros(k - 1)] for t in np.linspace(0, 6, 400)]
    j = np.asarray(jacobian(np.float32(np.concatenate([z, ties, above]))), np.float64)
    rows = np.linalg.norm(j, axis=-1).max()
    constant = simplex.component(name, temperature=temperature, num_classes=k)
    assert 0.98 * constant <= rows <= constant * (1 + 1e-5)
    norms = np.linalg.norm(j, ord=2, axis=(-2, -1)).max()
    whole = simplex.whole(name, temperature=temperature, num_classes=k)
    assert norms <= whole * (1 + 1e-5)
    assert norms >= (0.98 if name != "entmax" or k == 2 else 0.5) * whole
    # Negative control: the constant of the map as a whole is too small for a smaller temperature.
    hotter = jax.vmap(jax.jacobian(functools.partial(getattr(simplex, name), temperature=0.5)))
    steep = np.asarray(hotter(np.float32(np.concatenate([ties, above]))), np.float64)
    assert np.linalg.norm(steep, axis=-1).max() > constant


def test_cold_maps_become_votes():
    z = jnp.array([0.3, 1.0, 0.9])
    for name in simplex.MAPS:
        p = getattr(simplex, name)(z, temperature=1e-3)
        np.testing.assert_allclose(p, [0, 1, 0], atol=1e-6)
    assert simplex.component("hardmax", temperature=1.0, num_classes=3) == np.inf


@pytest.mark.parametrize("name", SOFT)
def test_finite_at_ties_far_values_and_under_vmap(name):
    fn = getattr(simplex, name)
    z = jnp.array([[0.0, 0.0, 0.0], [1e30, 0.0, -1e30], [-5.0, -5.0, 3.0]])
    batched = jax.jit(fn)(z)
    np.testing.assert_allclose(batched, jax.vmap(fn)(z), rtol=1e-6)
    assert jnp.isfinite(batched).all()
    assert jnp.isfinite(jax.grad(lambda z: fn(z)[..., 0].sum())(z)).all()


def test_bad_input_is_named():
    for make, word in (
        (lambda: simplex.softmax(jnp.zeros(3), temperature=0.0), "temperature is 0.0"),
        (
            lambda: simplex.sparsemax(jnp.zeros(3), temperature=jnp.ones(3)),
            r"temperature has shape \(3,\); it must have 0 axes, one number",
        ),
        (
            lambda: simplex.component("softmax", temperature=np.ones(2), num_classes=3),
            r"temperature has shape \(2,\)",
        ),
        (lambda: simplex.sparsemax(jnp.arange(3)), "logits has dtype"),
        (lambda: simplex.component("argmax", temperature=1.0, num_classes=3), "name is 'argmax'"),
        (lambda: simplex.whole("softmax", temperature=1.0, num_classes=1), "num_classes is 1"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("far", [-np.inf, slow(-3e38), slow(-1e25), -1e19])
def test_masked_logits_get_nothing(name, far):
    """Squares of what is far below overflow."""
    fn = getattr(simplex, name)
    z, short = jnp.array([1.0, 0.5, far]), jnp.array([1.0, 0.5])
    for run in (lambda f: f, jax.jit):
        np.testing.assert_allclose(run(fn)(z), [*fn(short), 0], rtol=1e-6)
        jacobian = run(jax.jacrev(fn))(z)
        np.testing.assert_allclose(jacobian[:2, :2], jax.jacrev(fn)(short), rtol=1e-5)
        assert not jacobian[2].any() and not jacobian[:, 2].any()


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("temperature", [1e-3, slow(1e-8), slow(1e-20), 1e-30])
def test_cold_maps_under_jit_are_those_outside(name, temperature):
    fn = functools.partial(getattr(simplex, name), temperature=temperature)
    z = jnp.array([[5.0, 0.0, 0.0], [0.3, 0.7, -1.1], [1.3, 1.1, 1.2]])
    for run in (fn, jax.jit(fn), jax.vmap(fn)):
        np.testing.assert_allclose(run(z), jnp.eye(3)[jnp.array([0, 1, 0])], atol=1e-6)


def test_the_temperature_of_entmax_is_doubled_as_a_float():
    """Twice 200 does not fit into eight bits, and errors quote what was passed."""
    z = jnp.array([1.0, 0.5])
    np.testing.assert_allclose(
        simplex.entmax(z, temperature=np.uint8(200)), simplex.entmax(z, temperature=200.0)
    )
    with pytest.raises(ValueError, match=r"temperature is -1\.0"):
        simplex.entmax(z, temperature=-1.0)


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax"])
@pytest.mark.parametrize("classes", [2, slow(6), 10, slow(16), slow(100)])
def test_scores_sum_to_no_more_than_soft_certificates_allow(name, classes):
    """Logits that hardly differ are the worst ones for entmax: its tau is rounded there."""
    sizes = 10.0 ** RNG.uniform(-3, 1, (20_000, 1))
    logits = jnp.asarray(sizes * RNG.normal(size=(20_000, classes)), jnp.float32)
    for temperature in (0.05, 1.0):
        scores = jax.jit(getattr(simplex, name))(logits, temperature=temperature)
        excess = np.asarray(scores, np.float64).sum(-1).max() - 1
        assert excess <= soft._excess(classes)


def test_entmax_of_logits_that_hardly_differ_sums_to_one():
    """Found among many: the rounding of tau alone made 1 + 2e-6 of it."""
    logits = [
        -0.0045570796, 0.0012480604, -0.0077322903, -0.0048150104, -0.0014544190,
        0.00055646448, -0.0093584238, -0.0160175003, -0.0190927312, 0.0715189129,
    ]  # fmt: skip
    scores = simplex.entmax(jnp.array(logits), temperature=0.05)
    assert abs(np.asarray(scores, np.float64).sum() - 1) <= soft._excess(10) / 2
