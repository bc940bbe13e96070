"""Shared by the attacks: callables as arguments of a jitted program, and norms of flat vectors."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax._numerics import power_of_two, safe_sqrt


def as_argument(fn):
    """`fn` as a callable pytree, so that a jitted program can take it as an ordinary argument.

    A pytree (`jax.tree_util.Partial`, a Flax NNX module) hands over its arrays, and so does a
    method of one: new weights are new arguments, the program is traced once. Any other callable is
    part of the program: it is traced once for each function object, and the arrays it closes over
    are constants, as under `jax.jit`. A callable that cannot be hashed is traced at every call.
    """
    if not callable(fn):
        raise ValueError(f"fn is {fn!r}; it must be a function from a batch [n, ...] to [n, ...].")
    owner = getattr(fn, "__self__", None)
    if owner is not None and hasattr(fn, "__func__") and not _is_leaf(owner):
        return _Method(fn.__func__).bind(owner)
    if not _is_leaf(fn):
        return _Method(None).bind(fn)
    try:
        hash(fn)
    except TypeError:
        return jax.tree_util.Partial(functools.partial(fn))
    return jax.tree_util.Partial(fn)


def box_ends(bounds, dtype) -> tuple[float, float]:
    """`(low, high)` as that dtype holds them, or the error that says what they must be."""
    try:
        ends = np.asarray(bounds, dtype)
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise ValueError(
            f"bounds is {bounds!r}; it must be two numbers (low, high) with low < high, or None."
        )
    return low, high


def at_least_float32(x):
    """`x`, with half precision widened exactly."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def row_norm(x):
    """l2 norm of every row of `x: float[..., d]`; its relative error is at most
    `norm_roundings(d)` times `u`.

    Summed in blocks of about `sqrt(d)`, so that the error grows with `sqrt(d)` and not with `d`;
    neither overflowing nor underflowing, with derivative 0 at 0.
    """
    block = _block(x.shape[-1])
    scale = power_of_two(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)]
    blocks = jnp.pad(x / scale, pad).reshape(*x.shape[:-1], -1, block)
    norms = safe_sqrt(jnp.square(blocks).sum(axis=-1))
    return safe_sqrt(jnp.square(norms).sum(axis=-1)) * scale[..., 0]


def norm_roundings(d: int) -> int:
    """How many roundings `row_norm` of vectors of length `d` amounts to.

    A sum of at most `b` squares errs by `gamma(b)`, of which the root keeps half, and the root adds
    at most 2 roundings (GPU and TPU roots are not all correctly rounded); there are two levels.
    """
    return _block(d) + 6


def _block(d: int) -> int:
    return math.isqrt(max(d, 1) - 1) + 1


def _is_leaf(value) -> bool:
    return jax.tree_util.all_leaves([value])


class _Method(NamedTuple):
    """`function(owner, x)`, or `owner(x)`, with the arrays of `owner` as arguments."""

    function: Any
    treedef: Any = None
    static: tuple = ()

    def bind(self, owner):
        leaves, treedef = jax.tree.flatten(owner)
        arrays = [leaf if isinstance(leaf, jax.Array | np.ndarray) else None for leaf in leaves]
        static = tuple(leaf if a is None else None for leaf, a in zip(leaves, arrays))
        return jax.tree_util.Partial(_Method(self.function, treedef, static), arrays)

    def __call__(self, arrays, x):
        leaves = [s if a is None else a for a, s in zip(arrays, self.static)]
        owner = jax.tree.unflatten(self.treedef, leaves)
        return owner(x) if self.function is None else self.function(owner, x)
