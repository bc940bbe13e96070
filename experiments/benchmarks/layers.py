"""A training step of each kind of layer, ours and the PyTorch peers', in turn in one process.

command: python -m experiments.benchmarks.layers [--out FILE] [--rounds 7]
         (peers are timed where they are installed: torch, deel-torchlip, orthogonium)

Stacks of four layers of equal width, MaxMin between linear ones: dense ones of 512 features on 256
vectors, convolutions of 45 channels (SLL and CPL, as in size S) or 48 on 32 images of 32 x 32 pixels.
A step is the constraint, the forward pass and the gradient for all parameters; the time is the median
over the rounds, waited for. Björck's iteration takes 12 steps, as orthogonium's does (torchlip stops
when little changes). Peers are named with the layer of theirs that does the same; torchlip's normalized
convolution stands beside the bound of a whole convolution, and beside its own, that of the kernel as a
matrix. The published layers SLL are written here from their formula, channels last. Then the whole
network of size S on batches of 256 images, ours and those layers in PyTorch.

Beside each peer stands the most that its time over ours could be: if all products of the layers
themselves (forward and both gradients; of SLL also the Gram matrix, half of it, and one product for
its gradient) ran at the speed of one large matrix product on this machine, the faster of JAX's and
PyTorch's, and nothing else took any time. A method with fewer operations could do better.

Then the factorizations of LAPACK that QR and Cholesky layers cannot do without, alone.

Then inference: the same stacks frozen, forward only, and the ordinary network of the same shape
(`flax.nnx.Linear` or `Conv`, and the same activation; two of them around a ReLU and a skip for
residual layers). Writes JSON.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import math
import os
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments._memory import keep_freed_memory
from lipjax import models, nn, selfcheck, spectral
from lipjax.layers import activations

DEPTH, WIDTH, BATCH = 4, 512, 256
CHANNELS, EVEN, HIDDEN, SIZE, IMAGES = 45, 48, 5, 32, 32
IMAGE = (SIZE, SIZE)
NETWORK_BATCH = 256

DENSE = {
    "SLL": lambda rngs: nn.SLLDense(WIDTH, WIDTH, rngs=rngs),
    "AOL": lambda rngs: nn.AOLDense(WIDTH, WIDTH, rngs=rngs),
    "Björck": lambda rngs: nn.BjorckDense(WIDTH, WIDTH, num_steps=12, rngs=rngs),
    "Cayley": lambda rngs: nn.CayleyDense(WIDTH, WIDTH, rngs=rngs),
    "QR": lambda rngs: nn.QRDense(WIDTH, WIDTH, rngs=rngs),
    "Cholesky": lambda rngs: nn.CholeskyDense(WIDTH, WIDTH, rngs=rngs),
    "exponential": lambda rngs: nn.SkewDense(WIDTH, WIDTH, rngs=rngs),
    "normalized": lambda rngs: nn.SpectralDense(WIDTH, WIDTH, rngs=rngs),
    "CPL": lambda rngs: nn.CPLDense(WIDTH, WIDTH, rngs=rngs),
    "rescaled": lambda rngs: nn.RescaledDense(WIDTH, WIDTH, rngs=rngs),
    "Householder": lambda rngs: nn.HouseholderDense(WIDTH, WIDTH, rngs=rngs),
    "reflector": lambda rngs: nn.ReflectorDense(WIDTH, depth=DEPTH, rngs=rngs),
    "sandwich": lambda rngs: nn.SandwichDense(WIDTH, WIDTH, rngs=rngs),
}
CONV = {
    "SLL": lambda rngs: nn.SLLConv(CHANNELS, HIDDEN, rngs=rngs),
    "SLL, as many hidden channels": lambda rngs: nn.SLLConv(CHANNELS, CHANNELS, rngs=rngs),
    "CPL": lambda rngs: nn.CPLConv(CHANNELS, HIDDEN, rngs=rngs),
    "AOL": lambda rngs: nn.AOLConv(EVEN, EVEN, rngs=rngs),
    "SOC": lambda rngs: nn.SOCConv(EVEN, EVEN, rngs=rngs),
    "normalized": lambda rngs: nn.SpectralConv(EVEN, EVEN, rngs=rngs),
    "normalized as a matrix": lambda rngs: nn.SpectralConv(
        EVEN, EVEN, norm=_as_a_matrix, rngs=rngs
    ),
    "block": lambda rngs: nn.BCOPConv(EVEN, EVEN, rngs=rngs),
    "rescaled": lambda rngs: nn.RescaledConv(EVEN, EVEN, rngs=rngs),
    "Cayley": lambda rngs: nn.CayleyConv(EVEN, EVEN, input_size=IMAGE, rngs=rngs),
    "reflector": lambda rngs: nn.ReflectorConv(EVEN, depth=DEPTH, input_size=IMAGE, rngs=rngs),
    "sandwich": lambda rngs: nn.SandwichConv(EVEN, EVEN, input_size=IMAGE, rngs=rngs),
}
LAYERS = {"dense": DENSE, "conv": CONV}
RESIDUAL = ("SLL", "SLL, as many hidden channels", "CPL")  # they keep their width, 45 in S
INSIDE = (*RESIDUAL, "sandwich")


def main(arguments=None) -> dict:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    peers = _peers()
    peak = _peak()
    print(
        f"one large matrix product: {', '.join(f'{k} {v / 1e9:.0f} GFLOP/s' for k, v in peak.items())}"
    )
    rows = []
    for kind, makes in LAYERS.items():
        for name, make in makes.items():
            shape = _shape(kind, name)
            between = None if name in INSIDE else "max_min"
            module = nn.Stack(make, DEPTH, between=between, rngs=nnx.Rngs(0))
            rows.append(_row(kind, name, module, peers, shape, args.rounds, peak))
    module = models.LipschitzConvNet("S", rngs=nnx.Rngs(0))
    shape = (NETWORK_BATCH, *module.config.image_shape)
    rows.append(_row("network", "S", module, peers, shape, max(1, args.rounds // 2), peak))
    factorizations = _factorizations(4 * args.rounds)
    for name, seconds in factorizations.items():
        times = "  ".join(f"{where} {1e3 * s:.2f} ms" for where, s in seconds.items())
        print(f"{name:<38} {times}")
    inference = []
    for kind, names in (
        ("dense", ("AOL", "Björck", "Cayley", "SLL", "CPL", "sandwich")),
        ("conv", ("AOL", "normalized", "block", "SLL, as many hidden channels")),
    ):
        for name in names:
            shape = _shape(kind, name)
            steps = {"lipjax": _frozen(kind, name, shape), "flax": _ordinary(kind, name, shape)}
            seconds = _timed(steps, 3 * args.rounds)
            inference.append({"kind": kind, "layer": name, "seconds": seconds})
            print(
                f"inference {kind:<6} {name:<30} {1e3 * seconds['lipjax']:7.2f} ms  "
                f"ordinary {1e3 * seconds['flax']:7.2f} ms"
            )
    report = {
        "device": str(jax.devices()[0].device_kind),
        "cpus": os.cpu_count(),
        "platform": selfcheck.describe_platform(),
        "versions": _versions(),
        "peak_operations_per_second": peak,
        "rows": rows,
        "factorizations": factorizations,
        "inference": inference,
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _as_a_matrix(kernel):
    """The bound that torchlip divides by: of the kernel as a matrix, times the root of the taps."""
    return math.prod(kernel.shape[:-2]) ** 0.5 * spectral.gram_iteration(
        kernel.reshape(-1, kernel.shape[-1])
    )


def _shape(kind, name):
    if kind == "dense":
        return (BATCH, WIDTH)
    return (IMAGES, *IMAGE, CHANNELS if name in RESIDUAL else EVEN)


def _row(kind, name, module, peers, shape, rounds, peak) -> dict:
    """Times one kind of layer beside its peers, and prints the line."""
    steps = {"lipjax": _ours(module, shape)}
    failed = {}
    for peer, build in peers.get((kind, name), {}).items():
        try:
            steps[peer] = _theirs(build, shape)
            steps[peer]()
        except (RuntimeError, ValueError, AssertionError) as error:
            failed[peer] = str(error).splitlines()[0]
            steps.pop(peer, None)
            print(f"{peer} does not run here: {failed[peer]}")
    seconds = _timed(steps, rounds)
    times = {peer: s / seconds["lipjax"] for peer, s in seconds.items() if peer != "lipjax"}
    least = _operations(kind, name) / max(peak.values())
    most = {peer: seconds[peer] / least for peer in times} if least else {}
    print(
        f"{kind:<7} {name:<30} {shape[0] / seconds['lipjax']:9.1f} examples/s  "
        + "  ".join(
            f"{peer}: {ratio:.2f} x" + (f" (at most {most[peer]:.1f})" if most else "")
            for peer, ratio in times.items()
        ),
        flush=True,
    )
    row = {"kind": kind, "layer": name, "examples": shape[0], "seconds": seconds}
    row |= {"at_most": most} if most else {}
    return row | {"do_not_run_here": failed}


def _operations(kind, name) -> float:
    """Operations of the products that a training step cannot do without; 0 where not counted."""
    if kind == "network":
        config = models.SIZES[name]
        size = config.image_shape[0] * config.image_shape[1]
        convs = config.conv_depth * 2 * 9 * size * config.conv_width * config.conv_hidden
        dense = config.dense_depth * 2 * config.features * config.dense_hidden
        gram = config.dense_depth * (1 + 2) * config.features * config.dense_hidden**2
        return 6 * NETWORK_BATCH * (convs + dense) + gram
    if kind == "dense":
        if name == "SLL":
            return DEPTH * (12 * BATCH * WIDTH**2 + (1 + 2) * WIDTH**3)
        return DEPTH * 6 * BATCH * WIDTH**2 if name == "AOL" else 0
    if name in ("SOC", "Cayley", "reflector", "sandwich"):  # no single convolution of 3 x 3
        return 0
    pixels = IMAGES * SIZE**2
    if name in RESIDUAL:
        hidden = CHANNELS if name == "SLL, as many hidden channels" else HIDDEN
        return DEPTH * 12 * pixels * 9 * CHANNELS * hidden
    return DEPTH * 6 * pixels * 9 * EVEN**2


def _peak() -> dict:
    """Operations a second of one large matrix product, the best of ten."""
    size = 2048
    a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    ours = jnp.asarray(a)
    multiply = jax.jit(
        jnp.matmul
    )  # of arguments: a product of constants is computed by the compiler
    products = {"jax": lambda: multiply(ours, ours)}
    if _installed("torch"):
        import torch

        theirs = torch.from_numpy(a)
        products["torch"] = lambda: theirs @ theirs
    best = {}
    for name, product in products.items():
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(product())
            times.append(time.perf_counter() - start)
        best[name] = 2 * size**3 / min(times[1:])
    return best


def _factorizations(rounds) -> dict:
    """Seconds of what LAPACK does in one layer of QR or Cholesky, without a gradient."""
    a = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    positive = a @ a.T / WIDTH + np.eye(WIDTH, dtype=np.float32)
    steps = {
        "QR": {"jax": _compiled(lambda a: tuple(jnp.linalg.qr(a)), a)},
        "Cholesky": {"jax": _compiled(jax.lax.linalg.cholesky, positive)},
    }
    if _installed("torch"):
        import torch

        b, c = torch.from_numpy(a), torch.from_numpy(positive)
        steps["QR"]["torch"] = lambda: torch.linalg.qr(b)
        steps["Cholesky"]["torch"] = lambda: torch.linalg.cholesky(c)
    return {name: _timed(both, rounds) for name, both in steps.items()}


def _compiled(fn, argument):
    fn, argument = jax.jit(fn), jnp.asarray(argument)
    return lambda: jax.block_until_ready(fn(argument))


def _ours(module, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    step = jax.jit(jax.grad(lambda module, x: jnp.mean(jnp.square(module(x)))))
    return lambda: jax.block_until_ready(step(module, x))


def _frozen(kind, name, shape):
    between = None if name in INSIDE else "max_min"
    stack = nn.Stack(LAYERS[kind][name], DEPTH, between=between, rngs=nnx.Rngs(0))
    stack = nn.freeze(stack)
    x = jax.random.normal(jax.random.key(0), shape)
    apply = jax.jit(lambda module, x: module(x))
    return lambda: jax.block_until_ready(apply(stack, x))


def _ordinary(kind, name, shape):
    """One layer and an activation four times, or two layers where ours have two matrices."""
    rngs = nnx.Rngs(0)
    width = shape[-1]

    def make():
        if kind == "dense":
            return nnx.Linear(width, width, rngs=rngs)
        return nnx.Conv(width, width, (3, 3), rngs=rngs)

    x = jax.random.normal(jax.random.key(0), shape)
    one = nnx.List([make() for _ in range(DEPTH)])
    if name not in INSIDE:
        apply = jax.jit(
            lambda one, x: functools.reduce(lambda x, f: activations.max_min(f(x)), one, x)
        )
        return lambda: jax.block_until_ready(apply(one, x))
    two = nnx.List([make() for _ in range(DEPTH)])

    @jax.jit
    def apply_two(one, two, x):
        for first, second in zip(one, two, strict=True):
            inside = second(jax.nn.relu(first(x)))
            x = x - inside if name in RESIDUAL else inside
        return x

    return lambda: jax.block_until_ready(apply_two(one, two, x))


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
    found["dense", "SLL"] = {"published formula": stacked(_published_dense)}
    found["network", "S"] = {"published formulas": _published_network}
    if _installed("deel.torchlip"):
        from deel import torchlip

        sort = torchlip.GroupSort2
        linear = stacked(lambda: torchlip.SpectralLinear(WIDTH, WIDTH), sort)
        found.setdefault(("dense", "Björck"), {})["torchlip SpectralLinear"] = linear
        conv = stacked(lambda: torchlip.SpectralConv2d(EVEN, EVEN, 3, padding=1), sort)
        for name in ("normalized", "normalized as a matrix"):
            found["conv", name] = {"torchlip SpectralConv2d": conv}
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


def _published_dense(width=WIDTH, hidden=WIDTH):
    """The dense layer of the SLL paper in PyTorch, from its formula."""
    import torch
    from torch.nn import functional

    class Published(torch.nn.Module):
        def __init__(self):
            super().__init__()
            scale = (2 / (width + hidden)) ** 0.5
            self.kernel = torch.nn.Parameter(scale * torch.randn(hidden, width))
            self.bias = torch.nn.Parameter(torch.zeros(hidden))
            self.q = torch.nn.Parameter(torch.zeros(hidden))

        def forward(self, x):
            weights = torch.exp(self.q)
            gram = (self.kernel @ self.kernel.T).abs()
            t = (gram * weights[None, :]).sum(1) / weights
            inside = functional.relu(functional.linear(x, self.kernel, self.bias))
            return x - ((2 / t) * inside) @ self.kernel

    return Published()


def _published_network():
    """Size S in PyTorch: 20 convolutions, 7 dense layers, and class vectors of norm 1."""
    import torch
    from torch.nn import functional

    config = models.SIZES["S"]
    width = config.features

    class Published(torch.nn.Module):
        def __init__(self):
            super().__init__()
            convs = [_published_sll(config.conv_hidden) for _ in range(config.conv_depth)]
            dense = [
                _published_dense(width, config.dense_hidden) for _ in range(config.dense_depth)
            ]
            self.convs, self.dense = torch.nn.Sequential(*convs), torch.nn.Sequential(*dense)
            self.head = torch.nn.Parameter(torch.randn(config.num_classes, width))
            self.bias = torch.nn.Parameter(torch.zeros(config.num_classes))

        def forward(self, x):
            padding = (0, 0, 0, 0, 0, config.conv_width - x.shape[1])
            x = functional.pad(x, padding).contiguous(memory_format=torch.channels_last)
            x = config.pool * functional.avg_pool2d(self.convs(x), config.pool)
            x = self.dense(x.flatten(1))
            return functional.linear(x, functional.normalize(self.head, dim=1), self.bias)

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
    keep_freed_memory()
    main()
