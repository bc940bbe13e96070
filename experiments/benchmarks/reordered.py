"""Fewer operations, or another order, on CPUs: convolutions under differentiation, and random words.

command: python -m experiments.benchmarks.reordered [--out FILE] [--rounds 7]

Ours and what XLA or JAX has, in turn in one process, medians over the rounds, and the temporary memory
of the programs: one convolution of 3 x 3 on 32 images of 32 x 32 pixels with its gradients for the
images and for the kernel (and PyTorch's, where it is installed), a training step of four layers (as in
`experiments.benchmarks.layers`), and the random words of a noisy batch of 1000 images of 28 x 28 pixels.
With it the error of the convolution, relative to float64 (root of the mean square). Writes JSON.
"""

import argparse
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.random import threefry_2x32

from experiments._memory import keep_freed_memory
from experiments.benchmarks import layers
from experiments.output import write
from lipjax import nn, selfcheck
from lipjax.layers import _convolution, _winograd
from lipjax.smoothing import noise

CHANNELS = (24, 48, 64, 96, 128)
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
    rows = [convolution(channels, args.images, args.rounds) for channels in CHANNELS]
    rows += [step(name, args.images, args.rounds) for name in args.stacks]
    rows.append(words(args.rounds))
    for row in rows:
        print(row["what"])
        for name, seconds in row["seconds"].items():
            memory = row["temporary_bytes"].get(name)
            kept = f"  {memory / 2**20:6.1f} MiB" if memory is not None else ""
            print(f"  {name:<24}{1e3 * seconds:9.2f} ms{kept}")
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
    """The convolution with both of its gradients, by tiles, as XLA's operations, and PyTorch's."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, g = (jax.random.normal(k, (images, *layers.IMAGE, channels)) for k in keys[:2])
    kernel = jax.random.normal(keys[2], (3, 3, channels, channels)) / (9 * channels) ** 0.5
    ways = {
        "lipjax": functools.partial(_winograd.convolved, padding="zero"),
        "XLA": functools.partial(_convolution._convolved, padding="zero"),
    }

    def gradients(convolve):
        @jax.jit
        def both(x, k, g):
            y, pull = jax.vjp(convolve, x, k)
            return y, pull(g)

        return both

    def forward(convolve):
        return jax.jit(lambda x, k, g: convolve(x, k))

    programs = {f"{n}, forward": forward(f) for n, f in ways.items()}
    programs |= {f"{n}, with gradients": gradients(f) for n, f in ways.items()}
    theirs = {}
    if layers._installed("torch"):
        theirs["PyTorch, with gradients"] = _torch_step(x, kernel, g)
    row = _measured(
        f"convolution of {channels} channels", programs, (x, kernel, g), rounds, theirs=theirs
    )
    with jax.enable_x64(True):
        exact = ways["XLA"](x.astype(jnp.float64), kernel.astype(jnp.float64))
    exact = np.asarray(exact)
    row["relative_error"] = {
        n: float(np.linalg.norm(np.asarray(f(x, kernel)) - exact) / np.linalg.norm(exact))
        for n, f in ways.items()
    }
    return row


def _torch_step(x, kernel, g):
    import torch

    x, g = (torch.from_numpy(np.array(a)).permute(0, 3, 1, 2) for a in (x, g))
    conv = torch.nn.Conv2d(*kernel.shape[2:], 3, padding=1, bias=False)
    conv, x = conv.to(memory_format=torch.channels_last), x.requires_grad_()
    return lambda: torch.autograd.grad(conv(x), (x, conv.weight), g)


def step(name: str, images: int, rounds: int) -> dict:
    """A training step of four layers, with and without the tiles."""
    residual = name in layers.RESIDUAL
    shape = (images, *layers.IMAGE, layers.CHANNELS if residual else layers.EVEN)
    between = None if residual else "max_min"
    module = nn.Stack(layers.CONV[name], layers.DEPTH, between=between, rngs=nnx.Rngs(0))
    args = module, jax.random.normal(jax.random.key(0), shape)

    def program():
        found = jax.jit(jax.grad(lambda module, x: jnp.mean(jnp.square(module(x)))))
        return found.lower(*args).compile()

    pays, programs = _winograd.pays, {"lipjax": program()}
    _winograd.pays = lambda x, kernel: False
    programs["convolutions by XLA"] = program()
    _winograd.pays = pays
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


def _measured(what, programs, args, rounds, theirs=None) -> dict:
    compiled = {
        n: p.lower(*args).compile() if hasattr(p, "lower") else p for n, p in programs.items()
    }
    steps = {n: lambda p=p: jax.block_until_ready(p(*args)) for n, p in compiled.items()}
    steps |= theirs or {}
    memory = {n: p.memory_analysis().temp_size_in_bytes for n, p in compiled.items()}
    return {"what": what, "seconds": layers._timed(steps, rounds), "temporary_bytes": memory}


if __name__ == "__main__":
    keep_freed_memory()
    main()
