"""Division by a bound on the norm, and what division by less than that would do."""

import jax
import jax.numpy as jnp
import numpy as np

from lipjax.layers import normalized
from lipjax.spectral import conv_gram_iteration, gram_iteration
from tests import oracles

RNG = np.random.default_rng(0)


def params(*shape):
    return normalized.Params(RNG.normal(size=shape).astype(np.float32), jnp.zeros(shape[-1]))


def test_direction_stays_and_the_norm_becomes_one():
    dense = params(9, 5)
    kernel = normalized.constrain_dense(dense, num_iters=10).kernel
    np.testing.assert_allclose(kernel, dense.kernel / oracles.norm(dense.kernel), rtol=1e-3)
    assert 0.999 <= oracles.norm(kernel) <= 1
    assert oracles.norm(normalized.freeze_dense(dense).kernel) <= 1 + 1e-7


def test_convolution_at_every_size_and_padding():
    kernel = normalized.constrain_conv(params(3, 3, 3, 2)).kernel
    norms = [
        oracles.norm(oracles.conv_matrix(kernel, n, padding=padding))
        for n in (3, 5, 8)
        for padding in ("circular", "zero")
    ]
    assert 0.9 <= max(norms) <= 1


def test_another_bound_may_be_given():
    dense, conv = params(9, 5), params(3, 3, 2, 2)
    more = normalized.constrain_dense(dense, norm=lambda k: gram_iteration(k, num_iters=9))
    np.testing.assert_allclose(
        more.kernel, normalized.constrain_dense(dense, num_iters=9).kernel, rtol=1e-6
    )
    exact = normalized.constrain_conv(
        conv, norm=lambda k: conv_gram_iteration(k, padding="zero", input_size=5)
    )
    assert oracles.norm(oracles.conv_matrix(exact.kernel, 5, padding="zero")) <= 1


def test_negative_control_estimates_are_caught_by_the_bound_and_repaired_by_freezing():
    """One step of power iteration, and the norm of the reshaped kernel, are below the norm."""
    dense = params(32, 32)

    def one_step(kernel):
        v = kernel.T @ (kernel @ jnp.ones(32))
        return jnp.linalg.norm(kernel @ v) / jnp.linalg.norm(v)

    weights = normalized.constrain_dense(dense, norm=one_step)
    assert oracles.norm(weights.kernel) > 1.05
    assert float(normalized.bound(weights).value) > 1.05
    assert float(normalized.bound(normalized.freeze_dense(dense)).value) <= 1 + 1e-6
    smooth = normalized.Params(np.ones((3, 3, 2, 2), np.float32), jnp.zeros(2))
    reshaped = normalized.constrain_conv(
        smooth, norm=lambda k: jnp.linalg.norm(k.reshape(-1, 2), ord=2)
    )
    assert oracles.norm(oracles.conv_matrix(reshaped.kernel, 8, padding="zero")) > 1.6


def test_zero_stays_zero_with_finite_gradients():
    zero = normalized.Params(jnp.zeros((4, 3)), jnp.zeros(3))
    assert not normalized.constrain_dense(zero).kernel.any()
    slope = jax.grad(lambda p: normalized.constrain_dense(p).kernel.sum())(zero)
    assert np.isfinite(slope.kernel).all()
