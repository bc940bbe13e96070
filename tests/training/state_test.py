"""The state owns its arrays and refuses what cannot be trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipjax.training import init_state, make_step


def quadratic(weights, batch, key):
    return jnp.sum(weights["w"] ** 2) + jnp.mean(batch), {}


def test_the_parameters_passed_in_survive_donation(key):
    params = {"w": jnp.arange(3.0)}
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_state(key, params, optimizer)
    step = make_step(quadratic, optimizer)
    after, _ = step(state, jnp.zeros(2))
    assert state.params["w"].is_deleted()  # the control: the state itself was donated
    np.testing.assert_array_equal(params["w"], [0, 1, 2])
    assert after.step == 1 and after.key == key


def test_no_weak_types(key):
    """A weak type would compile the step a second time after its first call, and on resuming."""
    state = init_state(key, {"w": jnp.asarray(1.0), "v": 2.0}, optax.sgd(0.1))
    assert jnp.asarray(1.0).weak_type
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state.step, state.params)))


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), jax.random.split(jax.random.key(0))])
def test_the_key_is_one_typed_key(key):
    with pytest.raises(ValueError, match="key is"):
        init_state(key, {"w": jnp.zeros(2)}, optax.sgd(0.1))


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.array(True), 3, "zero", jax.random.key(1)])
def test_parameters_are_floating(key, leaf):
    with pytest.raises(ValueError, match=r"params\['b'\]\[0\] has dtype"):
        init_state(key, {"a": jnp.zeros(2), "b": [leaf]}, optax.sgd(0.1))


def test_a_part_at_two_places_is_refused_and_shared_arrays_are_not(key):
    """A tied layer would be trained as two; containers and arrays that are used twice are values."""
    from flax import nnx

    from lipjax import nn

    class Tied(nnx.Module):
        def __init__(self, same):
            self.a = nn.SLLDense(4, 4, rngs=nnx.Rngs(0))
            self.b = self.a if same else nn.SLLDense(4, 4, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match="params has the same SLLDense at .a and .b"):
        init_state(key, Tied(True), optax.sgd(0.1))
    init_state(key, Tied(False), optax.sgd(0.1))
    both = nn.MaxMin()  # without numbers of its own
    make = lambda: nn.AOLDense(4, 4, rngs=nnx.Rngs(0))  # noqa: E731
    init_state(key, nnx.Sequential(make(), both, make(), both), optax.sgd(0.1))
    zero = jnp.zeros(2)
    pair = (zero, zero)
    init_state(key, {"a": pair, "b": [pair, zero]}, optax.sgd(0.1))
