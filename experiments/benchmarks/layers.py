"""A training step of each kind of layer, ours and the PyTorch peers', in turn in one process.

command: python -m experiments.benchmarks.layers [--out FILE] [--rounds 7]
         (peers are timed where they are installed: torch, deel-torchlip, orthogonium)

Stacks of four layers of equal width, MaxMin between linear ones: dense ones of 512 features on 256
vectors, convolutions of 45 channels (SLL and CPL, as in size S) or 48 on 32 images of 32 x 32 pixels.
A step is the constraint, the
forward pass and the gradient for all parameters; the time is the median over the rounds, waited for.
Björck's iteration takes 12 steps, as orthogonium's does (torchlip stops when little changes).
Peers are named with the layer of theirs that does the same: the published SLL convolution is written
here from its formula, channels last.

Then inference: the same stacks frozen, forward only, and the ordinary network of the same shape
(`flax.nnx.Linear` or `Conv`, and the same activation). Writes JSON.
"""

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lipjax import nn, selfcheck
from lipjax.layers import activations

DEPTH, WIDTH, BATCH = 4, 512, 256
CHANNELS, EVEN, HIDDEN, SIZE, IMAGES = 45, 48, 5, 32, 32

DENSE = {
    "SLL": lambda rngs: nn.SLLDense(WIDTH, WIDTH, rngs=rngs),
    "AOL": lambda rngs: nn.AOLDense(WIDTH, WIDTH, rngs=rngs),
    "Björck": lambda rngs: nn.BjorckDense(WIDTH, WIDTH, num_steps=12, rngs=rngs),
    "Cayley": lambda rngs: nn.CayleyDense(WIDTH, WIDTH, rngs=rngs),
    "QR": lambda rngs: nn.QRDense(WIDTH, WIDTH, rngs=rngs),
    "Cholesky": lambda rngs: nn.CholeskyDense(WIDTH, WIDTH, rngs=rngs),
    "exponential": lambda rngs: nn.SkewDense(WIDTH, WIDTH, rngs=rngs),
    "normalized": lambda rngs: nn.SpectralDense(WIDTH, WIDTH, rngs=rngs),
}
CONV = {
    "SLL": lambda rngs: nn.SLLConv(CHANNELS, HIDDEN, rngs=rngs),
    "SLL, as many hidden channels": lambda rngs: nn.SLLConv(CHANNELS, CHANNELS, rngs=rngs),
    "CPL": lambda rngs: nn.CPLConv(CHANNELS, HIDDEN, rngs=rngs),
    "AOL": lambda rngs: nn.AOLConv(EVEN, EVEN, rngs=rngs),
    "SOC": lambda rngs: nn.SOCConv(EVEN, EVEN, rngs=rngs),
    "normalized": lambda rngs: nn.SpectralConv(EVEN, EVEN, rngs=rngs),
    "block": lambda rngs: nn.BCOPConv(EVEN, EVEN, rngs=rngs),
}
FROZEN = {"dense": DENSE, "conv": CONV}
RESIDUAL = ("SLL", "SLL, as many hidden channels", "CPL")


def main(arguments=None) -> dict:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    peers = _peers()
    rows = []
    for kind, makes, shape in (
        ("dense", DENSE, (BATCH, WIDTH)),
        ("conv", CONV, (IMAGES, SIZE, SIZE, EVEN)),
    ):
        for name, make in makes.items():
            if kind == "conv" and name in RESIDUAL:
                shape = (*shape[:-1], CHANNELS)
            elif kind == "conv":
                shape = (*shape[:-1], EVEN)
            steps = {"lipjax": _ours(make, None if name in RESIDUAL else "max_min", shape)}
            failed = {}
            for peer, build in peers.get((kind, name), {}).items():
                try:
                    steps[peer] = _theirs(build, shape)
                    steps[peer]()
                except (RuntimeError, ValueError, AssertionError) as error:
                    failed[peer] = str(error).splitlines()[0]
                    steps.pop(peer, None)
                    print(f"{peer} does not run here: {failed[peer]}")
            seconds = _timed(steps, args.rounds)
            row = {"kind": kind, "layer": name, "examples": shape[0], "seconds": seconds}
            row["do_not_run_here"] = failed
            rows.append(row)
            times = {peer: s / seconds["lipjax"] for peer, s in seconds.items() if peer != "lipjax"}
            print(
                f"{kind:<6} {name:<30} {shape[0] / seconds['lipjax']:9.0f} examples/s  "
                + "  ".join(f"{peer}: {ratio:.1f} x" for peer, ratio in times.items())
            )
    inference = []
    for kind, names, shape in (
        ("dense", ("AOL", "Björck", "Cayley"), (BATCH, WIDTH)),
        ("conv", ("AOL", "normalized", "block"), (IMAGES, SIZE, SIZE, EVEN)),
    ):
        for name in names:
            steps = {"lipjax": _frozen(FROZEN[kind][name], shape), "flax": _ordinary(kind, shape)}
            seconds = _timed(steps, 3 * args.rounds)
            inference.append({"kind": kind, "layer": name, "seconds": seconds})
            print(
                f"inference {kind:<6} {name:<12} {1e3 * seconds['lipjax']:7.2f} ms  "
                f"ordinary {1e3 * seconds['flax']:7.2f} ms"
            )
    report = {
        "device": str(jax.devices()[0].device_kind),
        "cpus": os.cpu_count(),
        "platform": selfcheck.describe_platform(),
        "versions": _versions(),
        "rows": rows,
        "inference": inference,
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _ours(make, between, shape):
    stack = nn.Stack(make, DEPTH, between=between, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), shape)
    step = jax.jit(jax.grad(lambda module, x: jnp.mean(jnp.square(module(x)))))
    return lambda: jax.block_until_ready(step(stack, x))


def _frozen(make, shape):
    stack = nn.freeze(nn.Stack(make, DEPTH, between="max_min", rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), shape)
    apply = jax.jit(lambda module, x: module(x))
    return lambda: jax.block_until_ready(apply(stack, x))


def _ordinary(kind, shape):
    rngs = nnx.Rngs(0)
    makes = {
        "dense": lambda: nnx.Linear(WIDTH, WIDTH, rngs=rngs),
        "conv": lambda: nnx.Conv(EVEN, EVEN, (3, 3), rngs=rngs),
    }
    layers = nnx.List([makes[kind]() for _ in range(DEPTH)])
    x = jax.random.normal(jax.random.key(0), shape)

    @jax.jit
    def apply(layers, x):
        for layer in layers:
            x = activations.max_min(layer(x))
        return x

    return lambda: jax.block_until_ready(apply(layers, x))


def _theirs(build, shape):
    import torch

    torch.manual_seed(0)
    module = build().train()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    if x.ndim == 4:  # channels last in memory, as PyTorch is fastest on CPUs
        x = x.permute(0, 3, 1, 2)
        module = module.to(memory_format=torch.channels_last)

    def step():
        module.zero_grad(set_to_none=True)
        module(x).square().mean().backward()

    return step


def _timed(steps, rounds) -> dict:
    for step in steps.values():  # compiles, and settles what peers keep between steps
        step(), step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _peers() -> dict:
    """`{(kind, layer): {peer: build}}` of the packages that are installed."""
    found = {}
    if not _installed("torch"):
        return found
    from torch import nn as torch_nn

    def stacked(make, between=None):
        def build():
            pairs = [[make()] + ([between()] if between else []) for _ in range(DEPTH)]
            return torch_nn.Sequential(*itertools.chain(*pairs))

        return build

    found["conv", "SLL"] = {"published formula": stacked(lambda: _published_sll(HIDDEN))}
    found["conv", "SLL, as many hidden channels"] = {
        "published formula": stacked(lambda: _published_sll(CHANNELS))
    }
    if _installed("deel.torchlip"):
        from deel import torchlip

        sort = torchlip.GroupSort2
        linear = stacked(lambda: torchlip.SpectralLinear(WIDTH, WIDTH), sort)
        found.setdefault(("dense", "Björck"), {})["torchlip SpectralLinear"] = linear
        conv = stacked(lambda: torchlip.SpectralConv2d(EVEN, EVEN, 3, padding=1), sort)
        found.setdefault(("conv", "normalized"), {})["torchlip SpectralConv2d"] = conv
    if _installed("orthogonium"):
        _add_orthogonium(found, stacked)
    return found


def _add_orthogonium(found, stacked):
    from orthogonium import reparametrizers as ways
    from orthogonium.layers.conv.adaptiveSOC import AdaptiveSOCConv2d
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d
    from orthogonium.layers.conv.AOL.aol import AOLConv2D
    from orthogonium.layers.conv.SLL.sll_layer import (
        SDPBasedLipschitzDense,
        SDPBasedLipschitzResBlock,
    )
    from orthogonium.layers.custom_activations import MaxMin
    from orthogonium.layers.linear.ortho_linear import OrthoLinear
    from orthogonium.legacy.cayley_ortho_conv import CayleyLinear
    from orthogonium.legacy.skew_ortho_conv import SOC

    def ortho(params):
        return stacked(lambda: OrthoLinear(WIDTH, WIDTH, ortho_params=params), MaxMin)

    rows = {
        ("dense", "Björck"): ("orthogonium Björck", ortho(ways.DEFAULT_ORTHO_PARAMS)),
        ("dense", "Cholesky"): ("orthogonium Cholesky", ortho(ways.CHOLESKY_ORTHO_PARAMS)),
        ("dense", "QR"): ("orthogonium QR", ortho(ways.QR_ORTHO_PARAMS)),
        ("dense", "exponential"): ("orthogonium exponential", ortho(ways.EXP_ORTHO_PARAMS)),
        ("dense", "Cayley"): (
            "orthogonium CayleyLinear",
            stacked(lambda: CayleyLinear(WIDTH, WIDTH), MaxMin),
        ),
        ("dense", "SLL"): (
            "orthogonium SLL",
            stacked(lambda: SDPBasedLipschitzDense(WIDTH, WIDTH, WIDTH)),
        ),
        ("conv", "SLL, as many hidden channels"): (
            "orthogonium SLL",
            stacked(lambda: SDPBasedLipschitzResBlock(CHANNELS, 1)),
        ),
        ("conv", "AOL"): (
            "orthogonium AOL",
            stacked(lambda: AOLConv2D(EVEN, EVEN, 3, padding=1), MaxMin),
        ),
        ("conv", "SOC"): (
            "orthogonium SOC, 5 terms",
            stacked(lambda: SOC(EVEN, EVEN), MaxMin),
        ),
    }
    for key, (peer, build) in rows.items():
        found.setdefault(key, {})[peer] = build
    found["conv", "SOC"]["orthogonium AdaptiveSOC"] = stacked(
        lambda: AdaptiveSOCConv2d(EVEN, EVEN, 3, padding=3), MaxMin
    )
    found["conv", "block"] = {
        "orthogonium AOC": stacked(lambda: AdaptiveOrthoConv2d(EVEN, EVEN, 3, padding=1), MaxMin)
    }


def _published_sll(hidden):
    """The convolution of the SLL paper in PyTorch, from its formula."""
    import torch
    from torch.nn import functional

    class Published(torch.nn.Module):
        def __init__(self):
            super().__init__()
            scale = (2 / (9 * (CHANNELS + hidden))) ** 0.5
            self.kernel = torch.nn.Parameter(scale * torch.randn(hidden, CHANNELS, 3, 3))
            self.bias = torch.nn.Parameter(torch.zeros(hidden))
            self.q = torch.nn.Parameter(torch.zeros(hidden))

        def forward(self, x):
            gram = functional.conv2d(self.kernel, self.kernel, padding=2).abs().sum((2, 3))
            weights = torch.exp(self.q)
            t = (gram * weights[None, :]).sum(1) / weights
            inside = functional.relu(functional.conv2d(x, self.kernel, self.bias, padding=1))
            step = (2 / t)[None, :, None, None]
            return x - functional.conv_transpose2d(step * inside, self.kernel, padding=1)

    return Published()


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _versions() -> dict:
    import importlib.metadata as metadata

    names = ("torch", "deel-torchlip", "orthogonium")
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: installed[name] for name in names if name in installed}


if __name__ == "__main__":
    main()
