"""Gram iteration: sound in float32 on every kind of spectrum, tight where the theory says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lipjax.spectral import _iteration, _products, enclosure, gram_iteration, inflation
from lipjax.spectral.gram import FINALS, gram_bound, gram_enclosure
from tests import oracles

RNG = np.random.default_rng(0)


def orthogonal(n):
    return np.linalg.qr(RNG.normal(size=(n, n)))[0]


def from_spectrum(sigma, rows):
    cols = len(sigma)
    left = np.linalg.qr(RNG.normal(size=(rows, cols)))[0]
    return left @ np.diag(sigma) @ orthogonal(cols)


MATRICES = {
    "gaussian": RNG.normal(size=(64, 48)),
    "wide": RNG.normal(size=(7, 60)),
    "long sums": RNG.normal(size=(700, 24)),
    "row": RNG.normal(size=(1, 9)),
    "column": RNG.normal(size=(9, 1)),
    "scalar": np.array([[-2.5]]),
    "orthogonal": orthogonal(48),
    "near orthogonal": from_spectrum(np.linspace(0.95, 1, 32), 40),
    "repeated": from_spectrum(np.array([1.0, 1, 1, 0.5, 0.25]), 9),
    "double": from_spectrum(np.array([1.0, 1, 0.5, 0.25, 0.25]), 9),
    "decaying": from_spectrum(0.8 ** np.arange(32), 48),
    "trained-like": from_spectrum((1 + np.arange(64)) ** -0.7, 64),
    "rank one": np.outer(RNG.normal(size=20), RNG.normal(size=30)),
    "identity": np.eye(17),
    "ones": np.ones((12, 33)),
    "nilpotent": np.eye(9, k=1),
    "graded": np.diag(10.0 ** -np.arange(12)),
    "complex": RNG.normal(size=(24, 24)) + 1j * RNG.normal(size=(24, 24)),
    "complex wide": RNG.normal(size=(5, 24)) + 1j * RNG.normal(size=(5, 24)),
    "unitary": np.linalg.qr(RNG.normal(size=(16, 16)) + 1j * RNG.normal(size=(16, 16)))[0],
}


def as32(matrix):
    return matrix.astype(np.complex64 if np.iscomplexobj(matrix) else np.float32)


def stacked(complex_ones=False):
    """All of them with zero rows and columns appended: same norms, one compilation."""
    chosen = [m for m in MATRICES.values() if np.iscomplexobj(m) == complex_ones]
    rows, cols = (max(m.shape[i] for m in chosen) for i in (0, 1))
    wide = [np.pad(m, ((0, rows - m.shape[0]), (0, cols - m.shape[1]))) for m in chosen]
    return as32(np.stack(wide))


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("num_iters", [1, 2, 4, 8])
@pytest.mark.parametrize("complex_ones", [False, True], ids=["real", "complex"])
def test_never_below_the_norm(complex_ones, num_iters, final):
    matrices = stacked(complex_ones)
    truth = oracles.singular_values(matrices)[:, 0]
    bounds = np.asarray(gram_iteration(matrices, num_iters=num_iters, final=final), np.float64)
    worst = min(matrices.shape[1:]) ** (2.0 ** -(num_iters + 1))
    assert (truth <= bounds).all() and (bounds <= truth * worst * 1.01).all()


@pytest.mark.parametrize("num_iters", [1, 4, "auto"])
@pytest.mark.parametrize("complex_ones", [False, True], ids=["real", "complex"])
def test_enclosure_holds_the_norm(complex_ones, num_iters):
    matrices = stacked(complex_ones)
    truth = oracles.singular_values(matrices)[:, 0]
    lower, upper = (np.asarray(b, np.float64) for b in enclosure(matrices, num_iters=num_iters))
    assert (lower <= truth).all() and (truth <= upper).all()
    assert (lower >= 0.6 * truth).all()
    if num_iters == "auto":
        wide = upper > lower * (1 + 1e-3)
        names = [n for n, m in MATRICES.items() if np.iscomplexobj(m) == complex_ones]
        assert {n for n, w in zip(names, wide) if w} <= {"near orthogonal"}


def test_automatic_count_stops_where_it_should():
    decaying = as32(MATRICES["trained-like"])
    slow = as32(MATRICES["near orthogonal"])
    for matrix, excess in ((decaying, 1e-3), (slow, 4e-3)):
        truth = oracles.norm(matrix)
        assert truth <= float(gram_iteration(matrix, num_iters="auto")) <= truth * (1 + excess)
    loose = float(gram_iteration(as32(MATRICES["gaussian"]), num_iters="auto", tol=0.3))
    assert loose > oracles.norm(as32(MATRICES["gaussian"])) * 1.01


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "shape,complex_ones",
    [
        ((9, 6), False),
        ((6, 9), True),
        ((6, 9), False),
        ((9, 6), True),
    ],
)
def test_gradient_of_the_norm(seeded_key, shape, complex_ones):
    parts = np.asarray(jax.random.normal(seeded_key, (2, *shape)))
    matrix = parts[0] + 1j * parts[1] if complex_ones else parts[0]
    u, _, v = np.linalg.svd(matrix)
    truth = np.outer(u[:, 0], v[0])
    imag = parts[1] if complex_ones else None

    def slope(**options):
        found = jax.grad(lambda m: gram_bound(*m, num_iters=6, **options))((parts[0], imag))
        return joined(found)

    def joined(found):
        found = [None if part is None else np.asarray(part) for part in found]
        return found[0] if imag is None else found[0] + 1j * found[1]

    np.testing.assert_allclose(slope(gradient="norm"), truth, atol=1e-4)
    np.testing.assert_allclose(slope(), truth, atol=1e-3)
    auto = jax.grad(lambda m: gram_enclosure(*m, num_iters="auto", tol=1e-5, final="deflated")[1])
    np.testing.assert_allclose(joined(auto((parts[0], imag))), truth, atol=3e-2)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "final", [pytest.param(f, marks=[pytest.mark.slow] * (f == "frobenius")) for f in FINALS]
)
def test_gradient_equals_automatic_differentiation(seeded_key, final):
    """The custom rule of the Gram product against the plain one, and against differences."""
    with jax.enable_x64(True):
        matrix = np.asarray(jax.random.normal(seeded_key, (7, 5), np.float64))
        norm = lambda m: gram_iteration(m, num_iters=3, final=final)  # noqa: E731
        slope = jax.jit(jax.grad(norm))(matrix)
        if final != "deflated":  # whose vector is held fixed
            step = np.asarray(jax.random.normal(jax.random.key(5), (7, 5), np.float64))
            difference = (norm(matrix + 1e-6 * step) - norm(matrix - 1e-6 * step)) / 2e-6
            np.testing.assert_allclose((slope * step).sum(), difference, rtol=1e-6)
        check_grads(norm, (matrix,), order=1, modes=["fwd", "rev"], rtol=0.05)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_products, "_self_product", lambda a: _products.contract(a, a))
            bound = lambda m: _iteration.scaled_bound(m, None, 3, final)[0]  # noqa: E731
            plain = jax.jit(jax.grad(bound))(matrix)
        custom = jax.jit(jax.grad(lambda m: bound(m)))(matrix)
        np.testing.assert_allclose(custom, plain, rtol=1e-12)
        np.testing.assert_allclose(custom, slope, rtol=1e-6)
        hessian = jax.jit(jax.hessian(norm))(matrix)
        assert np.isfinite(hessian).all() and np.abs(hessian).max() > 0.01


@pytest.mark.parametrize("name", ["wide", "long sums", "row", "column", "scalar", "complex wide"])
def test_every_shape(name):
    matrix = as32(MATRICES[name])
    truth = oracles.norm(matrix)
    assert truth <= float(gram_iteration(matrix)) <= truth * 1.05


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30, 3e36])
def test_scales(scale):
    matrices = (RNG.normal(size=(10, 12, 8)) * scale).astype(np.float32)
    truth = oracles.singular_values(matrices)[:, 0]
    bound = np.asarray(gram_iteration(matrices), np.float64)
    assert (truth <= bound).all()
    if scale >= 1e-30:  # far above the subnormal numbers, scaling is exact
        assert (bound <= truth * (1 + 1e-3)).all()


@pytest.mark.parametrize(
    "name,num_iters,excess",
    [
        ("gaussian", 6, 2e-4),
        ("trained-like", 2, 2e-4),
        ("orthogonal", 6, 1e-2),
        ("row", 1, 1e-5),
        ("double", 4, 1e-4),
        ("repeated", 4, 2.5e-2),
    ],
)
def test_tight_in_float32(name, num_iters, excess):
    matrix = as32(MATRICES[name])
    assert float(gram_iteration(matrix, num_iters=num_iters)) <= oracles.norm(matrix) * (1 + excess)


def test_float64_is_sound_and_tight():
    with jax.enable_x64(True):
        matrices = stacked().astype(np.float64)
        truth = oracles.singular_values(matrices)[:, 0]
        assert (truth * (1 - 1e-15) <= gram_iteration(matrices, num_iters=4)).all()
        assert (gram_iteration(matrices, num_iters=12) <= truth * (1 + 1e-3)).all()


def test_many_random_matrices_in_one_call():
    matrices = RNG.normal(size=(4000, 12, 8)).astype(np.float32)
    truth = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)[:, 0]
    for num_iters in (1, 4, 8):
        bounds = np.asarray(gram_iteration(matrices, num_iters=num_iters), np.float64)
        assert (bounds >= truth).all()


def test_negative_control_plain_float32_iteration_falls_below():
    """The published recurrence, without the rounding terms, is not a bound in float32."""
    matrices = jnp.asarray(RNG.normal(size=(2000, 12, 8)).astype(np.float32))
    truth = np.linalg.svd(np.asarray(matrices, np.float64), compute_uv=False)[:, 0]

    def plain(matrix, num_iters=10):
        log = 0.0
        for _ in range(num_iters):
            norm = jnp.linalg.norm(matrix)
            matrix, log = matrix / norm, 2 * (log + jnp.log(norm))
            matrix = jnp.matmul(matrix.T, matrix, precision="highest")
        return jnp.linalg.norm(matrix) ** (2.0**-num_iters) * jnp.exp(log * 2.0**-num_iters)

    assert (np.asarray(jax.vmap(plain)(matrices), np.float64) < truth).mean() > 0.05


def test_more_iterations_never_loosen_it_beyond_rounding():
    bounds = [np.asarray(gram_iteration(stacked(), num_iters=n)) for n in (1, 2, 4, 8)]
    # The deflation vector changes from one iterate to the next: allow its slack alone.
    assert all((b <= a * (1 + 2e-2)).all() for a, b in zip(bounds, bounds[1:]))


def test_gradients_are_finite_and_homogeneous():
    matrices = stacked()
    bounds, gradients = jax.vmap(jax.value_and_grad(gram_iteration))(matrices)
    assert np.isfinite(gradients).all()
    # A norm is positively homogeneous: <W, gradient> is the bound itself (Euler).
    np.testing.assert_allclose((matrices * gradients).sum((1, 2)), bounds, rtol=2e-3)


def test_gradient_matches_singular_vectors_and_finite_differences(seeded_key):
    with jax.enable_x64(True):
        matrix = np.asarray(jax.random.normal(seeded_key, (9, 6), np.float64))
        gradient = jax.grad(lambda m: gram_iteration(m, num_iters=8))(matrix)
        u, _, v = np.linalg.svd(matrix)
        np.testing.assert_allclose(gradient, np.outer(u[:, 0], v[0]), atol=1e-6)


def test_zero_matrix_has_zero_bound_and_zero_gradient():
    zero = jnp.zeros((4, 3))
    assert float(gram_iteration(zero)) == 0
    assert not np.asarray(jax.grad(gram_iteration)(zero)).any()
    batched = jax.vmap(jax.grad(gram_iteration))(jnp.stack([zero, zero + 1]))
    assert np.isfinite(batched).all()


def test_nan_and_infinity():
    bad = jnp.ones((3, 3)).at[1, 1].set(jnp.nan)
    assert np.isnan(gram_iteration(bad))
    assert np.isposinf(gram_iteration(jnp.ones((3, 3)).at[1, 1].set(-jnp.inf)))
    both = jnp.stack([bad, jnp.ones((3, 3))])
    assert np.isnan(gram_iteration(both)[0]) and gram_iteration(both)[1] >= 3


def test_one_subnormal_number():
    tiny = jnp.full((1, 1), 1e-39)
    assert float(gram_iteration(tiny)) > 0
    assert float(jax.jit(gram_iteration)(tiny)) > 0


def test_overflow_gives_infinity_not_a_finite_bound():
    huge = jnp.full((8, 8), 2e38, jnp.float32)
    assert np.isposinf(gram_iteration(huge))


@pytest.mark.every
@pytest.mark.parametrize(
    "bad,word",
    [
        (jnp.ones(3), "axes"),
        (jnp.ones((0, 3)), "length 0"),
        (jnp.ones((2, 2), jnp.int32), "dtype"),
        (jnp.ones((2, 2), jnp.bfloat16), "dtype"),
    ],
)
def test_bad_matrices_are_named(bad, word):
    with pytest.raises(ValueError, match=f"matrix.*{word}"):
        gram_iteration(bad)


@pytest.mark.every
@pytest.mark.parametrize(
    "option,value",
    [
        ("num_iters", 0),
        ("num_iters", -1),
        ("num_iters", 1.5),
        ("num_iters", True),
        ("num_iters", "many"),
        ("final", "exact"),
        ("gradient", "none"),
        ("tol", -1.0),
    ],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        gram_iteration(jnp.ones((2, 2)), **{option: value})


def test_automatic_count_has_no_gradient_of_the_bound():
    with pytest.raises(ValueError, match="gradient is 'bound'"):
        gram_iteration(jnp.ones((2, 2)), num_iters="auto", gradient="bound")


def test_float64_arrays_are_bounded_not_their_rounded_copies():
    """Negative control: the float32 copy of this one is 1, below its norm."""
    for fn in (lambda m: enclosure(m), lambda m: (0.0, gram_iteration(m, num_iters="auto"))):
        for sign in (1, -1):
            matrix = np.array([[1 + sign * 2.0**-25]])
            lower, upper = fn(matrix)
            assert float(lower) <= matrix[0, 0] <= float(upper) < 1.00001
    assert oracles.norm(np.array([[1 + 2.0**-25]], np.float32)) < 1 + 2.0**-25
    assert np.isinf(gram_iteration(np.array([[1e300]])))
    assert 0 < float(gram_iteration(np.array([[1e-300]]))) < 1e-30
    batch = np.stack([RNG.normal(size=(3, 2)), 1e6 * RNG.normal(size=(3, 2))])
    together = gram_iteration(batch)
    np.testing.assert_allclose(together, [oracles.norm(m) for m in batch], rtol=1e-4)
    assert (np.asarray(together, float) >= [oracles.norm(m) for m in batch]).all()


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [(6, 4), (8, 8)])
def test_second_derivative_is_that_of_the_returned_number(shape):
    """With the deflating vector held fixed it would be off by a sixth and more."""
    with jax.enable_x64(True):
        matrix, way = np.random.default_rng(0).normal(size=(2, *shape))
        slope = jax.grad(lambda m: gram_iteration(jnp.asarray(m), num_iters=2))
        turned = jax.jvp(slope, (jnp.asarray(matrix),), (jnp.asarray(way),))[1]
        differences = (slope(matrix + 1e-5 * way) - slope(matrix - 1e-5 * way)) / 2e-5
        np.testing.assert_allclose(turned, differences, rtol=1e-4, atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("num_iters", [4, 10])
def test_inflation_is_the_rounding_that_was_added(num_iters):
    """Without it, float32 results of many products land below the norm: it is not for show."""
    matrices = RNG.normal(size=(200, 24, 16)).astype(np.float32)
    matrices[0] = 0
    bound = np.float64(gram_iteration(matrices, num_iters=num_iters))
    part = np.float64(inflation(matrices, num_iters=num_iters))
    assert part[0] == 0 and (part[1:] > 1e-7).all() and (part < 1e-4).all()
    with jax.enable_x64(True):
        exact = np.float64(gram_iteration(np.float64(matrices), num_iters=num_iters))
        assert np.nanmax(inflation(np.float64(matrices), num_iters=num_iters)) < 1e-12
    np.testing.assert_allclose(bound[1:] / exact[1:] - 1, part[1:], rtol=0.5, atol=5e-7)


@pytest.mark.slow
def test_inflation_is_at_most_what_the_docstring_says():
    """Also where all singular values are equal, which the bounds with roots would blow up."""
    for complex_ones in (False, True):
        matrices = stacked(complex_ones)
        norms = np.linalg.norm(matrices.astype(complex), 2, (1, 2))
        ratio = np.linalg.norm(matrices.astype(complex), axis=(1, 2)) / norms
        stated = (max(matrices.shape[1:]) + 20) * 2.0**-24 * ratio**2 * (3 if complex_ones else 1)
        assert (np.asarray(inflation(matrices, num_iters=10)) <= stated).all()
        for few in (1, 4):
            assert (np.asarray(inflation(matrices, num_iters=few)) <= 10 * stated).all()


@pytest.mark.parametrize("complex_ones", [False, True])
def test_flat_spectra_are_bounded_tightly(complex_ones):
    """All singular values equal: row sums of the last iterate. Roots of rounding gave 1.9e-3."""
    unitary = np.linalg.qr(RNG.normal(size=(16, 16)) + 1j * RNG.normal(size=(16, 16)))[0]
    flat = as32(unitary if complex_ones else np.eye(16))
    excess = float(gram_iteration(flat)) / oracles.norm(flat) - 1
    assert 0 <= excess < (1.5e-4 if complex_ones else 3e-5)


def test_float64_arrays_that_a_jitted_function_closes_over():
    matrix = np.diag([1.0 + 2.0**-25, 0.1])
    for fn in (gram_iteration, lambda m: enclosure(m).upper, inflation):
        np.testing.assert_allclose(jax.jit(lambda _: fn(matrix))(0.0), fn(matrix), rtol=1e-6)  # noqa: B023
    assert float(jax.jit(lambda _: gram_iteration(matrix))(0.0)) >= matrix[0, 0]


def test_sums_too_long_for_a_bound_from_below():
    found = enclosure(jnp.ones((2_200_000, 1)))
    assert float(found.lower) == 0 and 1483.2 <= float(found.upper) < 1500


def test_inflation_of_what_is_not_finite_is_nan():
    for bad in (np.nan, np.inf):
        assert np.isnan(inflation(jnp.full((3, 3), bad)))
    with pytest.raises(ValueError, match="num_iters"):
        inflation(jnp.ones((3, 3)), num_iters="auto")


def test_negative_control_sums_that_lose_every_term_but_the_first():
    """1000 blocks of a long column, each too small to change the float32 sum before it."""
    column = np.zeros((1000, 256), np.float32)
    column[0, 0], column[1:, 0] = 1, np.sqrt(0.98 * 2.0**-24)
    column = column.reshape(-1, 1)
    exact = np.sqrt(np.square(np.float64(column)).sum())
    bound = float(gram_iteration(column, num_iters=1))
    assert exact <= bound <= exact * (1 + 2e-4)
    assert gram_bound(jnp.asarray(column), None, num_iters=1, rounding=False) < exact


@pytest.mark.every
@pytest.mark.parametrize("fn", [gram_iteration, enclosure, inflation])
@pytest.mark.parametrize("bad", [np.ones(3), np.float64(2.0), [1.0, 2.0], 3.0])
def test_too_few_axes_are_named_whatever_holds_the_numbers(fn, bad):
    with pytest.raises(ValueError, match="matrix has shape.*at least 2 axes"):
        fn(bad)
