"""The law of the likelihood ratio: masses sum to one, ratios are what they say, symmetry."""

import numpy as np
import pytest

from lipjax.smoothing.kernels import Ablation, Mask, Uniform


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
