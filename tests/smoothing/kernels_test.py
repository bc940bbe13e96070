"""The law of the likelihood ratio: masses sum to one, ratios are what they say, symmetry."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.smoothing import hybrid, noise
from lipjax.smoothing.kernels import Ablation, Categorical, Mask, Uniform

pytestmark = pytest.mark.every


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("vocab", [2, 3, 30_000])
@pytest.mark.parametrize("d", [0, 1, 4, 40])
def test_masses_of_the_uniform_kernel(beta, vocab, d):
    log_mass, log_ratio, lost = Uniform(beta, vocab).atoms(d)
    mass, moved = np.exp(log_mass), np.exp(log_mass + log_ratio)
    np.testing.assert_allclose(mass.sum() + lost, 1, rtol=1e-10)
    assert (np.diff(log_ratio) > 0).all() and len(log_mass) <= 2 * d + 1
    if 0 < beta < 1 and not (vocab == 2 and beta == 0.5):
        np.testing.assert_allclose(moved.sum(), 1, rtol=1e-9)  # nothing is out of its reach
        np.testing.assert_allclose(np.sort(moved), np.sort(mass), rtol=1e-9)  # exchange both texts


def test_one_token_by_hand():
    log_mass, log_ratio, lost = Uniform(0.4, 5).atoms(1)
    np.testing.assert_allclose(np.exp(log_mass), [0.6, 0.3, 0.1])
    np.testing.assert_allclose(np.exp(log_ratio), [1 / 6, 1, 6])
    assert lost == 0
    log_mass, log_ratio, lost = Mask(0.4).atoms(2)
    np.testing.assert_allclose([np.exp(log_mass)[0], log_ratio[0], lost], [0.16, 0, 0.84])


def test_ablation_is_the_share_of_subsets():
    from math import comb

    for keep, length, d in ((5, 50, 3), (27, 30, 3), (1, 4, 4), (4, 4, 1)):
        log_mass, _, lost = Ablation(keep, length).atoms(d)
        np.testing.assert_allclose(lost, 1 - comb(length - d, keep) / comb(length, keep), rtol=1e-9)
        np.testing.assert_allclose(np.exp(log_mass).sum() + lost, 1)


def test_columns_of_several_sizes():
    """The law by enumeration of all outcomes, and that the largest columns are the worst to change."""
    import itertools

    from lipjax.smoothing import hybrid
    from lipjax.smoothing.discrete import worst_case
    from lipjax.smoothing.kernels import Categorical

    beta, sizes = 0.3, (2, 5, 3)
    p = np.linspace(0.55, 0.999, 40)

    def by_hand(columns):
        chances = {}
        for outcome in itertools.product(*(range(s) for s in columns)):
            clean = np.prod(
                [1 - beta if z == 0 else beta / (s - 1) for z, s in zip(outcome, columns)]
            )
            moved = np.prod(
                [1 - beta if z == 1 else beta / (s - 1) for z, s in zip(outcome, columns)]
            )
            key = round(float(np.log(moved / clean)), 9)
            chances[key] = chances.get(key, 0) + clean
        return chances

    for d in (1, 2, 3):
        exact = by_hand(sorted(sizes, reverse=True)[:d])
        atoms = Categorical(beta, sizes).atoms(d)
        np.testing.assert_allclose(sorted(exact), atoms.log_ratio, atol=1e-8)
        np.testing.assert_allclose([exact[k] for k in sorted(exact)], np.exp(atoms.log_mass))
        worst = worst_case(p, kernel=Categorical(beta, sizes), num_edits=d)
        moved = hybrid.radius(p, kernel=Categorical(beta, sizes), num_edits=d, sigma=1.0)
        for columns in itertools.combinations(sizes, d):
            kernel = Categorical(beta, columns)
            assert (worst <= worst_case(p, kernel=kernel, num_edits=d) + 1e-12).all()
            other = hybrid.radius(p, kernel=kernel, num_edits=d, sigma=1.0)
            assert (moved <= other * (1 + 1e-9) + 1e-9).all()
    same = Categorical(beta, (4, 4, 4)).atoms(2)
    np.testing.assert_allclose(np.exp(same.log_mass), np.exp(Uniform(beta, 4).atoms(2).log_mass))
    for make, word in (
        (lambda: Categorical(0.5, (2, 3)), "must be below 0.5"),
        (lambda: Categorical(0.1, ()), "sizes is empty"),
        (lambda: Categorical(0.1, (1,)), "sizes is 1"),
        (lambda: Categorical(0.1, (2, 2)).atoms(3), "at most the 2 columns"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_several_chances_are_refused():
    from lipjax.smoothing.kernels import Categorical

    several = np.array([0.1, 0.2])
    for make in (
        lambda: Uniform(several, 5),
        lambda: Mask(several),
        lambda: Categorical(several, (3,)),
    ):
        with pytest.raises(ValueError, match=r"beta has shape \(2,\)"):
            make()


@pytest.mark.parametrize(
    "beta", [np.float32(0.79389244), np.float16(0.7958984375), jnp.float32(0.9)]
)
@pytest.mark.parametrize(
    "make", [Mask, lambda b: Uniform(b, 20), lambda b: Categorical(b, (20, 30))]
)
def test_a_narrow_beta_is_taken_in_float64(make, beta):
    """In float16 a power of it is off by a percent of the radius."""
    for found, exact in zip(make(beta).atoms(2), make(float(beta)).atoms(2), strict=True):
        np.testing.assert_array_equal(found, exact)
    noise.Tokens(make(beta), **({"mask": 20} if make is Mask else {}))(
        jax.random.key(0), jnp.zeros(2, jnp.int32)
    )


def test_negative_control_a_power_in_float16_gives_a_larger_radius():
    beta = np.float16(0.7958984375)
    narrow = float(beta**3)
    assert hybrid.radius(
        0.9999, kernel=Mask(narrow), num_edits=1, sigma=1.0
    ) > 1.005 * hybrid.radius(0.9999, kernel=Mask(beta), num_edits=3, sigma=1.0)


def test_ratios_that_are_merged_leave_no_more_than_there_was():
    """An attack's chances sum to one; the larger of two ratios for both would make them more."""
    sizes = tuple(3_000_000 + d for d in (-12, -7, -3, 2, 5, 12))
    atoms = Categorical(0.5, sizes).atoms(6)
    moved = np.exp(atoms.log_mass + atoms.log_ratio)
    assert len(moved) < 3**6 and 1 - 3e-11 < moved.sum() <= 1 + 1e-13
    gaps = np.append(np.diff(atoms.log_ratio), 0)
    assert (np.exp(gaps[gaps < 1e-4]) >= 1).all()


def test_columns_of_many_sizes_take_no_loop():
    """Nine columns of 2 to 10 values: thousands of values of the ratio."""
    start = time.process_time()
    for edits in range(1, 10):
        atoms = Categorical(0.4, tuple(range(2, 11))).atoms(edits)
    assert len(atoms.log_mass) > 1000 and time.process_time() - start < 2
