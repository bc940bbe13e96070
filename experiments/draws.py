"""Fills a log of counts, on all devices of the machine, whatever part of it is there already."""

import functools
import zlib

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lipjax.smoothing.log import CountLog, stored_header

_STREAM = zlib.crc32(b"certification")  # far from the keys of training, made of the same seed


def certification_key(seed: int, index, stage):
    """The key of the samples of an example; no key of training, nor of a network's first weights.

    `split(key, n)[i]` is `fold_in(key, i)`: without a number of its own, the keys of the examples are
    those that a training with the same seed splits off.
    """
    key = jax.random.fold_in(jax.random.key(seed), _STREAM)
    return jax.random.fold_in(jax.random.fold_in(key, index), stage)


def law(noise, seed: int) -> dict:
    """For the header of a log: what is drawn, and from what kind of key."""
    return {"noise": repr(noise), "keys": str(jax.random.key_impl(jax.random.key(seed)))}


def opened(path, chosen, stages, *, header: dict, width: int, sample: bool = True) -> CountLog:
    """A log to fill where it lacks something (if asked to sample), or else only to read."""
    if path.exists() and stored_header(path) is not None:
        log = CountLog(path, header=header, width=width, read_only=True)
        chosen = np.asarray(chosen).tolist()
        if not sample or all(log.done(i, stage) >= n for stage, n in stages for i in chosen):
            return log
        log.close()
    return CountLog(path, header=header, width=width, read_only=not sample)


def sample_missing(log: CountLog, chosen, example, stages, *, batch_size: int, draw) -> None:
    """Adds to the log what it lacks, one batch of noisy copies a record, one example a device.

    Args:
        log: Open, with as many numbers in a record as `draw` returns.
        chosen: Numbers of the examples.
        example: `index -> example`, a pytree of NumPy arrays of the same shapes for all.
        stages: Pairs of a stage and the number of its samples.
        batch_size: Noisy copies in a record; the last one of a stage may have fewer.
        draw: `(index, stage, start, example, count) -> int32[width]`, the sums over the samples
            `start` to `start + count`; `count` is a Python number, the others may be traced.
    """
    from rich.progress import track

    for stage, wanted in stages:
        for i in np.asarray(chosen).tolist():
            if log.done(i, stage) > wanted:
                raise ValueError(
                    f"{wanted} samples are asked for and the log has {log.done(i, stage)} of example "
                    f"{i}; a part of what was counted cannot be taken: ask for as many."
                )
    devices = jax.local_devices()
    mesh = jax.make_mesh(
        (len(devices),), ("examples",), devices=devices, axis_types=(AxisType.Auto,)
    )

    @functools.partial(jax.jit, static_argnames="count")
    def on_all(numbers, examples, count):
        def one(numbers, examples):
            index, stage, start = numbers[0]
            found = draw(index, stage, start, jax.tree.map(lambda a: a[0], examples), count)
            return found[None]

        specs = dict(in_specs=P("examples"), out_specs=P("examples"), check_vma=False)
        return jax.shard_map(one, mesh=mesh, **specs)(numbers, examples)

    for count, rows in _rows(log, chosen, stages, batch_size, len(devices)):
        for row in track(rows, description=f"sampling {count} at a time", transient=True):
            full = row + [row[-1]] * (len(devices) - len(row))  # no device stays without an example
            examples = jax.tree.map(lambda *a: np.stack(a), *[example(i) for i, _, _ in full])
            sums = np.asarray(on_all(np.array(full, np.int32), examples, count=count))
            for (index, stage, start), values in zip(row, sums):
                log.add(index, stage, start, start + count, values)


def _rows(log, chosen, stages, batch_size, width):
    """What is missing, by the size of the records, in rows of one record a device."""
    missing = {}
    for stage, wanted in stages:
        for index in np.asarray(chosen).tolist():
            for start in range(log.done(index, stage), wanted, batch_size):
                count = min(batch_size, wanted - start)
                missing.setdefault(count, []).append((index, stage, start))
    for count, records in sorted(missing.items(), reverse=True):
        # The shorter ones at the end of a stage come after the others, as a log demands.
        yield count, [records[i : i + width] for i in range(0, len(records), width)]
