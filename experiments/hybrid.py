"""Train a network of tokens and a continuous part under noise on both, and certify it.

`python -m experiments.hybrid CONFIG [field=value ...]`, where CONFIG is the name of a file in
`experiments/configs`. Trains (unless the run directory holds the weights), samples votes of test
examples into a log, `counts.log`, and certifies, for every number of changed tokens, how far the
continuous part may move besides. The same command goes on with a job that was stopped, and certifies
from the log when `alpha`, `budget`, `max_edits`, `radii`, `examples` or `num_samples` change. Writes
`hybrid.json` and `hybrid.png`; with `--out FILE`, also the table, as a small file.
"""

import argparse
import io
import json
import os
import sys
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import config as configs
from experiments import draws, mixed, output
from experiments._memory import keep_freed_memory
from experiments.smooth import fingerprint
from lipjax import selfcheck
from lipjax.data import batch_indices, num_steps
from lipjax.smoothing import curves, gaussian, hybrid, multiclass, sampling
from lipjax.smoothing.kernels import Categorical, Mask
from lipjax.smoothing.log import ESTIMATION, SELECTION, CountLog
from lipjax.smoothing.noise import Gaussian, IntegerGaussian, Product, Tokens
from lipjax.training import cross_entropy, init_state, make_step, triangular


def main(arguments=None) -> dict:
    """Trains, certifies and returns the report."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.hybrid",
        usage="%(prog)s CONFIG [field=value ...] [--data-dir DIR] [--run-dir DIR] [--out FILE]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="configs: " + ", ".join(configs.names(configs.HybridConfig)),
    )
    parser.add_argument("words", metavar="CONFIG [field=value ...]", nargs="+")
    parser.add_argument("--data-dir", default=os.environ.get("LIPJAX_DATA"))
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--out", type=Path, help="also write the table, without single examples")
    args = parser.parse_intermixed_args(arguments)
    name, *assignments = args.words
    try:
        config = configs.override(configs.load(name, configs.HybridConfig), assignments)
        report = run(config, args.run_dir or Path("runs") / name, args.data_dir)
        if args.out is not None:
            output.write_table(args.out, report)
        return report
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


def run(config: configs.HybridConfig, run_dir: Path, data_dir=None) -> dict:
    """Trains and samples what is missing, certifies, prints the table and writes the files."""
    started = time.time()
    checked = selfcheck.run()
    if not checked.ok:
        raise ValueError(f"this platform computes wrong numbers:\n{checked}")
    data = mixed.load(config.data, data_dir, hold_out=config.hold_out)
    kernel, noise = noises(config, data)
    model, accuracy = trained(config, data, run_dir)
    labels = data.test.labels
    count = min(config.examples or len(labels), len(labels))
    chosen = np.linspace(0, len(labels) - 1, count).round().astype(int)
    header = {
        "config": training_fields(config),
        "weights": fingerprint(model),
        "data": fingerprint(data.test),
    } | draws.law(noise, config.seed)
    needed = chosen, stages(config)
    options = dict(header=header, width=len(data.classes))
    with draws.opened(run_dir / "counts.log", *needed, **options) as log:
        if not log.read_only:
            sample_missing(log, config, data, model, noise, chosen)
        votes = [
            np.stack([log.total(i, stage) for i in chosen.tolist()])
            for stage in (SELECTION, ESTIMATION)
        ]
        short = [
            i
            for i in chosen.tolist()
            if any(log.done(i, stage) != n for stage, n in stages(config))
        ]
    if short:
        raise ValueError(
            f"num_selection is {config.num_selection} and num_samples is {config.num_samples}; the log "
            f"has more of {len(short)} examples, and a part of what was counted cannot be taken: ask "
            "for as many."
        )
    sizes = data.test.tokens.shape[1], data.test.values.shape[1]
    started, sampling_seconds = time.time(), time.time() - started
    options = dict(
        kernel=kernel,
        sigma=config.sigma,
        alpha=config.alpha,
        max_edits=config.max_edits,
        law_error=noise.law_error(sizes),
        num_samples=config.num_samples,
    )
    found = hybrid.certify(*votes, budget=config.budget, **options)
    correct = found.prediction == labels[chosen]
    budgets = {
        budget: mean_radii(hybrid.certify(*votes, budget=budget, **options), labels[chosen])
        for budget in multiclass.BUDGETS
    }
    budgets["one class"] = one_class_radii(*votes, labels=labels[chosen], **options)
    report = {
        "config": configs.to_dict(config),
        **{name: header[name] for name in ("weights", "data", "noise", "keys")},
        "split": "validation (held out)" if config.hold_out else "test",
        "examples": chosen.tolist(),
        "accuracy_without_noise": accuracy,
        "seconds": round(sampling_seconds, 1),
        "seconds_of_certificates": round(time.time() - started, 3),
        "classes": list(data.classes),
        "unit": data.unit,
        "edits": rows(config, found, correct),
        "mean_radius_of_budgets": budgets,
        "abstentions": float(np.mean(found.prediction == -1)),
        "labels": labels[chosen].tolist(),
        "prediction": found.prediction.tolist(),
        "radius": found.radius.tolist(),
        "proved_edits": found.edits.tolist(),
        "selfcheck": checked.to_dict(),
    }
    print(table(report))
    output.write(run_dir / "hybrid.json", json.dumps(report, allow_nan=False).encode())
    plot(run_dir / "hybrid.png", report, found, correct)
    print(f"certificates  {run_dir}/hybrid.json\nfigure        {run_dir}/hybrid.png")
    return report


class MixedNet(nnx.Module):
    """The mean of the embeddings of all tokens that speak, and the continuous part, in dense layers."""

    def __init__(self, config: configs.HybridConfig, data: mixed.Mixed, *, rngs: nnx.Rngs):
        columns = isinstance(data.sizes, tuple)
        self.first = tuple(np.cumsum((0, *data.sizes[:-1])).tolist()) if columns else (0,)
        count = sum(data.sizes) if columns else data.sizes + 1
        self.silent, self.levels = data.silent, data.levels
        self.embedding = nnx.Embed(count, config.embedding, rngs=rngs)
        self.picture = nnx.Linear(data.test.values.shape[1], config.hidden, rngs=rngs)
        self.joint = nnx.Linear(config.embedding + config.hidden, config.hidden, rngs=rngs)
        self.head = nnx.Linear(config.hidden, len(data.classes), rngs=rngs)

    def __call__(self, example):
        """Logits of a batch of tokens `int32[b, t]` and values `float32[b, m]`."""
        tokens, values = example
        speaks = jnp.ones(tokens.shape, bool)
        for token in self.silent:
            speaks &= tokens != token
        vectors = self.embedding(tokens + jnp.asarray(self.first, tokens.dtype)[None])
        speaks = speaks.astype(vectors.dtype)
        said = jnp.einsum("bt,bte->be", speaks, vectors)
        said = said / jnp.maximum(speaks.sum(1, keepdims=True), 1)
        seen = jax.nn.relu(self.picture(values - 0.5 if self.levels == 255 else values))
        both = jnp.concatenate([said * self.embedding.features**0.5, seen], -1)
        return self.head(jax.nn.relu(self.joint(both)))


def noises(config: configs.HybridConfig, data: mixed.Mixed):
    """The kernel of the tokens and the noise on both parts."""
    if isinstance(data.sizes, tuple):
        kernel = Categorical(config.beta, data.sizes)
        tokens = Tokens(kernel)
    else:
        kernel = Mask(config.beta)
        tokens = Tokens(kernel, mask=data.sizes)
    return kernel, Product((tokens, IntegerGaussian(config.sigma, data.levels)))


_DAMAGED = (zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError, RuntimeError, OSError)
"""What NumPy raises for archives that are none, or whose bytes were changed."""


def trained(config: configs.HybridConfig, data: mixed.Mixed, run_dir: Path):
    """The network of the run, trained if there is none yet, and its accuracy on inputs without noise."""
    wanted = training_fields(config)
    model = MixedNet(config, data, rngs=nnx.Rngs(config.seed))
    leaves, treedef = jax.tree.flatten(model)
    path = run_dir / "weights.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                others = differing(json.loads(str(stored["config"])), wanted)
                if not others:
                    leaves = [jnp.asarray(stored[f"leaf_{i}"]) for i in range(len(leaves))]
        except _DAMAGED as error:
            raise ValueError(
                f"{path} holds no weights of this experiment ({error}); delete it to train again."
            ) from None
        if others:
            raise ValueError(
                f"--run-dir is {str(run_dir)!r}, which holds a run with other settings, "
                f"{others}; name another directory."
            )
        model = jax.tree.unflatten(treedef, leaves)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        model = train(config, data, model)
        content = io.BytesIO()
        arrays = {f"leaf_{i}": np.asarray(a) for i, a in enumerate(jax.tree.leaves(model))}
        np.savez(content, config=json.dumps(wanted), **arrays)
        output.write(path, content.getvalue())
    predict = jax.jit(lambda tokens, values: jnp.argmax(model((tokens, values)), -1))
    values = (data.test.values / data.levels).astype(np.float32)
    found = np.asarray(predict(data.test.tokens, values))
    return model, float(np.mean(found == data.test.labels))


def differing(stored: dict, wanted: dict) -> str:
    """The fields that are not the same, in words; empty if all are."""
    return ", ".join(
        f"{name} = {stored.get(name)!r} instead of {wanted.get(name)!r}"
        for name in sorted(set(stored) | set(wanted))
        if stored.get(name) != wanted.get(name)
    )


def train(config: configs.HybridConfig, data: mixed.Mixed, model):
    """Adam on examples with noise on both parts; every epoch a text meets other pictures."""
    _, noise = noises(config, data)
    noise = Product((noise.parts[0], Gaussian(config.sigma)))
    size = len(data.train.labels)
    steps = num_steps(size, config.batch_size, config.epochs)
    optimizer = optax.adam(triangular(config.learning_rate, steps))

    def loss_fn(model, batch, key):
        tokens, values, labels = batch
        values = values.astype(jnp.float32) / data.levels
        noisy = jax.vmap(noise)(jax.random.split(key, len(labels)), (tokens, values))
        logits = model(noisy)
        losses = jax.vmap(lambda f, y: cross_entropy(f, y, offset=0.0, temperature=1.0))(
            logits, labels
        )
        hits = jnp.argmax(logits, -1) == labels
        return jnp.mean(losses), {"accuracy": jnp.mean(hits.astype(jnp.float32))}

    step = make_step(loss_fn, optimizer)
    state = init_state(jax.random.key(config.seed), model, optimizer)
    shuffle = np.random.default_rng(config.seed)
    for t in range(steps):
        rows = batch_indices(config.seed, t, num_examples=size, batch_size=config.batch_size)
        tokens, values, labels = (part[rows] for part in data.train)
        if config.data == "reviews":  # a picture says its half of the label, whatever the text
            other = shuffle.integers(size, size=len(rows))
            values = data.train.values[other]
            labels = labels // 2 * 2 + data.train.labels[other] % 2
        state, metrics = step(state, (tokens, values, labels))
        if (t + 1) % max(1, steps // 5) == 0:
            if not float(metrics["finite"]):
                raise FloatingPointError(f"the loss of step {t} is not finite")
            shown = f"loss {float(metrics['loss']):.3f}, accuracy {float(metrics['accuracy']):.1%}"
            print(f"step {t + 1} of {steps}: {shown} under noise", flush=True)
    return state.params


def stages(config) -> tuple:
    """Each with the number of its samples."""
    return (SELECTION, config.num_selection), (ESTIMATION, config.num_samples)


def sample_missing(log: CountLog, config, data: mixed.Mixed, model, noise: Product, chosen) -> None:
    """Adds to the log what it lacks."""
    for example in zip(data.test.tokens, data.test.values):
        noise.check(example)

    def draw(index, stage, start, example, count):
        return sampling.sample_counts(
            draws.certification_key(config.seed, index, stage),
            model,
            example,
            noise=noise,
            num_samples=count,
            num_classes=len(data.classes),
            batch_size=config.sample_batch,
            start=start,
        )

    draws.sample_missing(
        log,
        chosen,
        lambda i: (data.test.tokens[i], data.test.values[i]),
        stages(config),
        batch_size=config.sample_batch,
        draw=draw,
    )


def mean_radii(found: hybrid.HybridCertificate, labels) -> list[float]:
    """For every number of changed tokens, with 0 for a wrong class."""
    kept = found.radius * (found.prediction == labels)[:, None]
    return kept.mean(0).tolist()


def one_class_radii(selection, estimation, *, labels, kernel, max_edits, **options) -> list[float]:
    """As `mean_radii`, with all of alpha on one class that keeps more than half, as Cohen et al. do."""
    found = gaussian.certify(selection, estimation, **options)
    correct = np.argmax(selection, -1) == labels
    return [
        float(
            np.mean(
                correct
                * hybrid.radius(
                    found.info["p_lower"], kernel=kernel, num_edits=d, sigma=options["sigma"]
                )
            )
        )
        for d in range(max_edits + 1)
    ]


def rows(config, found: hybrid.HybridCertificate, correct) -> list[dict]:
    """Certified accuracy for every number of changed tokens, at every radius."""
    result = []
    for d in range(config.max_edits + 1):
        kept = correct & (found.edits >= d)
        radius = found.radius[:, d]
        at = curves.curve(radius, kept, config.radii, alpha=config.alpha)
        result.append(
            {
                "edits": d,
                "certified": float(np.mean(kept)),
                "certified_at_radii": at.certified.tolist(),
                "mean_radius": curves.mean_radius(radius, kept),
            }
        )
    return result


def table(report: dict) -> str:
    """One line for each number of changed tokens."""
    config = report["config"]
    lines = [
        f"{len(report['examples'])} examples, {report['split']} split; accuracy without noise on all: "
        f"{report['accuracy_without_noise']:.1%}",
        f"beta {config['beta']:g}, sigma {config['sigma']:g}, alpha {config['alpha']:g}, "
        f"{config['num_selection']} and {config['num_samples']} samples; abstains: "
        f"{report['abstentions']:.1%}",
        f"radius: {report['unit']}",
        "",
        "certified at" + "".join(f"{r:>9g}" for r in (0, *config["radii"])) + "   mean radius",
    ]
    for row in report["edits"]:
        shown = (row["certified"], *row["certified_at_radii"])
        lines.append(
            f"{row['edits']:>3} edits   "
            + "".join(f"{c:9.1%}" for c in shown)
            + f"{row['mean_radius']:14.4f}"
        )
    lines += ["", "mean radius for each number of edits, by how alpha is spent:"]
    for budget, radii in report["mean_radius_of_budgets"].items():
        lines.append(f"{budget:<12}" + "".join(f"{r:9.4f}" for r in radii))
    return "\n".join(lines)


def plot(path: Path, report, found: hybrid.HybridCertificate, correct) -> None:
    """Certified accuracy over the radius, a line for each number of changed tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    config = report["config"]
    grid = np.linspace(0, max(float(found.radius.max()) * 1.05, 0.1), 300)
    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    for d in range(config["max_edits"] + 1):
        kept = correct & (found.edits >= d)
        one = curves.curve(found.radius[:, d], kept, grid, alpha=config["alpha"])
        axes.plot(grid, one.certified, label=f"{d} tokens changed", color=f"C{d % 10}")
        axes.fill_between(grid, one.lower, one.upper, color=f"C{d % 10}", alpha=0.12, lw=0)
    axes.set(xlabel=report["unit"], ylabel="certified accuracy", ylim=(0, 1), xlim=(0, grid[-1]))
    axes.set_title(f"{config['data']}, beta {config['beta']:g}, sigma {config['sigma']:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    pyplot.close(figure)
    output.write(path, image.getvalue())


def training_fields(config) -> dict:
    """What a trained network and its votes depend on."""
    stored = configs.to_dict(config)
    return {k: v for k, v in stored.items() if k not in configs.HYBRID_MEASURED}


if __name__ == "__main__":
    keep_freed_memory()
    main()
