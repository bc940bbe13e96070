"""Pytrees with names: for error messages and for what is written to disk."""

import jax
import jax.numpy as jnp


def named_leaves(tree) -> list[tuple[str, object]]:
    """The leaves in the order of `jax.tree.leaves`, each with its path.

    >>> named_leaves({"dense": [1.0, 2.0]})
    [("['dense'][0]", 1.0), ("['dense'][1]", 2.0)]
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def is_key(leaf) -> bool:
    """Whether the leaf is an array of typed PRNG keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_floating(leaf) -> bool:
    """Whether the leaf is a floating array or a Python float."""
    if not hasattr(leaf, "dtype"):
        return isinstance(leaf, float)
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def require_floating(*, or_complex: bool = False, **named) -> None:
    """Every leaf of each tree is floating, as differentiation needs it."""
    for argument, tree in named.items():
        for name, leaf in named_leaves(tree):
            spectrum = or_complex and jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)
            if not (is_floating(leaf) or spectrum):
                dtype = getattr(leaf, "dtype", type(leaf).__name__)
                raise ValueError(
                    f"{argument}{name} has dtype {dtype}; every leaf must be a floating array. "
                    "Keep integers, flags and names out of the tree (static fields or closures)."
                )
