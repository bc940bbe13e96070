"""Sums in another order on CPUs: gradients of convolutions for their kernels, and random words.

command: python -m experiments.benchmarks.reordered [--out FILE] [--rounds 7]

Ours and what XLA or JAX has, in turn in one process, medians over the rounds, and the temporary memory
of the programs: one convolution of 3 x 3 on 32 images of 32 x 32 pixels, its gradient for the kernel, a
training step of four layers (as in `experiments.benchmarks.layers`), and the random words of a noisy
batch of 1000 images of 28 x 28 pixels. Writes JSON.
"""

import argparse
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.random import threefry_2x32

from experiments._memory import keep_freed_memory
from experiments.benchmarks import layers
from experiments.output import write
from lipjax import nn, selfcheck
from lipjax.layers import _convolution, _split
from lipjax.smoothing import noise

STACKS = ("SLL, as many hidden channels", "AOL", "SOC", "normalized", "block", "rescaled")


def main(arguments=None) -> dict:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=layers.IMAGES)
    parser.add_argument("--stacks", nargs="*", default=STACKS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    rows = [convolution(channels, args.images, args.rounds) for channels in (45, 128)]
    rows += [step(name, args.images, args.rounds) for name in args.stacks]
    rows.append(words(args.rounds))
    for row in rows:
        print(row["what"])
        for name, seconds in row["seconds"].items():
            memory = row["temporary_bytes"][name] / 2**20
            print(f"  {name:<24}{1e3 * seconds:9.2f} ms  {memory:6.1f} MiB")
    report = {
        "platform": selfcheck.describe_platform(),
        "cpus": os.cpu_count(),
        "images": args.images,
        "rows": rows,
    }
    if args.out:
        write(args.out, (json.dumps(report, indent=1) + "\n").encode())
    return report


def convolution(channels: int, images: int, rounds: int) -> dict:
    """The convolution, and its gradient for the kernel in both orders."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, g = (jax.random.normal(k, (images, *layers.IMAGE, channels)) for k in keys[:2])
    kernel = jax.random.normal(keys[2], (3, 3, channels, channels))

    def gradient(convolve):
        return jax.jit(lambda x, g: jax.vjp(lambda k: convolve(x, k), kernel)[1](g)[0])

    programs = {
        "the convolution": jax.jit(lambda x, g: _convolution.convolve(x, kernel)),
        "gradient, XLA": gradient(lambda x, k: _convolution._convolved(x, k, "zero", 1)),
        "gradient, lipjax": gradient(_convolution.convolve),
    }
    return _measured(f"convolution of {channels} channels", programs, (x, g), rounds)


def step(name: str, images: int, rounds: int) -> dict:
    """A training step of four layers, with and without the other order."""
    residual = name in layers.RESIDUAL
    shape = (images, *layers.IMAGE, layers.CHANNELS if residual else layers.EVEN)
    between = None if residual else "max_min"
    module = nn.Stack(layers.CONV[name], layers.DEPTH, between=between, rngs=nnx.Rngs(0))
    args = module, jax.random.normal(jax.random.key(0), shape)

    def program():
        found = jax.jit(jax.grad(lambda module, x: jnp.mean(jnp.square(module(x)))))
        return found.lower(*args).compile()

    pays, programs = _split.pays, {"lipjax": program()}
    _split.pays = lambda x, kernel: False
    programs["gradients by XLA"] = program()
    _split.pays = pays
    return _measured(f"four layers, {name}", programs, args, rounds)


def words(rounds: int) -> dict:
    """784 random words for each of 1000 keys."""
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 1000))
    count = jnp.arange(784, dtype=jnp.uint32)
    programs = {
        "JAX": jax.jit(jax.vmap(lambda k: threefry_2x32(k, count))),
        "lipjax": jax.jit(jax.vmap(lambda k: noise._threefry(k, 784))),
    }
    return _measured("784,000 random words", programs, (keys,), rounds)


def _measured(what, programs, args, rounds) -> dict:
    compiled = {
        n: p.lower(*args).compile() if hasattr(p, "lower") else p for n, p in programs.items()
    }
    steps = {n: lambda p=p: jax.block_until_ready(p(*args)) for n, p in compiled.items()}
    memory = {n: p.memory_analysis().temp_size_in_bytes for n, p in compiled.items()}
    return {"what": what, "seconds": layers._timed(steps, rounds), "temporary_bytes": memory}


if __name__ == "__main__":
    keep_freed_memory()
    main()
