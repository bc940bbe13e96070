"""The proof by factorization: never below the truth, and close to it on every spectrum."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.spectral import gram_iteration, proved_norm
from tests import families, oracles

RNG = np.random.default_rng(0)


def orthogonal(n):
    return np.linalg.qr(RNG.normal(size=(n, n)))[0]


def test_never_below_and_within_twelve_digits():
    arrays = families.arrays((12, 9))
    truth = np.array([oracles.norm(a) for a in arrays])
    bounds = proved_norm(arrays)
    assert (bounds >= truth * (1 - 1e-15)).all()  # the oracle itself has rounded
    assert (bounds <= truth * (1 + 1e-11)).all()


@pytest.mark.parametrize("singular_values", [(5, 5, 5, 5), (3, 2, 1, 0), (7, 7, 1, 1)])
def test_exactly_known_norms_are_not_undercut(singular_values):
    """Integer matrices `H diag(s)` with orthogonal columns of length 2: the norm is 2 max(s)."""
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], float)
    bound = float(proved_norm(hadamard * np.array(singular_values)))
    exact = 2 * max(singular_values)
    assert Fraction(bound) >= exact and bound <= exact * (1 + 1e-12)


def test_flat_spectra_where_gram_iteration_needs_many_products():
    matrix = orthogonal(48) * np.where(np.arange(48) < 24, 1.0, 0.99) @ orthogonal(48)
    truth = oracles.norm(matrix)
    assert truth * (1 - 1e-15) <= proved_norm(matrix) <= truth * (1 + 1e-11)
    with jax.enable_x64(True):
        assert float(gram_iteration(jnp.asarray(matrix), num_iters=8)) > truth * (1 + 1e-4)


def test_complex_stacks_and_wide_matrices():
    stack = RNG.normal(size=(2, 3, 4, 6)) + 1j * RNG.normal(size=(2, 3, 4, 6))
    bounds, truth = proved_norm(stack), np.linalg.norm(stack, ord=2, axis=(-2, -1))
    assert bounds.shape == (2, 3)
    assert (truth <= bounds).all() and (bounds <= truth * (1 + 1e-11)).all()
    single = stack.astype(np.complex64)
    assert (proved_norm(single) >= np.linalg.norm(single.astype(complex), 2, (-2, -1))).all()


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-38, 1e38, 1e200, 1e300])
def test_extreme_scales(scale):
    matrix = np.diag([1.0, 0.5, 0.25]) * scale
    assert scale <= proved_norm(matrix) <= scale * (1 + 1e-2)


def test_edges():
    assert proved_norm(np.zeros((3, 2))) == 0
    for bad in (np.nan, np.inf, -np.inf):
        assert proved_norm(np.array([[1.0, bad], [0.0, 1.0]])) == np.inf
    assert 3 <= proved_norm(np.array([[3.0]])) <= 3 * (1 + 1e-12)
    assert 2 <= proved_norm(jnp.ones((2, 2))) <= 2 * (1 + 1e-12)
    assert 2 <= proved_norm(np.ones((2, 2), ">f4")) <= 2 * (1 + 1e-12)


def test_negative_control_a_guess_without_its_proof_falls_below():
    """The estimate alone, as LAPACK returns it, is below the truth for some matrices."""
    below = 0
    for _ in range(200):
        a, b = RNG.integers(1, 2**20, size=2)
        matrix = np.array([[a, b], [-b, a]], float)  # norm sqrt(a^2 + b^2), exactly
        exact = Fraction(int(a)) ** 2 + Fraction(int(b)) ** 2
        guess = float(np.linalg.norm(matrix, 2))
        below += Fraction(guess) ** 2 < exact
        assert Fraction(float(proved_norm(matrix))) ** 2 >= exact
    assert below > 0


@pytest.mark.every
@pytest.mark.parametrize(
    "matrix,word",
    [
        (np.ones(3), "matrix has shape"),
        (np.ones((0, 2)), "matrix has shape"),
        (np.ones((2, 2), int), "dtype int64"),
        (np.ones((2, 2), np.float16), "dtype float16"),
    ],
)
def test_bad_input_is_named(matrix, word):
    with pytest.raises(ValueError, match=word):
        proved_norm(matrix)
    with pytest.raises(ValueError, match="traced"):
        jax.jit(proved_norm)(jnp.ones((2, 2)))
