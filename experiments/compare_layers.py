"""Every kind of layer on one data set, each with the same computing time.

command: python -m experiments.compare_layers --out FILE --data-dir DIR [--cpu-minutes 5]
         [--best 4] [--seeds 3]

Two networks: the comparison study's, small, for the layers that have a convolution, and a dense one
for all that have matrices. A training ends when it has used its processor time, over all cores and
without compilation, and the triangular schedule follows the share that is used: what a step costs may
change on the way (Björck's iteration stops early near its start). The rest of the recipe is the same
for all: Adam, cross-entropy with offset and temperature. A part of the training split is held out. The
best by certified accuracy at 36/255 there are trained again with other seeds. Accuracies are certified
on the test split, with weights frozen in float64.

Rows are written as they come; the same command goes on after the last one. Ends with a table.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import certify, setup
from experiments._memory import keep_freed_memory
from experiments.config import RunConfig
from experiments.loops import supervised
from experiments.output import write
from lipjax import _checks, margin, nn, selfcheck
from lipjax.data import NAMES, Dataset, batch_indices, load, to_unit
from lipjax.models import ConvNetConfig, StudyNetConfig
from lipjax.models.convnet import CONVOLUTIONAL, LAYERS
from lipjax.training import init_state, make_update, triangular

RADII = (36 / 255, 72 / 255, 108 / 255, 1.0)
POINTS = 1000
"""Points of the schedule, over the budget of processor time."""


def main(arguments=None) -> list[dict]:
    """Trains what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare_layers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--cpu-minutes", type=float, default=5.0)
    parser.add_argument("--best", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS))
    parser.add_argument("--nets", nargs="+", default=["conv", "dense"])
    args = parser.parse_args(arguments)
    try:
        _check(args)
        return _run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _check(args):
    _checks.one_of(NAMES, data=args.data)
    _checks.positive(cpu_minutes=args.cpu_minutes, learning_rate=args.learning_rate)
    _checks.integer(0, best=args.best)
    _checks.integer(1, seeds=args.seeds, batch_size=args.batch_size)
    for layer in args.layers:
        _checks.one_of(LAYERS, layers=layer)
    for net in args.nets:
        _checks.one_of(("conv", "dense"), nets=net)
    if not args.out.parent.is_dir():
        raise ValueError(f"out is {str(args.out)!r}, in a directory that does not exist.")


def _run(args) -> list[dict]:
    settings = {
        name: getattr(args, name) for name in ("data", "cpu_minutes", "batch_size", "learning_rate")
    }
    report = {"settings": settings, "cpus": cores(), "rows": []}
    if args.out.exists():
        report = json.loads(args.out.read_text())
        if report["settings"] != settings:
            raise ValueError(
                f"out is {str(args.out)!r}, which holds rows made with {report['settings']}, not "
                f"{settings}; name another file."
            )
    report["platform"] = selfcheck.describe_platform()
    data = load(args.data, data_dir=args.data_dir)

    def add(layer, net, seed):
        made = {(row["layer"], row["net"], row["seed"]) for row in report["rows"]}
        if (layer, net, seed) not in made:
            report["rows"].append(train(run_config(args, data, layer, net, seed), net, args))
            write(args.out, (json.dumps(report, indent=1) + "\n").encode())

    for net in args.nets:
        for layer in args.layers:
            if net == "dense" or layer in CONVOLUTIONAL:
                add(layer, net, 0)
    first = [row for row in report["rows"] if row["seed"] == 0]
    best = sorted(first, key=lambda row: -row["validation"][1])[: args.best]
    for row in best:
        for seed in range(1, args.seeds):
            add(row["layer"], row["net"], seed)
    print(table(report["rows"]))
    return report["rows"]


def run_config(args, data: Dataset, layer: str, net: str, seed: int) -> RunConfig:
    """What is trained; networks are chosen so that a step of each kind takes well below a second."""
    height, width, channels = data.train.images.shape[1:]
    mean = data.train.images.mean((0, 1, 2)) / data.max_value
    common = dict(
        layer=layer,
        image_shape=(height, width, channels),
        num_classes=data.num_classes,
        mean=tuple(np.round(mean, 3).tolist()),
    )
    if net == "conv":
        blocks = 3 if height < 16 else 5
        pad = -height % 2**blocks // 2
        model = StudyNetConfig(**common, width=16, blocks=blocks, block_depth=1, pad=pad)
    else:
        model = ConvNetConfig(
            **common, conv_depth=0, pool=2, dense_depth=6, dense_width=256, dense_hidden=256
        )
    return RunConfig(
        data=args.data,
        model=model,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        offset=2 * 2**0.5 * 36 / 255,
        temperature=0.25,
        hold_out=1 / 12,
        radii=RADII,
        seed=seed,
    )


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def train(config: RunConfig, net: str, args) -> dict:
    """One training within the budget, and its accuracies."""
    data = setup.dataset(config, args.data_dir)  # its test part is what is held out
    whole = setup.dataset(dataclasses.replace(config, hold_out=0.0), args.data_dir)
    b1, b2 = config.betas
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.0, b1=b1, b2=b2)
    loss = setup.loss(config)
    images, labels = jax.device_put((data.train.images, np.asarray(data.train.labels, np.int32)))

    def fresh():
        return init_state(jax.random.key(config.seed), setup.network(config), optimizer)

    def batch_loss(images, labels, weights, indices, key):
        batch = supervised.Batch(to_unit(images[indices], data.max_value), labels[indices])
        return loss(weights, batch, key)

    treedef = jax.tree.structure(jax.eval_shape(fresh))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(leaves, images, labels, indices, rate):
        state = jax.tree.unflatten(treedef, leaves)
        state.opt_state.hyperparams["learning_rate"] = rate
        on = functools.partial(batch_loss, images, labels)
        state, metrics = make_update(on, optimizer, constrain=nn.constrain)(state, indices)
        return jax.tree.leaves(state), metrics

    def take(leaves, t, rate):
        sizes = {"num_examples": len(data.train.labels), "batch_size": config.batch_size}
        indices = batch_indices(config.seed, t, **sizes).astype(np.int32)
        return step(leaves, images, labels, indices, np.float32(rate))

    leaves = jax.tree.leaves(fresh())
    jax.block_until_ready(take(leaves, 0, 0.0))  # compiles
    rates = np.asarray(triangular(config.learning_rate, POINTS)(jnp.arange(POINTS)))
    leaves = jax.block_until_ready(jax.tree.leaves(fresh()))
    budget, skipped, num_steps = 60 * args.cpu_minutes, 0.0, 0
    start, start_used = time.perf_counter(), time.process_time()
    while (used := time.process_time() - start_used) < budget:
        leaves, metrics = take(leaves, num_steps, rates[int(POINTS * used / budget)])
        skipped += 1 - float(metrics["finite"])  # waits for the step
        num_steps += 1
    jax.block_until_ready(leaves)
    elapsed, used = time.perf_counter() - start, time.process_time() - start_used
    model = nn.freeze(jax.tree.unflatten(treedef, leaves).params)
    row = {
        "layer": config.model.layer,
        "net": net,
        "seed": config.seed,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(fresh().params)),
        "steps": num_steps,
        "epochs": num_steps * config.batch_size / len(data.train.labels),
        "seconds": elapsed,
        "cpu_seconds": used,
        "steps_skipped": int(skipped),
        "bound": float(model.feature_bound().value),
        "validation": accuracies(config, model, data),
        "test": accuracies(config, model, whole),
    }
    print(
        f"{row['net']:<6} {row['layer']:<12} seed {row['seed']}  {row['epochs']:5.1f} epochs in "
        f"{elapsed:4.0f} s  test " + " ".join(f"{100 * a:5.1f}" for a in row["test"]),
        flush=True,
    )
    return row


def accuracies(config, model, data) -> list[float]:
    """Accuracy on `data.test`, clean and certified at `RADII`."""
    bound = model.feature_bound()
    error = certify.logit_error(model, data)
    with jax.default_matmul_precision("highest"):
        predictions, radii = certify.certificates(model, bound, error, data)
    correct = jnp.asarray(predictions == data.test.labels)
    certified = margin.certified_accuracy(radii, correct, np.float32(config.radii))
    return [float(jnp.mean(correct)), *map(float, certified)]


def table(rows) -> str:
    """Mean test accuracies in percent, best certified first; the spread is over the seeds."""
    groups = {}
    for row in rows:
        groups.setdefault((row["net"], row["layer"]), []).append(row)
    lines = [
        f"{'net':<6} {'layer':<12} {'seeds':>5} {'epochs':>7}   clean   36/255   72/255  108/255      1"
    ]
    tests = {key: np.array([row["test"] for row in group]) for key, group in groups.items()}
    for key in sorted(groups, key=lambda key: -tests[key][:, 1].mean()):
        means, spread = 100 * tests[key].mean(0), 100 * np.ptp(tests[key], 0)
        cells = [f"{m:5.1f}" + (f"±{s / 2:.1f}" if s else "    ") for m, s in zip(means, spread)]
        epochs = statistics.mean(row["epochs"] for row in groups[key])
        lines.append(
            f"{key[0]:<6} {key[1]:<12} {len(groups[key]):>5} {epochs:7.1f}  " + "".join(cells)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    keep_freed_memory()
    main()
