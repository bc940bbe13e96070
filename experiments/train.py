"""Train a network: `python -m experiments.train CONFIG [field=value ...]`.

CONFIG is the name of a file in `experiments/configs`; `field=value` changes one of its fields, such
as `epochs=3` or `model.layer=cpl`. Two more options, `--data-dir DIR` (default: LIPJAX_DATA) and
`--run-dir DIR` (default: runs/CONFIG). The same command goes on with a run that was stopped.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from experiments import config as configs
from experiments._memory import keep_freed_memory


def main(arguments=None) -> Path:
    """Trains and returns the run directory."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train",
        usage="%(prog)s CONFIG [field=value ...] [--data-dir DIR] [--run-dir DIR]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="configs: " + ", ".join(configs.names()),
    )
    parser.add_argument("words", metavar="CONFIG [field=value ...]", nargs="*")
    parser.add_argument("--data-dir")
    parser.add_argument("--run-dir", type=Path)
    args = parser.parse_intermixed_args(arguments)
    if not args.words:
        parser.error(f"CONFIG is missing; it must be one of {configs.names()}")
    name, *assignments = args.words
    try:
        config = configs.override(configs.load(name), assignments)
        return train(config, args.run_dir or Path("runs") / name, args.data_dir)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")


def train(config: configs.RunConfig, run_dir: Path, data_dir=None) -> Path:
    """Trains the network of a config into a run directory."""
    import jax

    from experiments import setup
    from experiments.loops import supervised
    from lipjax.data import num_steps

    started = time.time()
    data = setup.dataset(config, data_dir)
    for note in data.notes:
        print(f"note: {note}")
    steps = num_steps(len(data.train.labels), config.batch_size, config.epochs)
    if steps >= 2**31:
        raise ValueError(
            f"epochs is {config.epochs} and batch_size {config.batch_size}: {steps} steps; there "
            "must be fewer than 2^31."
        )
    model, mesh = setup.network(config), setup.mesh(config)
    devices = jax.local_device_count()
    if devices > 1 and mesh is None:
        print(
            f"note: one of {devices} devices trains; for all of them batch_size, {config.batch_size}, "
            f"must be a multiple of {devices * config.num_microbatches}"
        )
    stored = configs.to_dict(config)
    options = dict(
        max_value=data.max_value,
        optimizer=setup.optimizer(config, steps),
        num_steps=steps,
        batch_size=config.batch_size,
        seed=config.seed,
        run_dir=run_dir,
        constrain=setup.constraint(mesh),
        augment=setup.augmentation(config),
        num_microbatches=config.num_microbatches,
        mesh=mesh,
        config={name: value for name, value in stored.items() if name not in configs.MEASURED},
        description=stored,
        checkpoint_every=config.checkpoint_every,
        log_every=min(50, steps),
    )
    place = next(path for path in (Path(run_dir), *Path(run_dir).parents) if path.exists())
    if not place.is_dir():
        raise ValueError(
            f"--run-dir is {str(run_dir)!r}, but {str(place)!r} is a file; it must be a directory "
            "or a place for one."
        )
    state = supervised.train(model, setup.loss(config), data.train, **options)
    skipped = steps_skipped(run_dir)
    if skipped:
        print(f"note: {skipped} steps were skipped, whose loss or gradient was not finite")
    print(
        f"trained to step {int(state.step)}, {config.batch_size} images a step, in "
        f"{time.time() - started:.0f} s\n"
        f"  parameters and optimizer  {run_dir}/checkpoints\n"
        f"  loss and accuracy         {run_dir}/metrics.jsonl\n"
        f"next: python -m experiments.certify {run_dir}"
    )
    return Path(run_dir)


def steps_skipped(run_dir: Path) -> int:
    """How many steps of a run had no finite loss and gradient."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["skipped"] for line in lines)


if __name__ == "__main__":
    keep_freed_memory()
    main()
