"""Spectral rescaling: the diagonal dominates, the norm is at most 1, orthonormal stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.spectral import (
    _gram_sums,
    conv_dominating_diagonal,
    conv_rescale,
    conv_spectral_norm,
    dominating_diagonal,
    rescale,
    spectral_norm,
)
from lipjax.spectral.rescaling import autocorrelation
from tests import oracles

RNG = np.random.default_rng(0)


def gaussian(*shape):
    return RNG.normal(size=shape).astype(np.float32)


ORTHONORMAL = np.linalg.qr(RNG.normal(size=(40, 24)))[0].astype(np.float32)
MATRICES = {
    "tall": gaussian(40, 24),
    "wide": gaussian(12, 30),
    "long sums": gaussian(600, 8),
    "orthonormal": ORTHONORMAL,
    "identity": np.eye(16, dtype=np.float32),
    "rank one": np.outer(gaussian(9), gaussian(7)),
    "graded": np.diag(10.0 ** -np.arange(12)).astype(np.float32),
    "zero column": gaussian(8, 5) * np.array([1, 0, 1, 1, 1], np.float32),
    "positive": np.abs(gaussian(9, 9)),
}


def stacked():
    """The tall ones with zero rows and columns appended, and random ones: one compilation."""
    chosen = [m for name, m in MATRICES.items() if m.shape[0] >= m.shape[1] and len(m) <= 40]
    wide = [np.pad(m, ((0, 40 - m.shape[0]), (0, 24 - m.shape[1]))) for m in chosen]
    return np.stack(wide + list(gaussian(12, 40, 24)))


@pytest.mark.few(2)
@pytest.mark.parametrize("num_iters", [1, 2, 3, 5])
def test_norm_at_most_one_and_diagonal_dominates(num_iters):
    matrices = stacked()
    for log_q in (None, gaussian(len(matrices), 24) * 3):
        weights = rescale(matrices, num_iters=num_iters, log_q=log_q)
        assert oracles.singular_values(weights).max() <= 1
        diagonals = dominating_diagonal(matrices, num_iters=num_iters, log_q=log_q)
        for matrix, t in zip(matrices.astype(np.float64), np.asarray(diagonals)):
            matrix, t = matrix[:, t > 0], t[t > 0]
            assert oracles.dominates(t, matrix.T @ matrix) >= -1e-15


@pytest.mark.parametrize("name", ["wide", "long sums", "rank one"])
def test_every_shape(name):
    for num_iters in (1, 2):
        assert oracles.norm(rescale(MATRICES[name], num_iters=num_iters)) <= 1


def test_negative_control_unrounded_and_undersized_diagonals_fail():
    exact = MATRICES["orthonormal"].astype(np.float64)
    t = np.abs(exact.T @ exact).sum(1)
    assert oracles.dominates(t, exact.T @ exact) >= -1e-12
    assert oracles.dominates(0.999 * t, exact.T @ exact) < -1e-4


def test_orthonormal_is_a_fixed_point():
    for num_iters in (1, 2, 4):
        np.testing.assert_allclose(
            rescale(ORTHONORMAL, num_iters=num_iters), ORTHONORMAL, atol=3e-3
        )
    with jax.enable_x64(True):
        exact = np.linalg.qr(RNG.normal(size=(40, 24)))[0]
        np.testing.assert_allclose(rescale(exact), exact, atol=1e-12)


def test_tightening_never_loosens():
    """A bound above 1, as rounding leaves it at isometries, divides nothing."""
    for matrix in (np.eye(64), np.linalg.qr(RNG.normal(size=(256, 256)))[0], ORTHONORMAL):
        matrix = np.float32(matrix)
        plain, tight = (oracles.norm(rescale(matrix, tighten=t)) for t in (False, True))
        assert plain - 1e-6 <= tight <= 1 and tight > 0.99
    kernel = np.zeros((3, 3, 16, 16), np.float32)
    kernel[1, 1] = np.linalg.qr(RNG.normal(size=(16, 16)))[0]
    plain, tight = (oracles.norm(conv_rescale(kernel, tighten=t)[1, 1]) for t in (False, True))
    assert plain - 1e-6 <= tight <= 1 and tight > 0.99


def test_more_iterations_approach_the_spectral_norm():
    with jax.enable_x64(True):
        matrix = RNG.normal(size=(12, 8))
        largest = [float(dominating_diagonal(matrix, num_iters=n).max()) for n in (1, 2, 4, 9)]
        truth = oracles.norm(matrix) ** 2
        assert all(b <= a * (1 + 1e-9) for a, b in zip(largest, largest[1:]))
        assert truth <= largest[-1] <= truth * 1.01


def test_one_iteration_is_the_almost_orthogonal_layer():
    matrix = MATRICES["tall"].astype(np.float64)
    expected = matrix / np.sqrt(np.abs(matrix.T @ matrix).sum(1))
    np.testing.assert_allclose(rescale(MATRICES["tall"]), expected, rtol=1e-3, atol=1e-6)


def test_invariant_to_scale_even_extreme():
    base = rescale(MATRICES["tall"])
    for scale in (1e-30, 1e-10, 1e10, 1e30):
        np.testing.assert_allclose(rescale(MATRICES["tall"] * np.float32(scale)), base, rtol=1e-4)


def test_batches_are_loops():
    batch = gaussian(3, 2, 6, 4)
    together = rescale(batch)
    for i, j in np.ndindex(3, 2):
        np.testing.assert_allclose(together[i, j], rescale(batch[i, j]), rtol=1e-6)


KERNELS = {
    "3x3": gaussian(3, 3, 2, 4),
    "3x3 narrow": gaussian(3, 3, 4, 2),
    "even": gaussian(2, 2, 3, 3),
    "not square": gaussian(4, 1, 2, 3),
    "not square, wide": gaussian(1, 5, 2, 2),
    "1d": gaussian(3, 2, 3),
    "3d": gaussian(2, 2, 3, 1, 2),
    "1x1": gaussian(1, 1, 3, 4),
    "delta": np.eye(9, dtype=np.float32)[4].reshape(3, 3, 1, 1),
    "laplacian": np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)[:, :, None, None],
}


@pytest.mark.parametrize("num_iters", [1, 3])
@pytest.mark.parametrize("name", KERNELS)
def test_conv_norm_at_most_one(name, num_iters):
    kernel = KERNELS[name]
    size = 4 if kernel.ndim == 5 else 6
    weights = conv_rescale(kernel, num_iters=num_iters)
    for padding, strides in (("zero", 1), ("circular", 1), ("valid", 1), ("full", 1), ("zero", 2)):
        matrix = oracles.conv_matrix(weights, size, padding=padding, strides=strides)
        assert oracles.norm(matrix) <= 1, (padding, strides)
    q = gaussian(min(kernel.shape[-2:]))
    weighted = conv_rescale(kernel, num_iters=num_iters, log_q=q)
    assert oracles.norm(oracles.conv_matrix(weighted, size, padding="circular")) <= 1


def test_negative_control_reflecting_padding_exceeds_one():
    """The reason why reflecting paddings are refused: the padding itself expands."""
    kernel = np.asarray(conv_rescale(np.ones((3, 3, 1, 1), np.float32)), np.float64)
    size = 4
    wide = np.pad(np.eye(size * size).reshape(-1, size, size), ((0, 0), (1, 1), (1, 1)), "reflect")
    rows = [
        [
            (image[i : i + 3, j : j + 3] * kernel[:, :, 0, 0]).sum()
            for i in range(4)
            for j in range(4)
        ]
        for image in wide
    ]
    assert oracles.norm(np.array(rows)) > 1.05


def test_autocorrelation_by_its_definition():
    kernel = gaussian(2, 3, 4, 2)
    lagged = np.asarray(autocorrelation(jnp.asarray(kernel)))
    expected = np.zeros((3, 5, 2, 2))
    for a, b, c, d in np.ndindex(2, 3, 2, 3):
        expected[a - c + 1, b - d + 2] += kernel[a, b].T @ kernel[c, d]
    np.testing.assert_allclose(lagged, expected, rtol=1e-4, atol=1e-4)


def test_weights_change_the_diagonal():
    """In a published implementation the weights cancel; here they act."""
    q = jnp.array([0.0, 1.0, -1.0, 0.5])
    kernel = KERNELS["3x3"]
    assert not np.allclose(
        conv_dominating_diagonal(kernel, log_q=q), conv_dominating_diagonal(kernel)
    )
    gradient = jax.grad(lambda q: conv_dominating_diagonal(kernel, log_q=q).sum())(q)
    assert np.abs(gradient).max() > 1e-2


@pytest.mark.parametrize("log_q", [np.array([-20.0, 20, 0, 0]), np.array([200.0, 0, 0, 0])])
def test_huge_weights_are_clipped_and_stay_sound(log_q):
    weights = rescale(gaussian(6, 4), log_q=log_q.astype(np.float32))
    assert np.isfinite(weights).all() and oracles.norm(weights) <= 1


@pytest.mark.parametrize("num_iters", [1, 2])
def test_gradients_are_finite(num_iters):
    gradient = jax.grad(lambda m: rescale(m, num_iters=num_iters).sum())(stacked())
    assert np.isfinite(gradient).all()


def test_zero_matrix_and_kernel():
    for fn, zero in ((rescale, jnp.zeros((4, 3))), (conv_rescale, jnp.zeros((3, 3, 2, 2)))):
        assert not np.asarray(fn(zero)).any()
        assert np.isfinite(jax.grad(lambda m, fn=fn: fn(m).sum())(zero)).all()


def test_custom_gradient_equals_autodiff(seeded_key):
    with jax.enable_x64(True):
        k1, k2, k3 = jax.random.split(seeded_key, 3)
        matrix = jax.random.normal(k1, (7, 5), jnp.float64)
        log_q = jax.random.normal(k2, (5,), jnp.float64)
        mix = jax.random.normal(k3, (5,), jnp.float64)

        def plain(matrix, log_q):
            r = jnp.exp(log_q - log_q.mean())
            return mix @ (jnp.abs(matrix.T @ matrix) @ r / r)

        def ours(matrix, log_q):
            return mix @ dominating_diagonal(matrix, log_q=log_q)

        expected = jax.grad(plain, (0, 1))(matrix, log_q)
        for got, want in zip(jax.grad(ours, (0, 1))(matrix, log_q), expected):
            np.testing.assert_allclose(got, want, rtol=1e-9)


def test_gradient_at_an_orthonormal_matrix_has_no_spurious_part():
    """`grad |x|` is 1 at 0 in JAX: off-diagonal zeros of the Gram matrix must not pull."""
    gradient = jax.grad(lambda m: dominating_diagonal(m).sum())(jnp.eye(4))
    np.testing.assert_allclose(gradient, 2 * np.eye(4), atol=1e-5)
    kernel = jnp.asarray(np.eye(9, dtype=np.float32)[4].reshape(3, 3, 1, 1))
    gradient = jax.grad(lambda k: conv_dominating_diagonal(k).sum())(kernel)
    np.testing.assert_allclose(gradient, 2 * kernel, atol=1e-5)


def test_nan_stays_nan():
    assert np.isnan(rescale(jnp.ones((3, 2)).at[0, 0].set(jnp.nan))).any()
    assert np.isnan(conv_rescale(jnp.ones((3, 3, 1, 1)).at[0, 0].set(jnp.nan))).any()


def test_not_too_small():
    """Sound is not enough: random tall matrices keep most of their norm."""
    assert float(spectral_norm(rescale(gaussian(200, 20)))) > 0.75


def test_small_columns_are_scaled_not_removed():
    for num_iters in (1, 4, 8):
        weights = np.asarray(rescale(np.diag(np.float32([1, 0.1])), num_iters=num_iters))
        assert weights[1, 1] > 0.09 and oracles.norm(weights) <= 1


def test_gradients_with_columns_of_very_different_sizes():
    matrix = gaussian(6, 4) * np.float32([1, 1e-10, 1e-20, 1e-26])
    assert np.isfinite(jax.grad(lambda m: rescale(m).sum())(matrix)).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="log_q has shape"):
        rescale(jnp.ones((3, 2)), log_q=jnp.zeros(3))
    with pytest.raises(ValueError, match="matrix has dtype"):
        rescale(jnp.ones((3, 2), jnp.int32))
    with pytest.raises(ValueError, match="matrix has dtype"):
        rescale(jnp.ones((3, 2), jnp.complex64))
    with pytest.raises(ValueError, match="kernel has shape"):
        conv_rescale(jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="num_iters"):
        rescale(jnp.ones((3, 2)), num_iters=0)


def test_more_iterations_than_float32_can_prove_leave_no_zeros():
    matrix = jax.random.normal(jax.random.key(0), (64, 48))
    norms = [oracles.norm(rescale(matrix, num_iters=n)) for n in (12, 20)]
    assert 0.9 < norms[0] <= 1 and 0.05 < norms[1] <= 1
    kernel = conv_rescale(jax.random.normal(jax.random.key(0), (1, 1, 64, 48)), num_iters=12)
    assert 0.05 < oracles.norm(kernel[0, 0]) <= 1


def plain_sums(matrix, weights):
    """Row sums of the whole Gram matrix, for automatic differentiation."""
    gram = jnp.einsum("...na,...nb->...ab", matrix, matrix, precision="highest")
    return jnp.einsum("...ab,...b->...a", jnp.abs(gram), weights, precision="highest")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(12, 16), (7, 13), (3, 9, 10)])
def test_gram_sums_in_blocks_are_those_of_the_whole_matrix(shape, monkeypatch):
    monkeypatch.setattr(_gram_sums, "LARGE", 8)
    monkeypatch.setattr(_gram_sums, "BLOCKS", 3)
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=shape), jnp.float32)
    weights = jnp.asarray(np.exp(rng.normal(size=(*shape[:-2], shape[-1]))), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=weights.shape), jnp.float32)

    def pulled(fn):
        value, pull = jax.vjp(fn, matrix, weights)
        return value, *pull(cotangent)

    for got, expected in zip(pulled(_gram_sums.abs_gram_sums), pulled(plain_sums)):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)

    def pushed(fn):
        return jax.jvp(fn, (matrix, weights), (jnp.cos(matrix), jnp.sin(weights)))

    for got, expected in zip(pushed(_gram_sums.abs_gram_sums), pushed(plain_sums)):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)

    def turned(fn):
        def slope(matrix):
            return jax.grad(lambda m: jnp.vdot(fn(m, weights), cotangent))(matrix)

        return jax.grad(lambda m: jnp.sum(slope(m) ** 2))(matrix)

    expected = turned(plain_sums)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(turned(_gram_sums.abs_gram_sums), expected, atol=2e-5 * scale)


def test_gram_sums_of_orthogonal_columns_have_no_spurious_slope(monkeypatch):
    """Off-diagonal entries are exactly 0 there, where the derivative of the absolute value counts 0."""
    monkeypatch.setattr(_gram_sums, "LARGE", 8)
    matrix = 2 * jnp.eye(12)
    slope = jax.grad(lambda m: _gram_sums.abs_gram_sums(m, jnp.ones(12)).sum())(matrix)
    np.testing.assert_allclose(slope, 2 * matrix)


def test_blocks_keep_less_than_the_gram_matrix():
    """What the backward pass of a large layer needs besides the matrix: one byte an entry, or less."""
    shape = (64, _gram_sums.LARGE)

    def saved(fn):
        _, pull = jax.eval_shape(lambda m: jax.vjp(fn, m), jnp.zeros(shape))
        leaves = jax.tree.leaves(pull)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    weights = jnp.ones(shape[1])
    blocks = saved(lambda m: _gram_sums.abs_gram_sums(m, weights))
    whole = saved(lambda m: plain_sums(m, weights))
    assert whole >= shape[1] ** 2
    assert blocks <= 0.76 * shape[1] ** 2 + 4 * (np.prod(shape) + 4 * shape[1])


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (7, 7)])
def test_either_side_may_be_chosen(shape):
    matrix, rng = gaussian(*shape), np.random.default_rng(1)
    for num_iters, side in ((1, "input"), (1, "output"), (3, "input")):
        channels = shape[0] if side == "input" else shape[1]
        log_q = rng.normal(size=channels).astype(np.float32)
        got = rescale(matrix, num_iters=num_iters, log_q=log_q, side=side)
        assert oracles.norm(np.asarray(got)) <= 1
        exact = np.float64(matrix if side == "output" else matrix.T)
        power = np.linalg.matrix_power(exact.T @ exact, 2 ** (num_iters - 1))
        r = np.exp(np.float64(log_q) - log_q.mean())
        t = (np.abs(power * r / r[:, None]).sum(1)) ** (1 / 2 ** (num_iters - 1))
        expected = exact / np.sqrt(t)
        np.testing.assert_allclose(got if side == "output" else got.T, expected, rtol=5e-3)
    with pytest.raises(ValueError, match="side is 'both'"):
        rescale(matrix, side="both")


def test_the_side_of_a_convolution():
    kernel = gaussian(3, 2, 4, 4)
    one, other = (conv_rescale(kernel, side=side) for side in ("input", "output"))
    turned = conv_rescale(np.flip(kernel, (0, 1)).swapaxes(2, 3), side="output")
    np.testing.assert_allclose(one, jnp.flip(turned, (0, 1)).swapaxes(2, 3), rtol=1e-5)
    assert float(jnp.abs(one - other).max()) > 0.01
    for made in (one, other):
        assert float(conv_spectral_norm(made, padding="circular", input_size=8)) < 1.001
    with pytest.raises(ValueError, match="log_q has shape"):
        conv_rescale(gaussian(3, 3, 2, 4), side="output", log_q=jnp.zeros(2))
