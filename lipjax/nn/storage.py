"""The arrays of a module in a safetensors file, which holds numbers and nothing that can run."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lipjax import _checks


def save_safetensors(path, module: nnx.Module) -> None:
    """Writes every array of the module under its name; the file is whole or not there.

    Args:
        path: Of the file, replaced if it exists.
        module: Any Flax NNX module, free or frozen.

    Names are those of the attributes, such as `dense.explicit.kernel`. Needs `safetensors`
    (`pip install 'lipjax[interop]'`).

    Raises:
        ValueError: where two arrays would have one name, as those of a key `"a.b"` and of `b` in `a`, or
            one layer stands at two places, which would be read as two.

    >>> import tempfile
    >>> from lipjax.nn import SLLDense
    >>> layer = SLLDense(4, 3, rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_safetensors(directory + "/layer.safetensors", layer)
    ...     again = load_safetensors(directory + "/layer.safetensors", layer)
    >>> bool((again(jnp.ones(4)) == layer(jnp.ones(4))).all())
    True
    """
    from safetensors.numpy import save_file

    _checks.nothing_twice(module=module)
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _named(module).items()}
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        save_file(arrays, part, metadata={"format": "lipjax"})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_safetensors(path, like: nnx.Module) -> nnx.Module:
    """A copy of `like` with the arrays of a file that `save_safetensors` wrote.

    Args:
        path: Of the file.
        like: A module of the same structure, or what `nnx.eval_shape` makes of it; its numbers are not
            used. A frozen one for the arrays of a frozen one.

    Raises:
        ValueError: where the file lacks an array, has one too many, or one of another shape or dtype;
            the message names it. Also where it is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(Path(path))
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is no safetensors file: {error}.") from error
    wanted, before = _named(like), _named_before(like)
    if set(arrays) != set(wanted) and set(arrays) == set(before) and len(before) == len(wanted):
        wanted = before
    for name in [*wanted, *(name for name in arrays if name not in wanted)]:
        here = _kind(wanted[name]) if name in wanted else "nothing"
        there = _kind(arrays[name]) if name in arrays else "nothing"
        if here != there:
            raise ValueError(
                f"{str(path)!r} does not fit the module: it holds {there} at {name!r}, where the module "
                f"has {here}. A frozen module's arrays go into a frozen one."
            )
    leaves = [jnp.asarray(arrays[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(module) -> dict:
    """The arrays by name: their paths without the step from a variable to what it holds."""
    named = {}
    for path, leaf in _flat(module, is_leaf=lambda part: isinstance(part, nnx.Variable)):
        variable = isinstance(leaf, nnx.Variable)
        inside = [(rest[1:], a) for rest, a in _flat(leaf)] if variable else [((), leaf)]
        for rest, array in inside:
            name = _joined((*path, *rest))
            if name in named:
                raise ValueError(
                    f"module has two arrays of the name {name!r}, of which a file could hold one alone; "
                    "give the attribute or key of one of them another name, without dots."
                )
            named[name] = array
    return named


def _named_before(module) -> dict:
    """The names that the first files have: without `.value` also where an attribute's name began so."""
    return {_joined(path).replace(".value", ""): leaf for path, leaf in _flat(module)}


def _flat(tree, **options):
    return jax.tree_util.tree_flatten_with_path(tree, **options)[0]


def _joined(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _kind(array) -> str:
    return f"{jnp.dtype(array.dtype)}[{','.join(map(str, array.shape))}]"
