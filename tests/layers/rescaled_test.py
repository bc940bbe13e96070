"""What is particular to rescaling: between AOL and spectral normalization, weights that act."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax.layers import aol, cpl, rescaled
from lipjax.nn import RescaledConv, RescaledDense, freeze
from lipjax.spectral import conv_gram_iteration
from tests import oracles

RNG = np.random.default_rng(0)


def params(*shape, log_q=0.0):
    kernel = RNG.normal(size=shape).astype(np.float32)
    small = min(shape[-2:])
    return rescaled.Params(kernel, jnp.zeros(shape[-1]), jnp.full(small, log_q))


def test_one_iteration_with_equal_weights_is_aol():
    dense, conv = params(9, 5), params(3, 3, 4, 2)
    np.testing.assert_allclose(
        rescaled.constrain_dense(dense, num_iters=1).kernel,
        aol.constrain_dense(aol.Params(*dense[:2])).kernel,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        rescaled.constrain_conv(conv, num_iters=1).kernel,
        aol.constrain_conv(aol.Params(*conv[:2])).kernel,
        rtol=1e-6,
    )


def test_many_iterations_divide_by_the_spectral_norm():
    dense = params(9, 5)
    kernel = rescaled.constrain_dense(dense, num_iters=14).kernel
    np.testing.assert_allclose(kernel, dense.kernel / oracles.norm(dense.kernel), rtol=2e-3)


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_norms_grow_towards_one_and_tightening_reaches_it(shape):
    dense = params(*shape)
    norms = [
        oracles.norm(rescaled.constrain_dense(dense, num_iters=n).kernel) for n in (1, 2, 4, 8)
    ]
    assert all(a < b + 1e-6 for a, b in zip(norms, norms[1:])) and norms[-1] <= 1
    tight = oracles.norm(rescaled.constrain_dense(dense, num_iters=1, tighten=True).kernel)
    assert 0.995 <= tight <= 1


def test_tightened_convolution_is_within_one_at_every_size():
    conv = params(3, 3, 3, 2)
    weights = rescaled.constrain_conv(conv, tighten=True)
    norms = [
        oracles.norm(oracles.conv_matrix(weights.kernel, n, padding=padding))
        for n in (3, 5, 8)
        for padding in ("circular", "zero")
    ]
    assert 0.9 <= max(norms) <= 1


def test_weights_act():
    dense = params(9, 5)
    q = jnp.asarray(RNG.normal(size=5), jnp.float32)
    changed = rescaled.constrain_dense(dense._replace(log_q=q), num_iters=2).kernel
    assert np.abs(changed - rescaled.constrain_dense(dense, num_iters=2).kernel).max() > 1e-3
    slope = jax.grad(lambda p: rescaled.constrain_dense(p).kernel[0, 0])(dense)
    assert np.abs(slope.log_q).max() > 0


@pytest.mark.slow
def test_modules_train_and_freeze(seeded_key):
    from flax import nnx

    from lipjax import nn

    x = jax.random.normal(seeded_key, (2, 6, 6, 3))
    layer = RescaledConv(3, 4, num_iters=2, tighten=True, strides=2, rngs=nnx.Rngs(0))
    frozen = nn.freeze(layer)
    jitted = jax.jit(lambda m, x: m(x))
    np.testing.assert_allclose(jitted(frozen, x), jitted(layer, x), rtol=2e-3, atol=1e-4)
    assert frozen(x).shape == (2, 3, 3, 4) and float(frozen.bound().value) <= 1.0001
    slope = jax.jit(jax.grad(lambda m: jnp.sum(m(x) ** 2)))(layer)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    dense = RescaledDense(3, 8, rngs=nnx.Rngs(0))
    assert dense(x).shape == (2, 6, 6, 8) and dense.bound().kind == "upper"


@pytest.mark.few(1)
@pytest.mark.parametrize("options", [dict(num_iters=1), {}, dict(num_iters=3), dict(tighten=True)])
def test_bounds_of_deep_stacks_stay_at_one(options):
    """Negative control: the grid for all sizes alone would give 1.0097 per layer."""
    for make in (rescaled.constrain_conv, rescaled.freeze_conv):
        kernel = np.abs(np.random.default_rng(0).normal(size=(3, 3, 4, 4))).astype(np.float32)
        weights = make(
            rescaled.Params(kernel, np.zeros(4, np.float32), np.zeros(4, np.float32)), **options
        )
        assert float(rescaled.bound(weights).value) <= 1 + 1e-5
        grid = conv_gram_iteration(weights.kernel, padding="any", num_iters=8)
        assert float(grid) <= 1.01
    if options.get("num_iters") == 1:
        assert float(grid) > 1.009


@pytest.mark.few(1)
@pytest.mark.parametrize("module", [rescaled, cpl])
def test_second_derivatives_of_the_norm_are_refused_not_wrong(module):
    weight = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    options = dict(tighten=True) if module is rescaled else {}

    def value(kernel):
        bias = jnp.zeros(3)
        params = module.Params(kernel, bias, bias) if options else module.Params(kernel, bias)
        weights = module.constrain_dense(params, **options)
        return jnp.sum(weights.kernel if options else weights.step)

    assert np.isfinite(jax.grad(value)(weight)).all()
    with pytest.raises(ValueError, match="first derivatives only"):
        jax.hessian(value)(weight)


def test_parameters_are_not_taken_for_weights():
    params = rescaled.init_dense(jax.random.key(0), 4, 3)
    with pytest.raises(ValueError, match="constrain"):
        rescaled.apply_dense(params, jnp.ones(4))


@pytest.mark.parametrize("num_iters", [1, 2])
@pytest.mark.parametrize("side", ["input", "output"])
def test_both_sides_have_weights_of_their_own_and_are_proved(num_iters, side):
    options = dict(num_iters=num_iters, side=side)
    dense, conv = (
        RescaledDense(5, 8, rngs=nnx.Rngs(0), **options),
        RescaledConv(4, 4, rngs=nnx.Rngs(0), **options),
    )
    for layer in (dense, conv):
        params = layer.free.get_value()
        assert params.log_q.shape == (params.kernel.shape[-2 if side == "input" else -1],)
        noise = RNG.normal(size=params.kernel.shape).astype(np.float32)
        layer.free = nnx.Param(
            params._replace(
                kernel=params.kernel + noise,
                log_q=jnp.linspace(-1, 1, params.log_q.size),
            )
        )
        assert float(freeze(layer).bound().value) <= (1 + 1e-5 if num_iters == 1 else 1.01)


def test_switches_are_true_or_false():
    with pytest.raises(ValueError, match="tighten is 'no'; it must be True or False"):
        RescaledDense(4, 4, tighten="no", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="tighten is 1; it must be True or False"):
        rescaled.constrain_conv(rescaled.init_conv(jax.random.key(0), 2, 2), tighten=1)
