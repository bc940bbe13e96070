"""One optimization step, in which an expensive parameterization is evaluated once.

A 1-Lipschitz layer turns free parameters into explicit weights (`constrain`: Gram matrices, norms,
orthogonal factors), which may cost more than the batch itself. The step computes

    weights, pull = vjp(constrain, params)
    grads = pull(mean over micro-batches of d loss / d weights)

so `constrain` and its adjoint run once, however many micro-batches the batch is cut into.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lipjax import _checks
from lipjax.training import _trees
from lipjax.training.state import TrainState


def make_update(loss_fn, optimizer, *, constrain=None, num_microbatches=1):
    """The pure function behind `make_step`, to be used inside a jitted program of your own.

    Arguments, result and errors are those of `make_step`; nothing is jitted or donated.
    """
    _checks.integer(1, num_microbatches=num_microbatches)
    evaluate = jax.value_and_grad(_checked(loss_fn), has_aux=True)

    def update(state: TrainState, batch) -> tuple[TrainState, dict]:
        _trees.require_floating(params=state.params)
        weights, pull = _explicit(constrain, state.params)
        key = jax.random.fold_in(state.key, state.step)
        (loss, metrics), grads = _mean(
            functools.partial(evaluate, weights), batch, key, num_microbatches
        )
        grads = pull(grads)
        finite = _all_finite((loss, grads))
        new = _apply(optimizer, grads, state)
        params, opt_state = jax.tree.map(
            lambda changed, kept: jnp.where(finite, changed, kept),
            new,
            (state.params, state.opt_state),
        )
        metrics = {"loss": loss, "finite": finite.astype(jnp.float32), **metrics}
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return update


def make_step(loss_fn, optimizer, *, constrain=None, num_microbatches=1):
    """A jitted training step.

    Args:
        loss_fn: `(weights, batch, key) -> (loss, metrics)`: the mean loss over the batch, a
            floating scalar, and a dict of floating scalars that are means over the batch as well.
        optimizer: An optax optimizer; its state and updates are those of the free parameters.
        constrain: `params -> weights`, or None when they are the same. Both are pytrees of
            floating arrays; weights may be complex, as those of convolutions at frequencies are.
        num_microbatches: Number of parts into which the batch is cut, to save memory. It must
            divide the batch. Part i holds the examples i, i + num_microbatches, ..., so that a
            batch that is sharded over devices stays where it is, and it draws from its own key.

    Returns:
        `step(state, batch) -> (state, metrics)`. The state that is passed in is donated: do not
        use it again. `metrics` are the means of the dict of `loss_fn`, with `loss` and `finite`.
        When the loss or any gradient is not finite, `finite` is 0 instead of 1 and parameters and
        optimizer state stay as they were; only the step counter moves on.

        A batch sharded over a mesh, with a replicated state, gives data-parallel training.

        On CPUs, XLA runs convolutions inside loops about ten times slower; use micro-batches with
        convolutions on accelerators only.

    Raises:
        ValueError: While tracing: a leaf of `params` or of the weights is not floating, `loss_fn`
            returns something else, or `num_microbatches` does not divide the batch.

    >>> from lipjax.training import init_state
    >>> def loss_fn(weights, batch, key):
    ...     return jnp.mean((batch @ weights - 1.0) ** 2), {}
    >>> optimizer = optax.sgd(0.1)
    >>> step = make_step(loss_fn, optimizer, constrain=lambda w: w / jnp.linalg.norm(w))
    >>> state = init_state(jax.random.key(0), jnp.array([1.0, 2.0]), optimizer)
    >>> state, metrics = step(state, jnp.eye(2))
    >>> round(float(metrics["loss"]), 4), int(state.step)
    (0.1584, 1)
    """
    update = make_update(loss_fn, optimizer, constrain=constrain, num_microbatches=num_microbatches)
    return jax.jit(update, donate_argnums=0)


def _explicit(constrain, params):
    """The weights and the map that pulls their gradient back to `params`."""
    if constrain is None:
        return params, lambda grads: grads
    weights, pull = jax.vjp(constrain, params)
    _trees.require_floating(weights=weights, or_complex=True)  # weights at frequencies
    return weights, lambda grads: pull(grads)[0]


def _mean(evaluate, batch, key, num):
    """Mean of `evaluate(part, key)` over `num` equal parts of the batch."""
    if num == 1:
        return evaluate(batch, jax.random.fold_in(key, 0))
    parts = _cut(batch, num)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
    first = jax.eval_shape(evaluate, *jax.tree.map(lambda leaf: leaf[0], (parts, keys)))
    # Where devices have parts of the batch of their own, the sums are as they are.
    inputs = [leaf for leaf in jax.tree.leaves((parts, keys)) if not _trees.is_key(leaf)]
    sharded = sum(jnp.zeros_like(leaf, jnp.float32, shape=()) for leaf in inputs)
    zeros = jax.tree.map(lambda leaf: jnp.full(leaf.shape, sharded, leaf.dtype), first)

    def add(total, part_and_key):
        return jax.tree.map(jnp.add, total, evaluate(*part_and_key)), None

    total, _ = lax.scan(add, zeros, (parts, keys))
    return jax.tree.map(lambda leaf: leaf / num, total)


def _cut(batch, num):
    """Each leaf `[b, ...]` as `[num, b / num, ...]`, interleaved."""
    for name, leaf in _trees.named_leaves(batch):
        if jnp.ndim(leaf) == 0 or leaf.shape[0] % num:
            raise ValueError(
                f"num_microbatches is {num} and batch{name} has shape {jnp.shape(leaf)}; "
                "it must divide the first axis of every leaf of the batch."
            )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, num, *leaf.shape[1:]).swapaxes(0, 1), batch)


def _checked(loss_fn):
    """`loss_fn`, with an error that says what it should have returned."""

    def checked(weights, batch, key):
        result = loss_fn(weights, batch, key)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise ValueError(
                f"loss_fn returns {type(result).__name__}; it must return (loss, metrics) with a "
                "dict of metrics, which may be empty."
            )
        loss, metrics = result
        for name, value in {"loss": loss, **metrics}.items():
            if jnp.shape(value) != () or not _trees.is_floating(value):
                dtype = getattr(value, "dtype", type(value).__name__)
                raise ValueError(
                    f"loss_fn returns {name} with shape {jnp.shape(value)} and dtype {dtype}; "
                    "the loss and every metric must be a floating scalar, a mean over the batch."
                )
        taken = {"loss", "finite"} & set(metrics)
        if taken:
            raise ValueError(f"loss_fn returns the metric {taken.pop()!r}, which the step adds.")
        return loss, metrics

    return checked


def _apply(optimizer, grads, state):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return optax.apply_updates(state.params, updates), opt_state


def _all_finite(tree):
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, finite)
