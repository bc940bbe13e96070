"""Checkpoints that a killed run resumes from, bit for bit; Orbax does the writing.

A checkpoint is a directory named after its step. It holds every leaf of the state under the name
of its path, a description and a checksum of each, the configuration of the run, and what else the
loop wants back. Orbax writes in the background and marks a checkpoint as complete at the very end,
so that a kill at any moment leaves the previous one as the latest. Nothing is pickled.
"""

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax

from lipjax import _checks
from lipjax.training import _trees

_CHECKSUMS = "checksums"  # of the leaves
_CHECKSUM = "checksum"  # of the description


class Restored(NamedTuple):
    """A checkpoint.

    Attributes:
        state: The state, with the structure, dtypes and devices of the one it was restored like.
        meta: What was passed to `save` along with it.
    """

    state: Any
    meta: dict


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: Where they lie; created when missing.
        every: `save` acts on steps that are multiples of it.
        keep: How many of the latest to keep.
        config: What defines the run, a dict that JSON can hold. A directory whose checkpoints were
            made with another one is refused. None takes what it finds, for those who only read.

    Raises:
        ValueError: The directory holds checkpoints of another configuration (the message names the
            first field that differs), or a damaged one.

    >>> import tempfile
    >>> state = {"w": jnp.arange(3.0), "key": jax.random.key(0)}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     with Checkpoints(directory, every=10, keep=2) as checkpoints:
    ...         saved = [checkpoints.save(step, state, {"epoch": 1}) for step in (10, 15)]
    ...         state, meta = checkpoints.restore_latest(state)
    >>> saved, state["w"], meta
    ([True, False], Array([0., 1., 2.], dtype=float32), {'epoch': 1})
    """

    def __init__(self, directory, *, every: int, keep: int = 2, config: dict | None = None):
        _checks.integer(1, every=every, keep=keep)
        self._config = _as_json(config=config)
        self._every = every
        self._directory = Path(directory).resolve()
        self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_names=("state", "about")
        )
        self._refuse_other_config()

    @property
    def latest_step(self) -> int | None:
        """The step of the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def config(self) -> dict | None:
        """What defines the run: as given, or as the latest checkpoint has it."""
        return self._config

    def save(self, step: int, state, meta: dict | None = None, *, force: bool = False) -> bool:
        """Saves the state if `step` is a multiple of `every`, or if `force`.

        Returns at once, and the state may be donated to the next step: it has been copied on its
        devices, and the copy is written in the background.

        Args:
            step: Number of steps done.
            state: A pytree of arrays; typed keys are arrays too.
            meta: A dict that JSON can hold.
            force: Save whatever `every` says.

        Returns:
            Whether anything is saved: also False when the checkpoint of that step exists.
        """
        _checks.integer(0, step=step)
        if not (force or step % self._every == 0) or step in self._manager.all_steps():
            return False
        about = {
            "step": step,
            "config": self._config,
            "leaves": _describe(state),
            "meta": _as_json(meta=meta or {}),
        }
        about |= {_CHECKSUM: _text_checksum(about)}
        stored = jax.tree.map(jnp.copy, _arrays(state))
        return self._write(
            self._manager.save,
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(stored | {_CHECKSUMS: _checksums(stored)}),
                about=ocp.args.JsonSave(about),
            ),
            force=True,
        )

    def restore_latest(self, like, *, part: str = "") -> Restored | None:
        """The latest complete checkpoint, or None if there is none.

        Args:
            like: A state with the structure, shapes, dtypes and devices to restore to. Its values
                are not used.
            part: The path of a part of the state, such as `".params"`, to read that part alone;
                `like` is then like that part.

        Raises:
            ValueError: The checkpoint is of another structure (the message names the first leaf
                that is missing, too many, or of another shape or dtype), or it is damaged.
        """
        return self._of_latest(lambda step: self._restored(step, like, part))

    def _restored(self, step, like, part) -> Restored:
        about = self._about(step)
        stored = {k: v for k, v in about["leaves"].items() if _is_under(part, k)}
        _compare(self._directory / str(step), stored, _describe(like, part))
        target = {name: _abstract(leaf) for name, leaf in _arrays(like, part).items()}
        names = _stored_names(about["leaves"])
        target[_CHECKSUMS] = jax.ShapeDtypeStruct((max(1, len(names)),), jnp.uint32)
        arguments = ocp.args.PyTreeRestore(
            target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        arrays = self._read(step, state=arguments).state
        wanted = dict(zip(names, np.asarray(arrays.pop(_CHECKSUMS))))
        for name, found in zip(arrays, np.asarray(_checksums(arrays))):
            if found != wanted[name]:
                raise ValueError(self._damaged(step, f"the numbers at {name} have changed"))
        return Restored(_rebuild(like, arrays, part), about["meta"])

    def wait(self) -> None:
        """Returns when what was saved is complete; an error in the background is raised here."""
        self._write(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the writing to end and lets go of the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _write(self, act, *args, **kwargs):
        try:
            return act(*args, **kwargs)
        except (OSError, ValueError) as error:
            room = ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "PERMISSION_DENIED")  # of its storage
            if isinstance(error, ValueError) and not str(error).startswith(room):
                raise
            raise OSError(
                f"The checkpoints in {str(self._directory)!r} could not be written: {error}. Make "
                "room there; what was complete before stays."
            ) from error

    def _of_latest(self, read):
        """`read(step)` of the latest checkpoint, or None where there is none."""
        while (step := self.latest_step) is not None:
            try:
                return read(step)
            except (ValueError, FileNotFoundError):
                self._manager.reload()
                if step in self._manager.all_steps():
                    raise  # else the run that writes them has deleted it meanwhile
        return None

    def _about(self, step) -> dict:
        about = self._read(step, about=ocp.args.JsonRestore()).about
        if about.pop(_CHECKSUM, None) != _text_checksum(about):
            raise ValueError(self._damaged(step, "its description has changed"))
        if about.get("step", step) != step:
            raise ValueError(self._damaged(step, f"it is a copy of that of step {about['step']}"))
        return about

    def _read(self, step, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises whatever its storage raises
            raise ValueError(self._damaged(step, type(error).__name__)) from error

    def _damaged(self, step, why) -> str:
        others = [s for s in self._manager.all_steps() if s != step]
        then = f"go on from step {max(others)}" if others else "start again, no other one is left"
        path = str(self._directory / str(step))
        return f"The checkpoint {path!r} is damaged ({why}). Remove that directory to {then}."

    def _refuse_other_config(self) -> None:
        ours, theirs = self._config, self._of_latest(lambda step: self._about(step)["config"])
        if theirs is None or ours is None or theirs == ours:
            self._config = theirs if ours is None else ours
            return
        self._manager.close()
        names = sorted(ours.keys() | theirs.keys())
        name = next(name for name in names if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"directory is {str(self._directory)!r}, whose checkpoints were made with "
            f"{name} = {theirs.get(name)!r}; here {name} = {ours.get(name)!r}. Use the same "
            "configuration to go on with that run, or another directory to start a new one."
        )


def _arrays(state, part="") -> dict:
    """What Orbax stores: the leaves by name, keys as their data, empty arrays left out."""
    leaves = _named(state, part)
    plain = [
        (name, jax.random.key_data(leaf) if _trees.is_key(leaf) else leaf) for name, leaf in leaves
    ]
    return {name: jnp.asarray(leaf) for name, leaf in plain if jnp.size(leaf)}


def _stored_names(leaves: dict) -> list:
    """The leaves that `_arrays` keeps, sorted: a type such as float32[0,3] holds nothing."""
    return sorted(
        n for n, kind in leaves.items() if "0" not in kind.partition("[")[2][:-1].split(",")
    )


@jax.jit
def _checksums(arrays: dict):
    """`uint32[leaves]`, in the order of the sorted names: any change of one bit changes its own."""
    sums = [_checksum(arrays[name]) for name in sorted(arrays)]
    return jnp.stack(sums or [jnp.zeros((), jnp.uint32)])


def _checksum(array):
    if jnp.iscomplexobj(array):
        array = jnp.stack([array.real, array.imag])
    if array.dtype == bool or array.dtype.name in ("int2", "uint2", "int4", "uint4"):
        array = array.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    bits = lax.bitcast_convert_type(array, word)
    words = bits.reshape(-1).astype(jnp.uint32)
    # Each step can be undone, so that two words never come out equal at one place.
    words = (words ^ (lax.iota(jnp.uint32, words.size) * np.uint32(0x9E3779B1))) * np.uint32(
        0x85EBCA6B
    )
    words = (words ^ (words >> 15)) * np.uint32(0xC2B2AE35)
    return jnp.sum(words ^ (words >> 13), dtype=jnp.uint32)


def _text_checksum(about: dict) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _named(state, part="") -> list:
    return [(part + name, leaf) for name, leaf in _trees.named_leaves(state)]


def _is_under(part, name) -> bool:
    follows = name[len(part) :][:1]
    return not part or (name.startswith(part) and follows in ("", ".", "["))


def _describe(state, part="") -> dict:
    """`{name: "float32[3,4]"}` for every leaf."""
    return {name: _typename(leaf) for name, leaf in _named(state, part)}


def _typename(leaf) -> str:
    return f"{jnp.asarray(leaf).dtype}[{','.join(map(str, jnp.shape(leaf)))}]"


def _rebuild(like, arrays: dict, part):
    """The tree of `like` with the stored leaves."""

    def restore(name, leaf):
        if not jnp.size(leaf):
            return jnp.asarray(leaf)
        if _trees.is_key(leaf):
            return jax.random.wrap_key_data(arrays[name], impl=jax.random.key_impl(leaf))
        return arrays[name]

    leaves = [restore(name, leaf) for name, leaf in _named(like, part)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _abstract(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _compare(path, stored: dict, wanted: dict) -> None:
    for name in list(wanted) + [name for name in stored if name not in wanted]:
        there, here = stored.get(name, "nothing"), wanted.get(name, "nothing")
        if there != here:
            raise ValueError(
                f"The checkpoint {str(path)!r} does not fit the state: it holds {there} at "
                f"{name or 'the root'}, where the state has {here}."
            )


def _as_json(**named):
    """The value as it comes back from JSON, so that what is stored can be compared."""
    for name, value in named.items():
        try:
            return json.loads(json.dumps(value))
        except TypeError as error:
            raise ValueError(
                f"{name} is {value!r}; it must be a dict that JSON can hold."
            ) from error
