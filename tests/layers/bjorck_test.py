"""The iteration: what its polynomial does to singular values, and that others would not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import bjorck, normalized
from tests import oracles

RNG = np.random.default_rng(0)


def params(matrix):
    return bjorck.Params(jnp.asarray(matrix, jnp.float32), jnp.zeros(np.shape(matrix)[1]))


def with_singular_values(values, rows=8):
    u = np.linalg.qr(RNG.normal(size=(rows, len(values))))[0]
    v = np.linalg.qr(RNG.normal(size=(len(values), len(values))))[0]
    return u * np.asarray(values) @ v


def test_singular_values_follow_the_polynomial():
    values = np.array([1.0, 0.7, 0.3, 0.05])
    matrix = with_singular_values(values)
    gram = matrix.T @ matrix
    expected = values / np.sqrt(min(np.abs(gram).sum(1).max(), np.linalg.norm(gram)))
    for _ in range(3):
        expected = 1.5 * expected - 0.5 * expected**3
    kernel = bjorck.constrain_dense(params(matrix), num_steps=3).kernel
    np.testing.assert_allclose(oracles.singular_values(kernel), expected, rtol=2e-3)


def test_no_step_is_spectral_normalization():
    start = params(RNG.normal(size=(6, 9)))
    np.testing.assert_array_equal(
        bjorck.constrain_dense(start, num_steps=0).kernel, normalized.constrain_dense(start).kernel
    )


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_orthonormal_after_the_default_steps(shape):
    values = np.linspace(0.02, 1, min(shape))
    matrix = with_singular_values(values, max(shape))
    matrix = matrix if shape[0] >= shape[1] else matrix.T
    kernel = np.asarray(bjorck.constrain_dense(params(matrix)).kernel, np.float64)
    small = kernel.T @ kernel if shape[0] >= shape[1] else kernel @ kernel.T
    np.testing.assert_allclose(small, np.eye(min(shape)), atol=2e-5)


def test_one_step_repairs_a_norm_underestimated_twofold_and_other_polynomials_do_not():
    s = np.linspace(0, 2, 2001)
    assert np.abs(1.5 * s - 0.5 * s**3).max() <= 1
    muon = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert np.abs(muon[s <= 1]).max() > 1.2


@pytest.mark.few(1)
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_steps_end_where_one_more_would_change_nothing(noise):
    """Against the plain loop: the same weights and the same gradient."""
    start = params(np.linalg.qr(RNG.normal(size=(12, 8)))[0] + noise * RNG.normal(size=(12, 8)))
    direction = jnp.asarray(RNG.normal(size=(12, 8)), jnp.float32)

    def plain(p):
        w = p.kernel
        gram = w.T @ w
        w = w / jnp.sqrt(jnp.minimum(jnp.abs(gram).sum(1).max(), jnp.linalg.norm(gram)))
        for _ in range(20):
            w = 1.5 * w - 0.5 * w @ (w.T @ w)
        return w

    def made(p):
        return bjorck.constrain_dense(p, num_steps=20).kernel

    np.testing.assert_allclose(jax.jit(made)(start), jax.jit(plain)(start), atol=1e-6)
    slopes = [
        jax.jit(jax.grad(lambda p, f=f: jnp.vdot(f(p), direction)))(start) for f in (made, plain)
    ]
    largest = np.abs(slopes[1].kernel).max()
    np.testing.assert_allclose(slopes[0].kernel, slopes[1].kernel, atol=2e-4 * largest)


def test_rank_deficient_kernels_stay_contractions_with_finite_gradients():
    rank_one = np.outer(RNG.normal(size=6), RNG.normal(size=4))
    kernel = bjorck.constrain_dense(params(rank_one)).kernel
    np.testing.assert_allclose(oracles.singular_values(kernel), [1, 0, 0, 0], atol=1e-4)
    slope = jax.grad(lambda p: bjorck.constrain_dense(p).kernel.sum())(params(rank_one))
    assert np.isfinite(slope.kernel).all()


def test_bad_steps_are_named():
    with pytest.raises(ValueError, match="num_steps is -1"):
        bjorck.constrain_dense(params(np.eye(3)), num_steps=-1)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 6), (7, 4)])
def test_second_derivatives_of_the_orthogonal_factor_take_all_steps(shape):
    """At an isometry one step is enough for values and gradients, and not for curvature."""
    with jax.enable_x64(True):
        start = bjorck.init_dense(jax.random.key(0), *shape)
        along, weight = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)))

        def curvature(adaptive):
            def loss(t):
                params = start._replace(kernel=jnp.float64(start.kernel) + t * along)
                made = bjorck.constrain_dense(params, num_steps=8, adaptive=adaptive)
                return (made.kernel * weight).sum()

            return jax.jvp(jax.grad(loss), (0.0,), (1.0,))[1]

        def polar(t):
            u, _, vt = np.linalg.svd(np.float64(start.kernel) + t * np.asarray(along), False)
            return (u @ vt * np.asarray(weight)).sum()

        expected = (polar(1e-4) + polar(-1e-4) - 2 * polar(0.0)) / 1e-8
        np.testing.assert_allclose(curvature(False), expected, rtol=1e-3)
        assert abs(curvature(True) - expected) > 0.1 * abs(expected)  # why there is an option
