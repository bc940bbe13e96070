"""Train a classifier on images: the whole loop, made to be copied and changed.

The result is a function of the arguments alone, and the same for every `mesh` up to rounding. Neither
`chunk` nor where the run was killed and resumed changes a bit of the parameters, of the optimizer or
of the metrics. (The tests check that on CPUs; on GPUs XLA promises it with
XLA_FLAGS=--xla_gpu_deterministic_ops=true.)

What keeps it fast: the images move to the device once, as bytes, and a step gathers its batch
there; the host talks to the device once a chunk of steps; and the state crosses the border of the
jitted step as a flat list of arrays, which costs a tenth of what a Flax module costs. With a mesh,
every device computes its part of each batch; parameters and data lie on all of them.
"""

import contextlib
import fcntl
import functools
import json
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.output import write
from lipjax import _checks
from lipjax.data import batch_indices, to_unit
from lipjax.training import JsonLines, TrainState, init_state, make_update, progress, watch_signals
from lipjax.training.checkpoint import Checkpoints

PATIENCE = 20
"""Steps in a row without a finite loss and gradient after which the run gives up."""

_STREAM = zlib.crc32(b"steps")  # far from the keys that `split` makes of the same seed


class Batch(NamedTuple):
    """What `loss_fn` sees.

    Attributes:
        images: `float32[b, h, w, c]` in [0, 1], augmented.
        labels: `int32[b]`.
        progress: `float32[]`, the share of the steps that are done.
    """

    images: jax.Array
    labels: jax.Array
    progress: jax.Array | float = 1.0


def train(
    params,
    loss_fn,
    split,
    *,
    max_value,
    optimizer,
    num_steps,
    batch_size,
    seed,
    run_dir,
    constrain=None,
    augment=None,
    num_microbatches=1,
    mesh=None,
    config=None,
    description=None,
    resume=True,
    checkpoint_every=1000,
    keep=2,
    log_every=50,
    chunk=50,
) -> TrainState:
    """The state after `num_steps` steps.

    Args:
        params: Any pytree of floating arrays, in practice a Flax module.
        loss_fn: `(weights, Batch, key) -> (loss, metrics)`, see `lipjax.training.make_step`.
        split: `lipjax.data.Split`, the training images as bytes and their labels.
        max_value: The pixel value that means 1.
        optimizer: An optax optimizer.
        num_steps: Length of the whole run.
        batch_size: Examples a step.
        seed: Of the data order, the augmentation and the loss.
        run_dir: Where `metrics.jsonl` and `checkpoints/` go.
        constrain: `params -> weights`, evaluated once a step.
        augment: `(key, image) -> image` for one float image in [0, 1].
        num_microbatches: Parts of the batch that are computed one after the other.
        mesh: Devices, along one axis, that compute parts of every batch; None for the default device.
            A run may go on with another mesh.
        config: What else defines the run, a dict that JSON can hold. Together with the data and
            the arguments above it is stored in the checkpoints and compared on resuming.
        description: A dict that is written to `run_dir/config.json` before the first step.
        resume: Whether to go on with the run that `run_dir` holds; if not, finding one is an error.
        checkpoint_every: Steps from one checkpoint to the next; the last step is always saved.
        keep: Checkpoints to keep.
        log_every: Steps that are averaged into one line of `metrics.jsonl`. A line has the means
            over the steps that were finite, and `skipped`, the number of the others.
        chunk: Steps whose indices are sent, and whose metrics are fetched, together.

    Raises:
        ValueError: An argument is wrong, or `run_dir` holds another run or is in use.
        FloatingPointError: No finite loss and gradient in `PATIENCE` steps in a row.
        SystemExit: SIGTERM or Ctrl-C came; the state is saved, and the same call goes on from it.
    """
    _check_split(split, batch_size)
    _checks.integer(1, num_steps=num_steps, log_every=log_every, chunk=chunk)
    _checks.integer(1, num_microbatches=num_microbatches)
    _check_mesh(mesh, batch_size, num_microbatches)
    everywhere, of_rows = _shardings(mesh)
    # On CPUs a collective holds a thread for every device, and steps in a queue wait for each other's.
    in_turn = mesh is not None and mesh.devices.flat[0].platform == "cpu"
    run_dir = Path(run_dir)
    config = (config or {}) | {
        "num_steps": num_steps,
        "batch_size": batch_size,
        "seed": seed,
        "num_microbatches": num_microbatches,
        "log_every": log_every,
        "max_value": max_value,
        "data_checksum": _checksum(split),
    }
    key = jax.random.fold_in(jax.random.key(seed), _STREAM)
    state = jax.device_put(init_state(key, params, optimizer), everywhere)
    treedef = jax.tree.structure(state)
    data = jax.device_put((split.images, np.asarray(split.labels, np.int32)), everywhere)

    def batch_loss(data, done, weights, indices, key):
        all_images, all_labels = data
        augment_key, loss_key = jax.random.split(key)
        images = to_unit(all_images[indices], max_value)
        if augment is not None:
            images = jax.vmap(augment)(jax.random.split(augment_key, len(indices)), images)
        return loss_fn(weights, Batch(images, all_labels[indices], done), loss_key)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
    def take_step(leaves, data, rows, first):
        state = jax.tree.unflatten(treedef, leaves)
        done = state.step.astype(np.float32) / np.float32(num_steps)
        loss = functools.partial(batch_loss, data, done)
        update = make_update(
            loss, optimizer, constrain=constrain, num_microbatches=num_microbatches
        )
        state, metrics = update(state, rows[state.step - first])
        return jax.tree.leaves(state), metrics

    def rows_from(step):
        sizes = {"num_examples": len(split.labels), "batch_size": batch_size}
        rows = [batch_indices(seed, t, **sizes) for t in range(step, step + chunk)]
        rows = jax.device_put(np.stack(rows).astype(np.int32), of_rows)
        return rows, jax.device_put(np.int32(step), everywhere)

    jax.eval_shape(take_step, jax.tree.leaves(state), data, *rows_from(0))  # errors, before a file

    with (
        _alone(run_dir),
        Checkpoints(
            run_dir / "checkpoints", every=checkpoint_every, keep=keep, config=config
        ) as checkpoints,
    ):
        if checkpoints.latest_step is not None and not resume:
            raise ValueError(
                f"run_dir is {str(run_dir)!r} and holds a run at step {checkpoints.latest_step}; "
                "pass resume=True to go on with it, or name another directory."
            )
        if description is not None:
            write(run_dir / "config.json", (json.dumps(description, indent=1) + "\n").encode())
        state, meta = checkpoints.restore_latest(state) or (state, {"window": [], "stuck": 0})
        step, window, stuck = int(state.step), meta["window"], meta["stuck"]
        # window: the steps since the last line; stuck: the last ones in a row that were not finite
        leaves = jax.tree.leaves(state)
        bar = progress(num_steps, step, unit="images", per_step=batch_size)
        lines = JsonLines(run_dir / "metrics.jsonl", last_step=step)
        with lines, bar as report, watch_signals() as watch:
            rows = rows_from(step)
            while step < num_steps and watch.received is None:
                stop = min(step + chunk, _next_multiple(step, checkpoint_every), num_steps)
                taken = []
                for _ in range(step, stop):
                    leaves, metrics = take_step(leaves, data, *rows)
                    taken.append(metrics)
                    if in_turn:
                        jax.block_until_ready(leaves)
                step, rows = stop, rows_from(stop)  # the device is still at work
                taken = [{k: float(v) for k, v in m.items()} for m in jax.device_get(taken)]
                window = _write_lines(lines, window + taken, step, log_every, num_steps)
                report(step, loss=taken[-1]["loss"])
                stuck = _count_stuck(stuck, taken, step)
                meta = {"window": window, "stuck": stuck}
                checkpoints.save(step, jax.tree.unflatten(treedef, leaves), meta)
            state = jax.tree.unflatten(treedef, leaves)
            checkpoints.save(step, state, {"window": window, "stuck": stuck}, force=True)
            checkpoints.wait()
            if watch.received is not None:
                print(f"stopped at step {step}; saved in {run_dir}", file=sys.stderr)
                watch.exit()
    return state


@contextlib.contextmanager
def _alone(run_dir):
    """Holds a lock on the directory; the system lets go of it when the process ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"run_dir is {str(run_dir)!r}, where another process is training; wait for it, or "
                "name another directory."
            ) from None
        yield


def _write_lines(lines, window, step, log_every, num_steps):
    """Writes a line for every full window, and for the rest at the end; returns what is left."""
    while len(window) >= log_every or (window and step == num_steps):
        part, window = window[:log_every], window[log_every:]
        finite = [row for row in part if row["finite"]]
        names = [name for name in part[0] if name != "finite"]
        means = {name: np.mean([row[name] for row in finite]) for name in names if finite}
        skipped = len(part) - len(finite)
        lines.write(step - len(window), **means, skipped=skipped)
    return window


def _count_stuck(stuck, taken, step):
    for row in taken:
        stuck = 0 if row["finite"] else stuck + 1
        if stuck >= PATIENCE:
            raise FloatingPointError(
                f"No finite loss and gradient in {PATIENCE} steps up to step {step}; lower the "
                "learning rate, or look for NaN in the data and the weights."
            )
    return stuck


def _next_multiple(step, every):
    return (step // every + 1) * every


def _checksum(split) -> int:
    labels = zlib.crc32(np.ascontiguousarray(split.labels))
    return zlib.crc32(np.ascontiguousarray(split.images), labels)


def _shardings(mesh):
    """Of what lies on every device, and of the indices `[chunk, batch]`."""
    if mesh is None:
        return None, None
    (axis,) = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, axis))


def _check_mesh(mesh, batch_size, num_microbatches):
    if mesh is None:
        return
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh has the axes {mesh.axis_names}; it must have one.")
    if batch_size % (mesh.size * num_microbatches):
        raise ValueError(
            f"mesh has {mesh.size} devices, batch_size is {batch_size} and num_microbatches is "
            f"{num_microbatches}; the product of the first and the last must divide batch_size."
        )


def _check_split(split, batch_size):
    _checks.ranked(4, "[n, h, w, c]", images=split.images)
    _checks.nonempty(images=split.images)
    _checks.axis_size(0, len(split.images), "the number of images", labels=split.labels)
    _checks.integer(1, batch_size=batch_size)
    if split.images.dtype != np.uint8:
        raise ValueError(f"images has dtype {split.images.dtype}; it must be uint8.")
