"""Fills a log of counts, on all devices of the machine, whatever part of it is there already."""

import functools

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lipjax.smoothing.log import CountLog


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
