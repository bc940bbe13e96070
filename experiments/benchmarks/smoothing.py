"""Randomized smoothing: certificates of 10,000 images from their counts, and sampling.

command: python -m experiments.benchmarks.smoothing [--out FILE] [--rounds 3]

First the time from counts and moments to certificates on the host, the median over the rounds. Then the
samples a second that are drawn and voted on, and the examples a second of the same network alone, at the
same batch size, forward passes and noisy ones in turn. Writes JSON.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments._memory import keep_freed_memory
from experiments.output import write
from experiments.plain import PlainConfig, PlainNet
from experiments.regularize import ResNet
from lipjax import selfcheck
from lipjax.smoothing import gaussian, hybrid, lipschitz, multiclass, noise, soft
from lipjax.smoothing.kernels import Categorical, Uniform
from lipjax.smoothing.sampling import Moments, sample_counts

IMAGES, TRIALS = 10_000, 100_000
OPTIONS = dict(sigma=0.5, alpha=0.001)


def main(arguments=None) -> dict:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.smoothing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=IMAGES)
    args = parser.parse_args(arguments)
    report = {
        "platform": selfcheck.describe_platform(),
        "cpus": os.cpu_count(),
        "images": args.images,
        "certificates": certificates(args.images, args.rounds),
        "sampling": sampling(args.rounds),
    }
    for name, seconds in report["certificates"].items():
        print(f"{name:<44}{seconds:8.3f} s for {args.images} images")
    for row in report["sampling"]:
        print(
            f"{row['network']:<22} batch {row['batch']:5d}  forward {row['forward']:10.0f}/s  "
            f"{row['noise']:<9} {row['sampled']:10.0f}/s  {row['sampled'] / row['forward']:.2f}"
        )
    if args.out:
        write(args.out, (json.dumps(report, indent=1) + "\n").encode())
    return report


def certificates(images: int, rounds: int) -> dict:
    """Seconds of each method, with different counts for every image."""
    rng = np.random.default_rng(0)

    def counts(classes, concentration):
        p = rng.dirichlet(np.full(classes, concentration), images)
        return rng.multinomial(100, p), rng.multinomial(TRIALS, p)

    small, large = counts(10, 0.15), counts(1000, 0.004)
    p_lower = gaussian.certify(*small, **OPTIONS).info["p_lower"]
    sure = np.linspace(0.76, 0.99999, images)
    moments = _moments(rng, images)
    steps = {
        "Cohen et al., 10 classes": lambda: gaussian.certify(*small, **OPTIONS),
        "all classes, 10": lambda: multiclass.certify(*small, **OPTIONS),
        "all classes, 1000": lambda: multiclass.certify(*large, **OPTIONS),
        "all classes, 1000, class partition": lambda: multiclass.certify(
            *large, budget="partition", **OPTIONS
        ),
        "Lipschitz-aware, from bounds": lambda: lipschitz.radius(p_lower, lipschitz=1.0, sigma=0.5),
        "hybrid, 1 edit": lambda: hybrid.radius(
            sure, kernel=Uniform(0.25, 30_000), num_edits=1, sigma=0.5, threshold=4.6e-5
        ),
        "hybrid, 3 edits": lambda: hybrid.radius(
            sure, kernel=Uniform(0.9, 30_000), num_edits=3, sigma=0.5
        ),
        "hybrid, 6 edits": lambda: hybrid.radius(
            sure, kernel=Uniform(0.9, 30_000), num_edits=6, sigma=0.5
        ),
        "hybrid, 5 edits of nine columns": lambda: hybrid.radius(
            sure, kernel=Categorical(0.4, tuple(range(2, 11))), num_edits=5, sigma=0.5
        ),
        "hybrid, 1 edit, 10 classes": lambda: hybrid.certify(
            *small, kernel=Uniform(0.25, 30_000), max_edits=1, **OPTIONS
        ),
        "soft scores, 10 classes": lambda: soft.certify(*moments, **OPTIONS),
        "soft scores, 10 classes, Lipschitz-aware": lambda: soft.certify(
            *moments, lipschitz=2.0, **OPTIONS
        ),
    }
    found = {}
    for name, step in steps.items():
        step()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times)
    return found


def _moments(rng, images):
    """Of 100 and 100,000 scores of 10 classes that take two values each."""
    p = rng.dirichlet(np.full(10, 0.15), images)
    made = []
    for trials in (100, TRIALS):
        low = rng.multinomial(trials // 2, p) + rng.multinomial(trials - trials // 2, p)
        zero = np.zeros_like(low)
        total = np.stack([low, zero, zero], -2)
        squares = np.stack([low, zero, zero, zero, zero], -2)
        made.append(Moments(np.full(images, trials), total, squares))
    return made


def sampling(rounds: int) -> list[dict]:
    """Throughput of votes and of the network alone."""
    rows = []
    resnet = ResNet(64, 10, 1, nnx.Rngs(0))
    resnet.eval()
    networks = [
        (
            f"dense {'x'.join(map(str, hidden))}",
            PlainNet(PlainConfig(hidden=hidden), rngs=nnx.Rngs(0)),
        )
        for hidden in ((512, 256), (2048, 2048, 2048))
    ]
    for title, network, batch in (
        (*networks[0], 1000),
        (*networks[1], 1000),
        ("ResNet-18", resnet, 50),
    ):
        image = jax.random.uniform(jax.random.key(0), (28, 28, 1))
        pixels = (image * 255).astype(jnp.int32)
        images = jnp.broadcast_to(image, (batch, *image.shape)) + 0.0
        forward = jax.jit(lambda m, x: m(x))
        for name, law, x in (
            ("floats", noise.Gaussian(0.25), image),
            ("integers", noise.IntegerGaussian(0.25), pixels),
        ):

            @jax.jit
            def votes(m, key, start, x, law=law, batch=batch):
                return sample_counts(
                    key,
                    lambda x: m(x),
                    x,
                    noise=law,
                    num_samples=batch,
                    num_classes=10,
                    batch_size=batch,
                    start=start,
                )

            plain, noisy, key = [], [], jax.random.key(1)
            for i in range(3 * rounds + 1):
                start = time.perf_counter()
                jax.block_until_ready(forward(network, images))
                middle = time.perf_counter()
                jax.block_until_ready(votes(network, key, i * batch, x))
                if i:
                    plain.append(middle - start)
                    noisy.append(time.perf_counter() - middle)
            rows.append(
                {
                    "network": title,
                    "batch": batch,
                    "noise": name,
                    "forward": batch / statistics.median(plain),
                    "sampled": batch / statistics.median(noisy),
                }
            )
    return rows


if __name__ == "__main__":
    keep_freed_memory()
    main()
