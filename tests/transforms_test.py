"""Every row of the families under jit, vmap, grad and repeated calls."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import families


def counted(fn):
    """The jitted function and a list that grows by one at each trace."""
    traces = []

    def traced(*args):
        traces.append(args)
        return fn(*args)

    return jax.jit(traced), traces


ARRAY_FUNCTIONS = families.BOUNDS + families.CONTRACTIONS


@pytest.mark.parametrize("row", families.by_name(ARRAY_FUNCTIONS))
class TestArrayFunctions:
    def test_vmap_equals_loop_and_jit_equals_eager(self, row):
        arrays = families.arrays(row.shape)[-3:]
        together = jax.jit(jax.vmap(row.fn))(arrays)
        for one, expected in zip(arrays, together):
            np.testing.assert_allclose(row.fn(jnp.asarray(one)), expected, rtol=3e-5, atol=1e-6)

    def test_gradient_is_finite_everywhere_and_zero_gives_zero(self, row):
        arrays = families.arrays(row.shape)
        arrays = arrays[[i for i, a in enumerate(arrays) if np.abs(a).max() < 1e20]]
        gradient = jax.jit(jax.vmap(jax.grad(lambda a: row.fn(a).sum())))(arrays)
        assert np.isfinite(gradient).all()
        zero = [i for i, a in enumerate(arrays) if not a.any()]
        assert zero and not np.asarray(gradient)[zero].any()

    def test_second_derivative_is_finite_or_refused(self, row):
        array = jnp.asarray(families.arrays(row.shape)[-1])
        turned = jax.grad(lambda a: jnp.vdot(jax.grad(lambda a: row.fn(a).sum())(a), array))
        if row.orders == 1:
            with pytest.raises(ValueError, match="first derivatives only"):
                turned(array)
            return
        assert np.isfinite(jax.jit(turned)(array)).all()

    def test_one_trace(self, row):
        fn, traces = counted(row.fn)
        for array in families.arrays(row.shape)[:3]:
            fn.eval_shape(array)  # traces as a call does, without compiling
        assert len(traces) == 1

    def test_nan_in_nan_out(self, row):
        array = families.arrays(row.shape)[-1].copy()
        array.reshape(-1)[0] = np.nan
        assert np.isnan(row.fn(jnp.asarray(array))).any()

    def test_numpy_is_welcome(self, row):
        assert isinstance(row.fn(families.arrays(row.shape)[-1]), jax.Array)


@pytest.mark.parametrize("layer", families.one_of_each(families.LAYERS))
class TestLayers:
    def test_batch_axes_vmap_and_jit(self, layer):
        weights = layer.constrain(layer.init(jax.random.key(0)))
        x = np.random.default_rng(0).normal(size=(2, 3, *layer.shape)).astype(np.float32)
        direct = layer.apply(weights, x)
        mapped = jax.jit(jax.vmap(jax.vmap(lambda one: layer.apply(weights, one))))(x)
        np.testing.assert_allclose(direct, mapped, atol=2e-6)
        single = layer.apply(weights, x[1, 2])
        np.testing.assert_allclose(single, mapped[1, 2], atol=2e-6)

    def test_gradients_are_finite_for_degenerate_kernels(self, layer):
        params = families.params_like(layer, families.arrays)
        largest = np.abs(np.asarray(params.kernel)).max(tuple(range(1, params.kernel.ndim)))
        usual = (largest == 0) | ((largest > 1e-15) & (largest < 1e15))  # 1 / W^2 is a number
        params = jax.tree.map(lambda leaf: leaf[usual], params)
        x = np.random.default_rng(0).normal(size=layer.shape).astype(np.float32)

        def loss(params):
            return layer.apply(layer.constrain(params), x).sum()

        gradient = jax.jit(jax.vmap(jax.grad(loss)))(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))

    def test_one_trace(self, layer):
        fn, traces = counted(lambda params, x: layer.apply(layer.constrain(params), x))
        for seed in range(3):
            x = np.full(layer.shape, seed, np.float32)
            fn.eval_shape(layer.init(jax.random.key(seed)), x)
        assert len(traces) == 1

    def test_same_key_same_parameters(self, layer):
        chex.assert_trees_all_equal(layer.init(jax.random.key(1)), layer.init(jax.random.key(1)))

    def test_wrong_width_is_named(self, layer):
        weights = layer.constrain(layer.init(jax.random.key(0)))
        x = np.zeros((*layer.shape[:-1], layer.shape[-1] + 1), np.float32)
        with pytest.raises(ValueError, match="x has shape.*last axis must have length"):
            layer.apply(weights, x)


@pytest.mark.few(1)
@pytest.mark.parametrize("name,fn", families.CERTIFICATES)
def test_certificates_under_transforms(name, fn):
    rng = np.random.default_rng(0)
    head = rng.normal(size=(6, 4)).astype(np.float32)
    logits = rng.normal(size=(5, 4)).astype(np.float32)
    together = jax.jit(jax.vmap(fn, (0, None)))(logits, head)
    np.testing.assert_allclose([fn(f, head) for f in logits], together, rtol=1e-5, atol=1e-6)
    gradient = jax.vmap(jax.grad(fn), (0, None))(logits, head)
    assert np.isfinite(gradient).all() and name
