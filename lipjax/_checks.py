"""Argument checks at trace time: the error names the argument, its value and what would work.

Each check takes the arguments by name, `positive(eps=eps)`, so that the message can repeat the
name. Only what is known while tracing is checked; a traced value passes.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def one_of(options: Sequence, **named) -> None:
    """Each value is one of `options`."""
    for name, value in named.items():
        if np.ndim(value) or value not in options:
            raise ValueError(f"{name} is {value!r}; it must be one of {list(options)}.")


def integer(minimum: int, **named) -> None:
    """Each value is an integer of at least `minimum`."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
            raise ValueError(f"{name} is {value!r}; it must be an integer of at least {minimum}.")


def truth(**named) -> None:
    """Each value is True or False."""
    for name, value in named.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} is {value!r}; it must be True or False.")


def positive(**named) -> None:
    """Each value is a finite number above zero (checked where it is known)."""
    for name, value in named.items():
        if _known(value) and not (
            _real(value) and np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)
        ):
            raise ValueError(f"{name} is {value!r}; it must be finite and above 0.")


def nonnegative(**named) -> None:
    """Each value is at least zero and not NaN (checked where it is known)."""
    for name, value in named.items():
        if _known(value) and not (_real(value) and np.all(np.asarray(value) >= 0)):
            what = "" if _real(value) else "a real number of "
            raise ValueError(f"{name} is {value!r}; it must be {what}at least 0, and not NaN.")


def amount(**named) -> None:
    """Each value is one finite number of at least zero (checked where it is known)."""
    for name, value in named.items():
        known = _known(value)
        real = not known or (_real(value) and np.all(np.isfinite(value) & (np.asarray(value) >= 0)))
        if np.ndim(value) or not real:
            raise ValueError(f"{name} is {value!r}; it must be one finite number of at least 0.")


def within(low: float, high: float, **named) -> None:
    """Each value lies in `[low, high]` (checked where it is known)."""
    for name, value in named.items():
        if _known(value) and not (
            _real(value) and np.all((np.asarray(value) >= low) & (np.asarray(value) <= high))
        ):
            what = "" if _real(value) else "be a real number and "
            raise ValueError(f"{name} is {value!r}; it must {what}lie in [{low}, {high}].")


def one_key(**named) -> None:
    """Each value is one random key, typed or raw."""
    for name, value in named.items():
        arrays = jax.Array | np.ndarray | np.generic
        dtype, shape = (value.dtype, value.shape) if isinstance(value, arrays) else (None, None)
        typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        if not (shape == () if typed else dtype == jnp.uint32 and len(shape) == 1):
            raise ValueError(f"{name} is {value!r}; it must be one key, as jax.random.key(0).")


def array(**named) -> jax.Array:
    """The value as JAX holds it: NumPy arrays, numbers and lists of them are welcome."""
    ((name, value),) = named.items()
    if isinstance(value, jax.Array):
        return value
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is {value!r}; it must be an array, or numbers in lists of equal length."
        ) from error


def ranked(rank: int | Sequence[int], axes: str = "", **named) -> None:
    """Each array has `rank` axes (or one of several ranks); `axes` is the shape in words."""
    ranks = (rank,) if isinstance(rank, int) else tuple(rank)
    for name, value in named.items():
        if np.ndim(value) not in ranks:
            hint = f", {axes}" if axes else ""
            raise ValueError(
                f"{name} has shape {np.shape(value)}; it must have "
                f"{' or '.join(map(str, ranks))} axes{hint}."
            )


def at_least_rank(rank: int, axes: str = "", **named) -> None:
    """Each array has at least `rank` axes."""
    for name, value in named.items():
        if jnp.ndim(value) < rank:
            hint = f", {axes}" if axes else ""
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}; it must have at least {rank} axes{hint}."
            )


def nonempty(**named) -> None:
    """No array has an axis of length zero."""
    for name, value in named.items():
        if 0 in jnp.shape(value):
            raise ValueError(f"{name} has shape {jnp.shape(value)}; no axis may have length 0.")


def broadcastable(**named) -> None:
    """The shapes of all of them broadcast to one."""
    try:
        np.broadcast_shapes(*(np.shape(value) for value in named.values()))
    except ValueError as error:
        shapes = ", ".join(f"{name} has shape {np.shape(value)}" for name, value in named.items())
        raise ValueError(f"{shapes}; they must broadcast to one shape.") from error


def real_floating(**named) -> None:
    """Each array is float32 or float64 (bounds are never computed in less)."""
    for name, value in named.items():
        if jnp.result_type(value) not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"{name} has dtype {jnp.result_type(value)}; it must be float32 or float64 "
                f"(use {name}.astype(jnp.float32))."
            )


def floating(**named) -> None:
    """Each array is float32, float64, complex64 or complex128."""
    for name, value in named.items():
        if jnp.result_type(value) not in (jnp.float32, jnp.float64, jnp.complex64, jnp.complex128):
            raise ValueError(
                f"{name} has dtype {jnp.result_type(value)}; it must be float32, float64, "
                f"complex64 or complex128 (use {name}.astype(jnp.float32))."
            )


def same_dtype(dtype, whose: str, **named) -> None:
    """Each array has that dtype."""
    for name, value in named.items():
        if jnp.result_type(value) != dtype:
            use = f"use {name}.astype(jnp.{jnp.dtype(dtype)})"
            if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
                use = "JAX runs in 32 bits: set jax_enable_x64"
            raise ValueError(
                f"{name} has dtype {jnp.result_type(value)}; it must be {jnp.dtype(dtype)}, {whose} "
                f"({use})."
            )


def per_axis(dims: int, **named) -> tuple[int, ...]:
    """One positive integer per spatial axis, from an integer or a sequence of them."""
    ((name, value),) = named.items()
    message = f"{name} is {value!r}; it must be an integer of at least 1 or have {dims} of them."
    if isinstance(value, bool) or not isinstance(value, int | np.integer | Sequence | np.ndarray):
        raise ValueError(message)
    values = (value,) * dims if isinstance(value, int | np.integer) else tuple(value)
    for entry in values:
        if isinstance(entry, bool) or not isinstance(entry, int | np.integer) or entry < 1:
            raise ValueError(message)
    if len(values) != dims:
        raise ValueError(message)
    return tuple(int(entry) for entry in values)


def axis_size(axis: int, size: int, reason: str = "", **named) -> None:
    """Axis `axis` of each array has length `size`; `reason` says where the length comes from."""
    for name, value in named.items():
        shape = jnp.shape(value)
        if shape[axis] != size:
            because = f" ({reason})" if reason else ""
            raise ValueError(
                f"{name} has shape {shape}; its axis {axis} must have length {size}{because}."
            )


def _real(value) -> bool:
    """Whether it holds real numbers; truth values, text and None do not."""
    dtype = np.asarray(value).dtype
    return dtype.kind in "fiu" or jnp.issubdtype(dtype, jnp.floating)


def _known(value) -> bool:
    return not isinstance(value, jax.core.Tracer)


def nothing_twice(**named) -> None:
    """No module or variable stands at two places of a pytree: as a tree it would become two."""
    for name, tree in named.items():
        places = {}
        for path, part in _parts(tree, ()):
            other = places.setdefault(id(part), path)
            if other is not path:
                one, two = (jax.tree_util.keystr(p) for p in (other, path))
                raise ValueError(
                    f"{name} has the same {type(part).__name__} at {one} and {two}; as a pytree it "
                    "becomes two, with parameters of their own. Make two, or hold it once and call it "
                    "twice."
                )


def _parts(tree, path):
    """The nodes of a pytree that are no plain containers, with their paths."""
    inner = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda part: part is not tree)[0]
    if (inner and inner[0][1] is tree) or not jax.tree.leaves(tree):  # a leaf, or without numbers
        return
    if not isinstance(tree, tuple | list | Mapping):
        yield path, tree
    for step, part in inner:
        yield from _parts(part, (*path, *step))
