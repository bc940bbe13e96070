"""Activations: the slopes that the table states are the ones that the functions have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import activations
from lipjax.layers.activations import Activation, resolve

NAMES = sorted(activations._REGISTRY)


@pytest.mark.parametrize("name", NAMES)
def test_stated_slopes_hold(name):
    known = resolve(name)
    if known.slopes is None:
        return
    points = jnp.concatenate([jnp.linspace(-12, 12, 20001), jnp.array([0.0, -0.0])])
    slopes = jax.vmap(jax.grad(known.fn))(points)
    low, high = known.slopes
    assert slopes.min() >= low - 1e-6 and slopes.max() <= high + 1e-6
    assert slopes.max() >= high - 0.02 or high == known.lipschitz


@pytest.mark.parametrize("name", NAMES)
def test_one_lipschitz_is(name):
    fn = activations.one_lipschitz(name)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2000, 8)).astype(np.float32) * 3
    gap = np.linalg.norm(np.asarray(fn(a) - fn(b)), axis=1)
    assert (gap <= np.linalg.norm(a - b, axis=1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["max_min", "group_sort"])
def test_sorting_preserves_norms_and_gradients(name):
    fn = resolve(name).fn
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_allclose(np.sort(fn(x), -1), np.sort(x, -1))
    jacobian = jax.vmap(jax.jacobian(fn))(x)
    np.testing.assert_allclose(jacobian @ jacobian.swapaxes(1, 2), np.eye(6)[None].repeat(3, 0))


def test_max_min_passes_an_odd_channel_and_ties_do_not_expand():
    assert activations.max_min(jnp.array([1.0, 2.0, 9.0])).tolist() == [2.0, 1.0, 9.0]
    jacobian = jax.jacobian(activations.max_min)(jnp.zeros(4))
    assert np.linalg.norm(jacobian, 2) <= 1 + 1e-6


def test_known_functions_are_recognized():
    for fn in (jax.nn.relu, jnp.tanh, jax.nn.elu, jax.nn.softplus):
        assert resolve(fn).slopes[0] >= 0


@pytest.mark.parametrize("unknown", ["swish2", lambda x: x, None, 3])
def test_unknown_activations_are_refused_with_what_would_work(unknown):
    with pytest.raises(ValueError, match="activation is .*nothing is known"):
        resolve(unknown)


def test_declaring_impossible_slopes_is_refused():
    with pytest.raises(ValueError, match="slopes is"):
        Activation("f", jnp.sin, (1.0, -1.0))
    with pytest.raises(ValueError, match="lipschitz is 1.0"):
        Activation("f", jnp.sin, (0.0, 2.0))
    with pytest.raises(ValueError, match="group_size is 4"):
        activations.group_sort(jnp.ones(6), group_size=4)
    with pytest.raises(ValueError, match="alpha"):
        activations.leaky_relu(1.5)
