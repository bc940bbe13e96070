"""Norms of convolutions: precision against time, ours and what a user would pick instead.

command: python -m experiments.benchmarks.spectral_norms [--out FILE] [--channels 16,64,128,256]
         (PyTorch is timed too where it is installed)

Every method runs in this process in turn, round by round; a time is the median over the rounds of
the whole call, waited for. Kernels: "gauss", independent normal entries; "struct", a few strong
rank-one channel mixes times smooth windows over noise, as trained kernels look; "ortho", an
orthogonal mix of the channels with a tenth of noise, where all singular values are near the
largest. Truth is the SVD at every frequency in float64; the bound for every size is held against
the norm at this one. Memory is what the compiled program asks for beside its arguments. Writes JSON
and, beside it, a plot.
"""

import argparse
import functools
import json
import os
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments._memory import keep_freed_memory
from experiments.benchmarks import reference_norms as reference
from lipjax import selfcheck
from lipjax.spectral import conv_gram_iteration, conv_inflation, conv_kernel_bound
from lipjax.spectral._symbol import CPU_FLOATS, fourier_matrix, frequencies

SVD_FLOPS = 2e11
"""`fft_svd` is timed up to this estimate of its operations."""


COUNTS = (2, 3, 4, 5, 6, 8, 10)
"""Gram products that are tried."""


def main(arguments=None) -> dict:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", default="16,64,128,256")
    parser.add_argument("--windows", default="3,5")
    parser.add_argument("--sizes", default="16,32")
    parser.add_argument("--kinds", default="gauss,struct,ortho")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    channels, windows, sizes = (
        [int(v) for v in text.split(",")] for text in (args.channels, args.windows, args.sizes)
    )
    report = {
        "device": str(jax.devices()[0].device_kind),
        "cpus": os.cpu_count(),
        "selfcheck": selfcheck.run().to_dict(),
        "rows": [],
    }
    for c in channels:
        for k in windows:
            for n in sizes:
                for kind in args.kinds.split(","):
                    report["rows"].append(measure(kind, c, k, n, args.rounds))
                    show(report["rows"][-1])
    print("\nproducts for an excess of at most 1e-3")
    for row in report["rows"]:
        row["products for 1e-3"] = fewest(row, 1e-3)
        size = f"{row['channels']} channels, window {row['window']}, n {row['size']}"
        print(f"  {row['kernel']:<7} {size:<32} {row['products for 1e-3'] or 'more than 10'}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        plot(args.out.with_suffix(".png"), report)
    return report


def measure(kind, c, k, n, rounds) -> dict:
    """Every method on one kernel: value relative to the truth, and milliseconds."""
    kernel = jnp.asarray(make_kernel(kind, c, k))
    truth = exact(np.asarray(kernel, np.float64), n)
    methods, memory = prepared(c, k, n)
    calls = {name: functools.partial(run_jax, fn, kernel) for name, fn in methods.items()}
    try:
        import torch

        tensor = torch.from_numpy(np.array(kernel))
        calls["published 5, PyTorch"] = lambda: float(reference.published_gram_torch(tensor, n, 5))
    except ImportError:
        pass
    values = {name: call() for name, call in calls.items()}
    times = {name: [] for name in calls}
    best = 0.0
    for _ in range(rounds):
        best = max(best, peak())
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    row = {"kernel": kind, "channels": c, "window": k, "size": n, "truth": truth}
    row["flops per product"] = 4 * c**3 * len(frequencies((n, n)))
    row["inflation of lipjax 4"] = float(conv_inflation(kernel, padding="circular", input_size=n))
    row["peak gflops"], row["batched product gflops"] = best, batched(c)
    row["workspace bytes"] = memory
    row["methods"] = {
        name: {"excess": values[name] / truth - 1, "ms": 1e3 * statistics.median(times[name])}
        for name in calls
    }
    return row


@functools.lru_cache(maxsize=1)
def prepared(c, k, n):
    """Every method, compiled once for all kernels of a shape, and the bytes that two work in."""
    methods = {
        f"lipjax {count}": functools.partial(
            conv_gram_iteration, padding="circular", input_size=n, num_iters=count
        )
        for count in (*COUNTS, "auto")
    }
    if k == 3 and c <= 64:
        methods["lipjax, every size, 3"] = functools.partial(conv_kernel_bound, num_iters=3)
    methods["lipjax 4, value and gradient"] = jax.value_and_grad(methods["lipjax 4"])
    methods = {name: jax.jit(fn) for name, fn in methods.items()}
    shape = jax.ShapeDtypeStruct((k, k, c, c), jnp.float32)
    published = functools.partial(reference.published_gram, size=n, num_iters=5)
    memory = {
        "lipjax 5": workspace(methods["lipjax 5"], shape),
        "published 5": workspace(jax.jit(published), shape),
    }
    methods["published 5"] = published
    if 2 * len(frequencies((n, n))) * 20 * c**3 <= SVD_FLOPS:
        methods["fft and svd"] = functools.partial(reference.fft_svd, size=n)
    if k == 3 and c <= 128:
        methods["power iteration 100"] = functools.partial(reference.power_iteration, size=n)
    methods["reshapings"] = reference.reshapings
    methods["polynomial grid"] = reference.polynomial_grid
    return methods, memory


def fewest(row, excess) -> int | None:
    """The smallest number of products that comes that close, or None."""
    close = [n for n in COUNTS if row["methods"][f"lipjax {n}"]["excess"] <= excess]
    return min(close, default=None)


def workspace(fn, kernel) -> int:
    """Bytes that the compiled program needs beside its arguments and results."""
    return fn.lower(kernel).compile().memory_analysis().temp_size_in_bytes


def run_jax(fn, kernel) -> float:
    """The value, waited for."""
    out = jax.block_until_ready(fn(kernel))
    return float(out[0] if isinstance(out, tuple) else out)


def make_kernel(kind, c, k):
    """A kernel of spectral norm of order one."""
    rng = np.random.default_rng(c + k)
    noise = rng.normal(size=(k, k, c, c)) * np.sqrt(2 / (k * k * c))
    if kind == "gauss":
        return noise.astype(np.float32)
    if kind == "ortho":
        kernel = 0.1 * noise
        kernel[k // 2, k // 2] += np.linalg.qr(rng.normal(size=(c, c)))[0]
        return kernel.astype(np.float32)
    grid = np.linspace(-1, 1, k)
    kernel = 0.6 * noise
    for rank in range(max(1, c // 4)):
        wave = np.cos(
            rng.uniform(0, 3) * grid[:, None] + rng.uniform(0, 3) * grid + rng.uniform(0, 6)
        )
        window = wave * np.exp(-(grid[:, None] ** 2) - grid**2)
        u, v = rng.normal(size=(2, c)) / np.sqrt(c)
        strength = 3 * (1 + rank) ** -0.7 / np.linalg.norm(window)
        kernel += strength * window[:, :, None, None] * np.outer(u, v)
    return kernel.astype(np.float32)


def exact(kernel, n) -> float:
    """The circular norm in float64, a few frequencies at a time."""
    k, _, c_in, c_out = kernel.shape
    points = frequencies((n, n))
    cos, sin = fourier_matrix(points, (n, n), (k, k))
    taps = kernel.reshape(k * k, -1)
    largest = 0.0
    for start in range(0, len(points), 32):
        waves = cos[start : start + 32] + 1j * sin[start : start + 32]
        symbol = (waves @ taps).reshape(-1, c_in, c_out)
        gram = symbol.conj().swapaxes(1, 2) @ symbol
        largest = max(largest, float(np.linalg.eigvalsh(gram).max()))
    return largest**0.5


def peak() -> float:
    """GFLOP/s of one large float32 product, the best of ten."""
    a = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best / 1e9


@functools.lru_cache
def batched(c) -> float:
    """GFLOP/s of the bare products of one chunk: the ceiling of a program made of them."""
    chunk, count = max(1, CPU_FLOATS // (5 * c * c)), 20
    left = jnp.tile(jnp.eye(c), (chunk, 1, 1))

    @jax.jit
    def products(left):
        def product(_, right):
            return jnp.matmul(left, right, precision="highest")

        return jax.lax.fori_loop(0, count, product, left)

    products(left).block_until_ready()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        products(left).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * count * chunk * c**3 / best / 1e9


def show(row) -> None:
    """One line per method."""
    print(f"\n{row['kernel']} {row['channels']} channels, window {row['window']}, n {row['size']}")
    for name, found in row["methods"].items():
        print(f"  {name:<30} {found['excess']:+10.1e} {found['ms']:10.2f} ms")
    speed = 4 * row["flops per product"] / row["methods"]["lipjax 4"]["ms"] / 1e6
    ceiling, best = row["batched product gflops"], row["peak gflops"]
    print(f"  lipjax 4 at {speed:.0f} GFLOP/s, its bare products alone at {ceiling:.0f}, ", end="")
    print(f"one large product at {best:.0f}")


def plot(path, report) -> None:
    """Distance from the norm against time, for the largest number of channels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    kinds = ("gauss", "struct")
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for axis, kind in zip(axes, kinds):
        row = [r for r in report["rows"] if r["kernel"] == kind][-1]
        found = {name: (m["ms"], max(abs(m["excess"]), 1e-7)) for name, m in row["methods"].items()}
        ours = [found[f"lipjax {count}"] for count in COUNTS]
        axis.plot(
            *zip(*ours), "o-", color="C0", label=f"lipjax, {COUNTS[0]} to {COUNTS[-1]} products"
        )
        axis.plot(*found["lipjax auto"], "D", color="C1", label="lipjax, auto")
        others = [name for name in found if not name.startswith("lipjax")]
        for name, marker in zip(others, "xv^s+*"):
            axis.plot(*found[name], marker, color="0.4", label=name)
        axis.set(xscale="log", yscale="log", xlabel="milliseconds")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_title(f"{kind}, {row['channels']} channels, n = {row['size']}", fontsize=9)
    axes[0].set_ylabel("relative distance from the norm")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    keep_freed_memory()
    main()
