"""What contractions keep: the mean squared singular value, and its rise in training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lipjax import nn
from lipjax.layers import proof
from lipjax.training import init_state, make_step
from tests.nn import modules


def random_kernels(module):
    """The same module with normal kernels, which are far from orthogonal."""

    def normal(path, leaf):
        if "kernel" not in jax.tree_util.keystr(path):
            return leaf
        return jax.random.normal(jax.random.key(leaf.size), leaf.shape)

    return jax.tree_util.tree_map_with_path(normal, module)


@pytest.mark.parametrize(
    "name", ["AOLDense", "SpectralDense", "CayleyDense", "AOLConv", "BCOPConv"]
)
def test_it_is_the_mean_squared_singular_value(name):
    module = random_kernels(modules.make(name))
    kernel = np.asarray(module.weights().kernel)
    axes = tuple(range(kernel.ndim - 2))
    symbol = np.fft.fftn(kernel, (9,) * len(axes), axes=axes) if axes else kernel
    truth = np.mean(np.linalg.svd(symbol, compute_uv=False) ** 2)
    for copy in (module, nn.constrain(module), nn.freeze(module)):
        np.testing.assert_allclose(nn.orthogonality(copy), truth, rtol=1e-3)
    assert (truth > 1 - 1e-5) == (name in ("CayleyDense", "BCOPConv"))


def test_strides_leave_fewer_singular_values():
    layer = random_kernels(nn.AOLConv(2, 3, 4, strides=2, rngs=nnx.Rngs(0)))
    jacobian = jax.jacobian(lambda x: layer.linear(layer.weights(), x))(jnp.zeros((12, 12, 2)))
    matrix = np.asarray(jacobian).reshape(36 * 3, -1)
    inner = np.mean(np.linalg.svd(matrix, compute_uv=False) ** 2)
    assert (
        inner <= float(nn.orthogonality(layer)) <= 1.3 * inner
    )  # zeros around the image lose some


def test_networks_are_the_mean_over_their_layers():
    stack = random_kernels(nn.Stack(modules.LAYERS["Chain"], 3, rngs=nnx.Rngs(0)))
    kernels = np.asarray(stack.free.get_value()[0].kernel)
    each = [proof.orthogonality(kernel).mean() for kernel in kernels]
    np.testing.assert_allclose(nn.orthogonality(stack), np.mean(each), rtol=1e-4)
    assert nn.orthogonality(modules.make("SLLDense")) is None
    assert nn.orthogonality(nn.MaxMin()) is None


@pytest.mark.slow
def test_a_margin_makes_almost_orthogonal_layers_orthogonal():
    """Without a margin to reach they stay where they were (the negative control)."""
    x = jax.random.normal(jax.random.key(0), (64, 16))
    labels = jnp.argmax(x[:, :16:4], axis=1)
    reached = {}
    for margin in (0.0, 3.0):
        rngs = nnx.Rngs(0)
        model = random_kernels(
            nn.Chain(nn.AOLDense(16, 16, rngs=rngs), "max_min", nn.AOLDense(16, 16, rngs=rngs))
        )

        def loss(model, batch, key, margin=margin):
            logits = model(batch)[:, :4]
            lead = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
            rest = jnp.max(
                jnp.where(jax.nn.one_hot(labels, 4, dtype=bool), -jnp.inf, logits), axis=1
            )
            return jnp.mean(jnp.maximum(margin - lead + rest, 0)), {}

        optimizer = optax.adam(0.05)
        step = jax.jit(make_step(loss, optimizer, constrain=nn.constrain))
        state = init_state(jax.random.key(1), model, optimizer)
        before = float(nn.orthogonality(model))
        with jax.numpy_dtype_promotion("standard"):  # optax's own
            for _ in range(150):
                state, _ = step(state, x)
        reached[margin] = float(nn.orthogonality(state.params))
    assert before < 0.5 and reached[3.0] > reached[0.0] + 0.1


@pytest.mark.parametrize("strides", [2, (2, 2), [2, 2]])
def test_forms_have_the_strides_of_their_layer(strides):
    """Columns of blocks of pixels, kept by a quarter: the stride's places are rows."""
    kernel = jnp.eye(8).reshape(2, 2, 2, 8)
    layer = nn.AOLConv(2, 8, 2, strides=strides, rngs=nnx.Rngs(0))
    layer.free.set_value(layer.free.get_value()._replace(kernel=kernel))
    alone = float(nn.orthogonality(layer))
    assert len(jax.tree.leaves(layer)) == len(
        jax.tree.leaves(nn.AOLConv(2, 8, 2, rngs=nnx.Rngs(0)))
    )
    for form in (nn.Chain, nn.Residual, nn.ConvexMix):
        again = nn.AOLConv(2, 8, 2, strides=strides, rngs=nnx.Rngs(0))
        again.free.set_value(again.free.get_value()._replace(kernel=kernel))
        np.testing.assert_allclose(float(nn.orthogonality(form(again))), alone, rtol=1e-5)
