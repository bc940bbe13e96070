"""Certify a run by randomized smoothing; `python -m experiments.certify RUN` does it where the config of
the run has `smoothing`.

Chooses the map of soft scores on images kept from training, samples votes and scores of test images
into a log, `counts.log`, and certifies them with every method from the same samples. A stopped job goes
on from the log. `python -m experiments.smooth RUN` certifies from the log alone, with other levels or
radii (`smoothing.alpha=0.01`, `radii=0.5,1`), in seconds; the log is only read. Writes `smoothing.json`,
`smoothing.png` and, about the choice of the map, `map.png`; with `--out FILE`, also the table, as a
small file.
"""

import argparse
import functools
import hashlib
import io
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import config as configs
from experiments import draws, output, setup
from experiments._memory import keep_freed_memory
from lipjax import margin, selfcheck, spectral
from lipjax.data import to_unit
from lipjax.smoothing import curves, gaussian, lipschitz, multiclass, sampling, simplex, soft
from lipjax.smoothing import noise as noises
from lipjax.smoothing.log import ESTIMATION, SELECTION, CountLog, stored_header
from lipjax.smoothing.sampling import Moments
from lipjax.typing import Bound

MAPS = ("softmax", "sparsemax", "entmax")
BANDS = ("auto (the default)", "soft scores", "soft, Lipschitz-aware")
"""Methods whose confidence band is drawn."""


def main(arguments=None) -> dict:
    """Certifies from the log of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.smooth",
        usage="%(prog)s RUN [field=value ...] [--data-dir DIR] [--out FILE]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", metavar="RUN [field=value ...]", nargs="+")
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, help="also write the table, without single images")
    args = parser.parse_intermixed_args(arguments)
    run, *assignments = Path(args.words[0]), *args.words[1:]
    try:
        config = configs.override(configs.read_run(run), assignments, only=configs.MEASURED)
        if config.smoothing is None:
            raise ValueError(f"RUN is {str(run)!r}, whose config has no smoothing.")
        report = certify_run(run, config, args.data_dir, sample=False)
        if args.out is not None:
            output.write_table(args.out, report)
        return report
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def certify_run(run_dir: Path, config: configs.RunConfig, data_dir=None, *, sample=True) -> dict:
    """Samples what is missing (if asked to), certifies, prints the table and writes the files."""
    from experiments import certify

    started = time.time()
    checked = selfcheck.run()
    if not checked.ok:
        raise ValueError(f"this platform computes wrong numbers:\n{checked}")
    settings = config.smoothing
    data = setup.dataset(config, data_dir)
    model, step, _ = certify.trained(run_dir, config)
    count = min(settings.images or len(data.test.labels), len(data.test.labels))
    chosen = np.linspace(0, len(data.test.labels) - 1, count).round().astype(int)
    bound = logit_bound(model, data)
    header = {
        "config": {k: v for k, v in configs.to_dict(config).items() if k not in configs.MEASURED},
        "sigma": settings.sigma,
        "exact": settings.exact,
        "weights": fingerprint(model),
        "step": step,
        "data": fingerprint((data.test.images, data.test.labels)),
    } | draws.law(noise_of(settings, data), config.seed)
    tuned = choose(run_dir, config, model, data, bound, data_dir, header, sample)
    header["map"] = list(tuned["map"])
    classes = config.model.num_classes
    needed = chosen, stages(settings)
    options = dict(header=header, width=9 * classes, sample=sample)
    with draws.opened(run_dir / "counts.log", *needed, **options) as log:
        if not log.read_only:
            sample_missing(log, config, model, data, chosen, tuned["map"])
        sampled = collect(log, settings, chosen, classes)
    labels = data.test.labels[chosen]
    sampling_seconds = time.time() - started
    started = time.time()
    found = certificates(config, sampled, tuned["map"], bound, data, classes)
    post = time.time() - started
    margins = margin_certificates(model, data, chosen) if hasattr(model, "feature_bound") else None
    if margins is not None:
        found["margin, without noise"] = margins
    report = {
        "config": configs.to_dict(config),
        "step": step,
        **{name: header[name] for name in ("weights", "data", "noise", "keys")},
        "images": chosen.tolist(),
        "map": list(tuned["map"]),
        "trade_off": tuned["rows"],
        "logit_bound": {"value": float(bound.value), "kind": bound.kind},
        "seconds": round(sampling_seconds, 1),
        "seconds_of_certificates": round(post, 3),
        "selfcheck": checked.to_dict(),
        "methods": {
            name: summary(config, prediction, radius, labels, alpha)
            for name, (prediction, radius, alpha) in found.items()
        },
        "labels": labels.tolist(),
        "per_image": {
            name: {
                "prediction": np.asarray(prediction).tolist(),
                "radius": [float(r) if np.isfinite(r) else str(r) for r in radius],
            }
            for name, (prediction, radius, _) in found.items()
        },
    }
    print(table(report))
    output.write(run_dir / "smoothing.json", json.dumps(report, allow_nan=False).encode())
    plot(run_dir / "smoothing.png", report, found, labels)
    if tuned["rows"]:
        plot_trade_off(run_dir / "map.png", tuned["rows"], tuned["map"])
    print(
        f"certificates  {run_dir}/smoothing.json\nfigures       {run_dir}/smoothing.png, "
        f"{run_dir}/map.png (choice of the map)"
    )
    return report


def noise_of(settings, data):
    """The noise on a test image, of integers or of floats in [0, 1]."""
    if settings.exact:
        return noises.IntegerGaussian.finest(settings.sigma, data.max_value)
    return noises.Gaussian(settings.sigma)


def stages(settings) -> tuple:
    """Each with the number of its samples."""
    return (SELECTION, settings.num_selection), (ESTIMATION, settings.num_samples)


def logit_bound(model, data) -> Bound:
    """A proved bound on the logits: the model's own, or the product that `network_bound` finds."""
    if hasattr(model, "bound"):
        return model.bound()
    example = to_unit(data.test.images[:1], data.max_value)
    return spectral.network_bound(lambda x: model(x), example).bound


def choose(run_dir, config, model, data, bound, data_dir, header, sample) -> dict:
    """The map of soft scores, chosen once on images that are neither trained on nor certified.

    Where samples were counted already their map stays: a level or a number of samples that is changed
    later must not change the classifier. A log of other things is refused before anything is written.
    """
    settings = config.smoothing
    fields = ("sigma", "alpha", "num_samples", "tuning_images", "tuning_samples", "temperatures")
    wanted = {name: getattr(settings, name) for name in fields} | {"weights": fingerprint(model)}
    wanted = json.loads(json.dumps(wanted))
    path, counted = run_dir / "map.json", run_dir / "counts.log"
    known = stored_header(counted)
    if known is None and not sample:
        raise ValueError(
            f"RUN is {str(run_dir)!r}, which has no samples yet; draw them with "
            f"python -m experiments.certify {run_dir}"
        )
    if known is not None:
        name, temperature = known.get("map") or (None, 0)
        if name not in MAPS or not temperature > 0:
            raise ValueError(f"path is {str(counted)!r}, whose header has no map of soft scores.")
        asked = json.loads(json.dumps(header))
        others = [
            f"{name} = {known.get(name)!r} instead of {value!r}"
            for name, value in asked.items()
            if known.get(name) != value
        ]
        if others:
            raise ValueError(
                f"RUN is {str(run_dir)!r}, whose counts.log was made with {', '.join(others)}; train "
                "into another --run-dir, or delete counts.log."
            )
    stored = read_map(path, strict=known is None)
    if stored is not None:
        fits = all(stored["settings"].get(name) == wanted[name] for name in ("sigma", "weights"))
        if fits if known is None else stored["map"] == known["map"]:
            if stored["settings"] != wanted:
                print(
                    f"note: the map of soft scores stays that of {path}, chosen with other settings; "
                    "delete that file and counts.log to choose again"
                )
            return {"map": tuple(stored["map"]), "rows": stored["rows"]}
    if known is not None:
        print(
            f"note: {path} does not hold the map of counts.log, which stays, nor how it was chosen"
        )
        return {"map": (str(known["map"][0]), float(known["map"][1])), "rows": []}
    held = setup.tuning_split(config, data_dir)
    size = min(settings.tuning_images, len(held.labels))
    with jax.default_matmul_precision("highest"):  # the constant is that of the exact network
        found = soft.trade_off(
            jax.random.key(config.seed + 1),
            lambda x: model(x),
            to_unit(held.images[:size], data.max_value),
            held.labels[:size],
            maps=[(name, t) for name in MAPS for t in settings.temperatures],
            sigma=settings.sigma,
            alpha=settings.alpha,
            num_samples=settings.tuning_samples,
            num_classes=config.model.num_classes,
            batch_size=settings.tuning_samples,
            planned_samples=settings.num_samples,
            lipschitz=bound,
        )
    columns = (found.spread, found.margin, found.constant, found.radius)
    rows = [
        {"map": name, "temperature": t, "spread": s, "margin": m, "constant": c, "radius": r}
        for (name, t), s, m, c, r in zip(found.maps, *map(np.ndarray.tolist, columns))
    ]
    stored = {"settings": wanted, "map": list(found.best), "rows": rows}
    output.write(path, json.dumps(stored).encode())
    return {"map": found.best, "rows": rows}


def read_map(path: Path, *, strict: bool) -> dict | None:
    """The stored choice of the map; None where there is none, or unless `strict` a damaged one."""
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
        name, temperature = stored["map"]
        columns = ("map", "temperature", "spread", "margin", "constant", "radius")
        rows = [{c: row[c] for c in columns} for row in stored["rows"]]
        if name not in MAPS or not temperature > 0:
            raise ValueError
        return {"map": [name, temperature], "rows": rows, "settings": dict(stored["settings"])}
    except (ValueError, KeyError, TypeError) as error:
        if not strict:
            return None
        raise ValueError(
            f"path is {str(path)!r}, which holds no choice of a map; delete it."
        ) from error


def sample_missing(log: CountLog, config, model, data, chosen, chosen_map) -> None:
    """Adds to the log what it lacks."""
    settings = config.smoothing
    classes, size = config.model.num_classes, settings.batch_size
    name, temperature = chosen_map
    score = functools.partial(getattr(simplex, name), temperature=temperature)
    noise = noise_of(settings, data)
    images = data.test.images
    if not settings.exact:
        images = np.asarray(to_unit(images, data.max_value))

    def draw(index, stage, start, image, count):
        counts, found = sampling.sample_both(
            draws.certification_key(config.seed, index, stage),
            lambda x: model(x),
            image,
            score=score,
            noise=noise,
            num_samples=count,
            num_classes=classes,
            batch_size=size,
            start=start,
        )
        return jnp.concatenate([counts, found.total.reshape(-1), found.squares.reshape(-1)])

    wanted = stages(settings)
    with jax.default_matmul_precision("highest"):
        draws.sample_missing(log, chosen, lambda i: images[i], wanted, batch_size=size, draw=draw)


def collect(log: CountLog, settings, chosen, classes) -> dict:
    """Moments of both stages for all images, from the log."""
    found = {}
    for stage, wanted in stages(settings):
        missing = [i for i in chosen.tolist() if log.done(i, stage) != wanted]
        if missing:
            raise ValueError(
                f"counts.log has {log.done(missing[0], stage)} samples of image {missing[0]} and "
                f"{wanted} are asked for ({len(missing)} images in all); sample them with "
                "experiments.certify, or ask for as many as there are."
            )
        sums = np.stack([log.total(i, stage) for i in chosen.tolist()])
        parts = sums.reshape(len(chosen), 9, classes)
        count = np.full(len(chosen), wanted)
        found[stage] = {
            "votes": parts[:, 0],
            "scores": Moments(count, parts[:, 1:4], parts[:, 4:]),
        }
    return found


def certificates(config, sampled, chosen_map, bound: Bound, data, classes) -> dict:
    """Prediction, radius and alpha of every method, from the same samples."""
    settings = config.smoothing
    first, second = sampled[SELECTION], sampled[ESTIMATION]
    constant = simplex.component(chosen_map[0], temperature=chosen_map[1], num_classes=classes)
    of_scores = bound * Bound(constant * (1 + 1e-6), "upper")
    whole = simplex.whole(chosen_map[0], temperature=chosen_map[1], num_classes=classes)
    of_margins = bound * Bound(np.sqrt(2) * whole * (1 + 1e-6), "upper")
    law_error = slope_error = 0.0
    if settings.exact:
        noise = noise_of(settings, data)
        size = int(np.prod(config.model.image_shape))
        law_error = noise.law_error(size)
        if np.isfinite(of_scores.value):
            slope_error = noise.law_error(size, lipschitz=float(of_scores.value))
    options = dict(sigma=settings.sigma, alpha=settings.alpha)
    soft_options = options | {"law_error": law_error}
    options = soft_options | {"num_samples": settings.num_samples}
    votes = first["votes"], second["votes"]
    found = {"Cohen et al.": gaussian.certify(*votes, **options)}
    for budget, name in (
        ("bonferroni", "Bonferroni"),
        ("partition", "class partition"),
        ("weighted", "weighted Bonferroni"),
        ("auto", "auto (the default)"),
    ):
        found[name] = multiclass.certify(*votes, budget=budget, **options)
    soft_counts = first["scores"], second["scores"]
    found["soft scores"] = soft.certify(*soft_counts, **soft_options)
    constants = dict(lipschitz=of_scores, margin_lipschitz=of_margins)
    aware = soft.certify(*soft_counts, **constants, slope_error=slope_error, **soft_options)
    found["soft, Lipschitz-aware"] = aware
    own, other = aware.info["p_lower"], aware.info["p_upper"]
    if not aware.info["lipschitz_used"].all():
        own, other = np.maximum(own - slope_error, 0), np.minimum(other + slope_error, 1)
    published = lipschitz.published_radius(own, other, lipschitz=of_scores, sigma=settings.sigma)
    found["the same, as published"] = aware._replace(
        prediction=np.where(published > 0, aware.prediction, -1), radius=published
    )
    return {name: (c.prediction, c.radius, settings.alpha) for name, c in found.items()}


def margin_certificates(model, data, chosen):
    """Without noise, from the margin of a network that is Lipschitz."""
    from experiments import certify

    head, bound = model.class_vectors(), model.feature_bound()
    error = certify.logit_error(model, data)
    with jax.default_matmul_precision("highest"):
        features = model(to_unit(data.test.images[chosen], data.max_value))
        found = jax.vmap(
            lambda f: margin.certify(f, lipschitz=bound, head=head, logit_error=error)
        )(features)
    return np.asarray(found.prediction), np.asarray(found.radius, np.float64), 0.0


def summary(config, prediction, radius, labels, alpha) -> dict:
    """Certified accuracy at the radii of the config, with bounds, and the mean radius."""
    correct = prediction == labels
    at = (0.0, *config.radii)
    found = curves.curve(radius, correct, at, alpha=alpha)
    return {
        "radius": list(at),
        "certified": found.certified.tolist(),
        "these": found.these.tolist(),
        "lower": found.lower.tolist(),
        "upper": found.upper.tolist(),
        "mean_radius": curves.mean_radius(radius, correct),
        "abstentions": float(np.mean(prediction == -1)),
    }


def table(report: dict) -> str:
    """All methods, one a line."""
    settings = report["config"]["smoothing"]
    bound = report["logit_bound"]
    lines = [
        f"{len(report['images'])} test images, sigma {settings['sigma']:g}, alpha "
        f"{settings['alpha']:g}, {settings['num_selection']} and {settings['num_samples']} samples, "
        f"noise on {'integers' if settings['exact'] else 'floats'}",
        f"scores: {report['map'][0]} at temperature {report['map'][1]:g}; proved Lipschitz bound of the "
        f"logits {bound['value']:.4g} ({bound['kind']})",
        "",
    ]
    radii = next(iter(report["methods"].values()))["radius"]
    lines.append(
        f"{'certified accuracy at':<24}"
        + "".join(f"{output._name(r) if r else '0':>8}" for r in radii)
        + "   mean radius  abstains"
    )
    for name, row in report["methods"].items():
        lines.append(
            f"{name:<24}"
            + "".join(f"{c:8.1%}" for c in row["certified"])
            + f"{row['mean_radius']:14.4f}{row['abstentions']:10.1%}"
        )
    return "\n".join(lines)


def plot(path: Path, report, found, labels) -> None:
    """Certified accuracy of every method, and the bands of the main ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    largest = max(float(np.max(r[np.isfinite(r)])) for _, r, _ in found.values())
    grid = np.linspace(0, max(1.05 * largest, 0.1), 300)
    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    for i, (name, (prediction, radius, alpha)) in enumerate(found.items()):
        one = curves.curve(radius, prediction == labels, grid, alpha=alpha)
        style = "--" if name.startswith("margin") else "-"
        axes.plot(grid, one.certified, style, label=name, color=f"C{i}")
        if name in BANDS:
            axes.fill_between(grid, one.lower, one.upper, color=f"C{i}", alpha=0.12, lw=0)
    settings = report["config"]["smoothing"]
    axes.set(
        xlabel="l2 radius (pixels in [0, 1])",
        ylabel="certified accuracy",
        ylim=(0, 1),
        xlim=(0, grid[-1]),
        title=f"{report['config']['data']}, sigma {settings['sigma']:g}",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    pyplot.close(figure)
    output.write(path, image.getvalue())


def plot_trade_off(path: Path, rows: list[dict], best) -> None:
    """Variance, margin, Lipschitz constant and radius of every map that was tried."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "spread": "standard deviation",
        "margin": "margin",
        "constant": "Lipschitz constant",
        "radius": "mean radius",
    }
    figure, all_axes = pyplot.subplots(1, 4, figsize=(11, 2.8))
    for axes, (column, title) in zip(all_axes, titles.items()):
        for i, name in enumerate(MAPS):
            line = [(row["temperature"], row[column]) for row in rows if row["map"] == name]
            axes.plot(*zip(*line), "o-", ms=3, color=f"C{i}", label=name)
            for t, value in line:
                if (name, t) == tuple(best):
                    axes.plot(t, value, "k*", ms=11, label="chosen")
        axes.set(xscale="log", xlabel="temperature", title=title)
        axes.grid(alpha=0.3)
    all_axes[2].set_yscale("log")
    all_axes[0].legend(fontsize=8)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    pyplot.close(figure)
    output.write(path, image.getvalue())


def fingerprint(model) -> str:
    """Of all arrays of a network or a data set, their shapes and their types."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model):
        leaf = np.asarray(leaf)
        digest.update(f"{leaf.dtype} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    keep_freed_memory()
    main()
