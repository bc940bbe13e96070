"""Block reflections, and the float32 formula that expands where this one does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import reflector
from tests import oracles

RNG = np.random.default_rng(0)


def test_a_symmetric_involution_that_reflects_the_given_subspace():
    params = reflector.init_dense(jax.random.key(0), 7, rank=3)
    kernel = np.float64(reflector.constrain_dense(params).kernel)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-6)
    np.testing.assert_allclose(kernel @ kernel, np.eye(7), atol=1e-5)
    np.testing.assert_allclose(kernel @ params.kernel, -params.kernel, atol=1e-4)
    np.testing.assert_allclose(np.linalg.eigvalsh(kernel), [-1, -1, -1, 1, 1, 1, 1], atol=1e-5)


def nearly_dependent():
    base = RNG.normal(size=(10, 1)) + 1e-3 * RNG.normal(size=(10, 5))
    return base.astype(np.float32)


def test_nearly_dependent_columns_do_not_expand():
    params = reflector.Params(nearly_dependent(), jnp.zeros(10))
    assert oracles.norm(reflector.constrain_dense(params).kernel) <= 1 + 1e-6
    assert float(reflector.bound(reflector.constrain_dense(params)).value) <= 1 + 1e-5


def test_negative_control_the_plain_formula_does():
    v = nearly_dependent()
    gram = v.T @ v
    damped = gram + 1e-7 * np.trace(gram) / 5 * np.eye(5, dtype=np.float32)
    plain = np.eye(10, dtype=np.float32) - 2 * v @ np.linalg.inv(damped) @ v.T
    assert oracles.norm(plain) > 1.001


def test_convolution_is_its_own_inverse():
    params = reflector.init_conv(jax.random.key(0), 4, rank=2)
    weights = reflector.constrain_conv(params, input_size=(5, 6))
    x = RNG.normal(size=(2, 5, 6, 4)).astype(np.float32)
    once = reflector.linear_conv(weights, x)
    np.testing.assert_allclose(reflector.linear_conv(weights, once), x, atol=1e-5)
    assert np.abs(once - x).max() > 0.1
    assert float(reflector.bound(weights).value) <= 1 + 1e-5


def test_options_are_checked():
    for options, word in ((dict(rank=4), "rank is 4"), (dict(rank=0), "rank is 0")):
        with pytest.raises(ValueError, match=word):
            reflector.init_dense(jax.random.key(0), 4, **options)
    with pytest.raises(ValueError, match="depth is 0"):
        reflector.init_conv(jax.random.key(0), 4, depth=0)


@pytest.mark.parametrize("shape", [(257, 128), (512, 256)])
def test_sums_of_one_sign_do_not_expand(shape):
    """Their rounding does not cancel, and the reflection doubles it: to 1.2e-5 with no margin."""
    kernel = np.tril(np.ones((shape[0],) * 2, np.float32))[:, : shape[1]]
    weights = reflector.constrain_dense(reflector.Params(jnp.asarray(kernel), jnp.zeros(shape[0])))
    assert oracles.norm(weights.kernel) <= 1 + 5e-6
