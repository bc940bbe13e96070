"""What a training run carries from step to step, and what a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lipjax import _checks
from lipjax.training import _trees

Array = jax.Array


class TrainState(NamedTuple):
    """Everything the next step needs. The data order is a function of `step` too.

    Attributes:
        step: `int32[]`, the number of steps taken, skipped ones included.
        params: Any pytree of floating arrays, in practice a Flax module.
        opt_state: The state of the optax optimizer.
        key: A typed key, the same in every step; step t draws from `fold_in(key, t)`.
    """

    step: Array
    params: Any
    opt_state: Any
    key: Array


def init_state(key: Array, params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step.

    Args:
        key: A typed key, from `jax.random.key`.
        params: Any pytree of floating arrays.
        optimizer: An optax optimizer.

    Returns:
        A state whose arrays are copies: the step donates its state, and `params` stays usable.

    Raises:
        ValueError: The key is not typed, a leaf of `params` is not a floating array, or a module stands
            at two places of it, which would be trained apart.

    >>> state = init_state(jax.random.key(0), {"w": jnp.ones(3)}, optax.sgd(0.1))
    >>> state.step, state.params
    (Array(0, dtype=int32), {'w': Array([1., 1., 1.], dtype=float32)})
    """
    if not _trees.is_key(key) or key.shape != ():
        raise ValueError(f"key is {key!r}; it must be one typed key, such as jax.random.key(0).")
    _trees.require_floating(params=params)
    _checks.nothing_twice(params=params)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), key)
    return jax.tree.map(_copy, state)


def _copy(leaf):
    """A new buffer of the same dtype, without JAX's weak type."""
    array = jnp.asarray(leaf)
    return array.copy() if _trees.is_key(array) else jnp.array(array, array.dtype, copy=True)
