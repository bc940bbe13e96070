"""Spectral regularization: a penalty on the norms of the layers of an ordinary ResNet.

command: python -m experiments.regularize --data-dir DIR [--weight 0.01] [--out FILE]

time:    216 s on 2 CPU cores (Fashion-MNIST, 468 steps each)
result:  without the penalty 88.8 % and a product bound of 6.6e7, with it 88.6 % and 3.4e5; a step
         takes 0.128 and 0.167 s

Trains the same narrow ResNet-18 twice, from the same initial weights on the same batches: with the
cross-entropy alone, and with `weight` times `lipjax.spectral.penalty` of the network's bounds added.
Prints the accuracy on the test split, the product bound of the network in evaluation (batch
normalization folded in) and the time of a step, and writes them as JSON.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments._memory import keep_freed_memory
from lipjax import _checks, selfcheck
from lipjax.data import NAMES, Dataset, batch_indices, load, to_unit
from lipjax.spectral import network_bound, penalty


class Result(NamedTuple):
    """What one training came to.

    Attributes:
        weight: Of the penalty.
        accuracy: On the test split.
        bound: Upper bound on the Lipschitz constant of the network in evaluation.
        largest_layer: The largest bound of one of its convolutions and matrices.
        seconds_per_step: Median.
    """

    weight: float
    accuracy: float
    bound: float
    largest_layer: float
    seconds_per_step: float


class Block(nnx.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels_in, channels_out, stride, rngs):
        options = dict(use_bias=False, rngs=rngs)
        self.first = nnx.Conv(channels_in, channels_out, (3, 3), stride, **options)
        self.second = nnx.Conv(channels_out, channels_out, (3, 3), **options)
        self.norms = nnx.List(
            [nnx.BatchNorm(channels_out, momentum=0.9, rngs=rngs) for _ in range(3)]
        )
        same = stride == 1 and channels_in == channels_out
        self.short = (
            None if same else nnx.Conv(channels_in, channels_out, (1, 1), stride, **options)
        )

    def __call__(self, x):
        y = jax.nn.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        return jax.nn.relu(y + (x if self.short is None else self.norms[2](self.short(x))))


class ResNet(nnx.Module):
    """A ResNet of basic blocks for small images; two blocks in four stages is ResNet-18."""

    def __init__(self, width, num_classes, channels, rngs, *, stages=4, blocks=2):
        self.stem = nnx.Conv(channels, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        body, inputs = [], width
        for stage in range(stages):
            for block in range(blocks):
                outputs = width * 2**stage
                body.append(Block(inputs, outputs, 1 + (stage > 0 and block == 0), rngs))
                inputs = outputs
        self.body = nnx.List(body)
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.stem(x)))
        for block in self.body:
            x = block(x)
        return self.head(x.mean((1, 2)))


def main(arguments=None) -> list[Result]:
    """Trains both and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.regularize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--weight", type=float, default=0.01)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=468)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    try:
        _checks.integer(1, width=args.width, stages=args.stages, blocks=args.blocks)
        _checks.integer(1, steps=args.steps, batch_size=args.batch_size)
        _checks.within(0.0, 1e6, weight=args.weight)
        _checks.positive(learning_rate=args.learning_rate)
        if args.out and not args.out.parent.is_dir():
            raise ValueError(f"out is {str(args.out)!r}, in a directory that does not exist.")
        _checks.one_of(NAMES, data=args.data)
        data = load(args.data, data_dir=args.data_dir)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    results = [train(data, args, weight) for weight in (0.0, args.weight)]
    print(f"{'penalty':>8} {'accuracy':>9} {'bound':>10} {'largest layer':>14} {'s a step':>9}")
    for r in results:
        print(
            f"{r.weight:8g} {100 * r.accuracy:8.2f}% {r.bound:10.4g} {r.largest_layer:14.3g} "
            f"{r.seconds_per_step:9.3f}"
        )
    if args.out:
        report = {
            "results": [r._asdict() for r in results],
            "settings": {k: str(v) for k, v in vars(args).items() if k not in ("out", "data_dir")},
            "platform": selfcheck.describe_platform(),
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return results


def train(data: Dataset, args, weight: float) -> Result:
    """One training, measured."""
    height, width, channels = data.train.images.shape[1:]
    model = ResNet(
        args.width,
        data.num_classes,
        channels,
        nnx.Rngs(args.seed),
        stages=args.stages,
        blocks=args.blocks,
    )
    graph, params, stats = nnx.split(model, nnx.Param, ...)
    schedule = optax.cosine_decay_schedule(args.learning_rate, args.steps)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)

    def bounds(params, stats, num_iters):
        model = nnx.merge(graph, params, stats, copy=True)
        model.eval()
        return network_bound(lambda x: model(x), image, num_iters=num_iters)

    def loss_fn(params, stats, images, labels):
        model = nnx.merge(graph, params, stats, copy=True)
        model.train()
        logits = model(to_unit(images, data.max_value))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        if weight:
            loss = loss + weight * penalty(bounds(params, stats, num_iters=3))
        return loss, nnx.split(model, nnx.Param, ...)[2]

    @jax.jit
    def step(params, stats, state, images, labels):
        gradient, stats = jax.grad(loss_fn, has_aux=True)(params, stats, images, labels)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), stats, state

    @jax.jit
    def predict(params, stats, images):
        model = nnx.merge(graph, params, stats, copy=True)
        model.eval()
        return jnp.argmax(model(to_unit(images, data.max_value)), -1)

    state, seconds = optimizer.init(params), []
    for t in range(args.steps):
        rows = batch_indices(
            args.seed, t, num_examples=len(data.train.labels), batch_size=args.batch_size
        )
        images, labels = data.train.images[rows], data.train.labels[rows].astype(np.int32)
        start = time.perf_counter()
        params, stats, state = jax.block_until_ready(step(params, stats, state, images, labels))
        seconds.append(time.perf_counter() - start)
        if t % 50 == 49:
            print(f"penalty {weight:g}: step {t + 1}/{args.steps}", file=sys.stderr)
    size = min(500, len(data.test.labels))
    parts = range(0, len(data.test.labels) // size * size, size)
    hits = [
        np.mean(
            predict(params, stats, data.test.images[i : i + size]) == data.test.labels[i : i + size]
        )
        for i in parts
    ]
    found = jax.jit(bounds, static_argnums=2)(params, stats, 8)
    linear = [float(row.bound) for row in found.layers if row.kind in ("conv", "dense")]
    return Result(
        weight, float(np.mean(hits)), float(found.value), max(linear), statistics.median(seconds)
    )


if __name__ == "__main__":
    keep_freed_memory()
    main()
