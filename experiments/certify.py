"""Certify a trained network: `python -m experiments.certify RUN [--data-dir DIR]`.

RUN is a run directory of `experiments.train`; `radii`, `attack_images`, `attack_steps` and the fields
of `smoothing` may be changed by `field=value`. A config with `smoothing` is certified by randomized
smoothing, see `experiments.smooth`. Otherwise certifies every test image, attacks them at the same
radii and at each image's own certified radius, prints a table and writes `certificates.json` and
`certified_accuracy.png` beside the checkpoints; with `--out FILE`, also the table, as a
small file.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import config as configs
from experiments import output, setup
from experiments._memory import keep_freed_memory
from lipjax import margin, nn, selfcheck
from lipjax._numerics import on_host_float64
from lipjax.attacks import pgd
from lipjax.data import to_unit
from lipjax.training.checkpoint import Checkpoints
from lipjax.typing import ABSTAIN

BATCH = 256
FLOAT64_IMAGES = 128
"""Images whose logits are computed a second time, in float64, to measure the rounding."""


class Evaluation(NamedTuple):
    """What was found for each test image, NumPy arrays of length n (attacks: of a first part).

    Attributes:
        labels: The true classes.
        predictions: The predicted classes, or ABSTAIN.
        radii: Certified l2 radii of the predictions.
        robust: `bool[len(radii of the config), k]`: correct and not broken by the attack.
        broken: `bool[k]`: broken inside its own certified radius. True refutes the certificate.
    """

    labels: np.ndarray
    predictions: np.ndarray
    radii: np.ndarray
    robust: np.ndarray
    broken: np.ndarray


def main(arguments=None) -> dict:
    """Certifies a run and returns the report that it wrote."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.certify",
        usage="%(prog)s RUN [field=value ...] [--data-dir DIR] [--out FILE]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", metavar="RUN [field=value ...]", nargs="*")
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, help="also write the table, without single images")
    args = parser.parse_intermixed_args(arguments)
    if not args.words:
        parser.error("RUN is missing; it must be the directory of a run")
    run, *assignments = Path(args.words[0]), *args.words[1:]
    try:
        config = configs.override(configs.read_run(run), assignments, only=configs.MEASURED)
        if config.smoothing is not None:
            from experiments import smooth

            report = smooth.certify_run(run, config, args.data_dir)
        else:
            report = certify_run(run, config, args.data_dir)
        if args.out is not None:
            output.write_table(args.out, report)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the log")
    broken = report.get("certified_radii_broken_by_the_attack", 0)
    if broken:
        sys.exit(f"error: the attack broke {broken} certified radii: the certificate is wrong")
    return report


def certify_run(run_dir: Path, config: configs.RunConfig, data_dir=None) -> dict:
    """Certifies and attacks the network of a run; prints the table and writes the files."""
    started = time.time()
    checked = selfcheck.run()
    if not checked.ok:
        raise ValueError(f"this platform computes wrong numbers:\n{checked}")
    data = setup.dataset(config, data_dir)
    model, step, last = trained(run_dir, config)
    bound = model.feature_bound()
    error = logit_error(model, data)
    with jax.default_matmul_precision("highest"):
        found = evaluate(config, model, bound, error, data)
    report = {
        "config": configs.to_dict(config),
        "step": step,
        "num_steps": last,
        "split": "validation (held out)" if config.hold_out else "test",
        "data_notes": list(data.notes),
        "feature_bound": {"value": float(bound.value), "kind": bound.kind},
        "logit_error": {"value": error, "kind": "estimate", "images": FLOAT64_IMAGES},
        "num_images": len(found.labels),
        "attacked_images": len(found.broken),
        "abstentions": int(np.sum(found.predictions == ABSTAIN)),
        "certified_radii_broken_by_the_attack": int(np.sum(found.broken)),
        "rows": rows(config, found),
        "seconds": round(time.time() - started, 1),
        "selfcheck": checked.to_dict(),
        "labels": found.labels.tolist(),
        "predictions": found.predictions.tolist(),
        "radii": [float(r) if np.isfinite(r) else str(r) for r in found.radii],
    }
    if config.data == "digits":
        from experiments import linear

        report["linear"] = linear.best_per_radius(data, (0.0, *config.radii))
    print(output.table(report, bound))
    output.write(run_dir / "certificates.json", json.dumps(report, allow_nan=False).encode())
    correct = found.predictions == found.labels
    output.plot(run_dir / "certified_accuracy.png", report, correct, found.radii)
    print(
        f"certificates  {run_dir}/certificates.json\nfigure        {run_dir}/certified_accuracy.png"
    )
    return report


def trained(run_dir: Path, config: configs.RunConfig):
    """The frozen network of a run, the step it is of, and the last one of the training."""
    model = setup.network(config)
    if not (run_dir / "checkpoints").is_dir():
        raise ValueError(f"RUN is {str(run_dir)!r}, which holds no checkpoint.")
    with Checkpoints(run_dir / "checkpoints", every=1) as checkpoints:
        step = checkpoints.latest_step
        trained_with = checkpoints.config
        restored = checkpoints.restore_latest(model, part=".params")
    if restored is None:
        raise ValueError(f"RUN is {str(run_dir)!r}, which holds no checkpoint.")
    refuse_other_config(run_dir, config, trained_with)
    last = trained_with["num_steps"]
    if step < last:
        print(f"note: this run is unfinished, at step {step} of {last}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored.state):
        if not bool(jnp.isfinite(leaf).all()):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{run_dir}/checkpoints: {name} holds NaN or infinite numbers.")
    return nn.freeze(restored.state), step, last


def refuse_other_config(run_dir: Path, config: configs.RunConfig, trained_with: dict) -> None:
    """An error if `config.json` is not what the checkpoint says the run was trained with."""
    for name, value in configs.to_dict(config).items():
        if name not in configs.MEASURED and trained_with.get(name, value) != value:
            raise ValueError(
                f"{run_dir}/config.json has {name} = {value!r}, but the checkpoint was trained with "
                f"{trained_with[name]!r}; restore the file."
            )


def logit_error(model, data) -> float:
    """Twice the largest measured difference between float32 and float64 logits: an estimate."""
    images = to_unit(data.test.images[:FLOAT64_IMAGES], data.max_value)
    with jax.default_matmul_precision("highest"):
        single = jax.jit(lambda m, x: m(x))(model, images)
    double = on_host_float64(lambda m, x: m(x), model, images)
    return 2 * float(np.max(np.abs(np.asarray(single, np.float64) - double)))


def certificates(model, bound, error, data) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (or ABSTAIN) and certified radii of all test images."""

    @jax.jit
    def certify(model, images):
        head = model.class_vectors()
        return jax.vmap(lambda f: margin.certify(f, lipschitz=bound, head=head, logit_error=error))(
            model(to_unit(images, data.max_value))
        )

    parts = [certify(model, part) for part in _batches(data.test.images)]
    predictions, radii = (
        np.concatenate([np.asarray(getattr(part, name)) for part in parts])
        for name in ("prediction", "radius")
    )
    return predictions[: len(data.test.labels)], radii[: len(data.test.labels)]


def evaluate(config, model, bound, error, data) -> Evaluation:
    """Certifies all test images and attacks the first `config.attack_images` (0: all)."""
    # XLA's CPU backend runs convolutions inside loops many times slower.
    convolutional = getattr(config.model, "conv_depth", 1) > 0
    unroll = convolutional and jax.default_backend() == "cpu"

    @jax.jit
    def attack(key, model, images, labels, eps):
        found = pgd(
            key,
            model,
            to_unit(images, data.max_value),
            labels,
            eps=eps,
            num_steps=config.attack_steps,
            unroll=unroll,
        )
        return found.success

    images, labels = data.test.images, data.test.labels
    predictions, radii = certificates(model, bound, error, data)
    count = min(config.attack_images or len(labels), len(labels))
    key = jax.random.key(config.seed)

    def succeeded(eps, targets):
        parts = zip(_batches(images[:count]), _batches(targets[:count]), _batches(eps[:count]))
        done = [attack(key, model, *part) for part in parts]
        return np.concatenate([np.asarray(d) for d in done])[:count]

    correct = predictions == labels
    robust = [correct[:count]]
    for eps in config.radii:
        robust.append(robust[-1] & ~succeeded(np.full(len(labels), eps, np.float32), labels))
    # The strongest test of a certificate: attack its prediction at its own radius. An infinite
    # radius, which no image has, would be attacked in the whole box.
    own = np.where(predictions == ABSTAIN, 0, radii).astype(np.float32)
    broken = succeeded(own, np.maximum(predictions, 0)) & (own[:count] > 0)
    return Evaluation(labels, predictions, radii, np.stack(robust), broken)


def rows(config, found: Evaluation) -> list[dict]:
    """Certified and attacked accuracy at radius 0 and at the radii of the config."""
    correct = jnp.asarray(found.predictions == found.labels)
    radii = (0.0, *config.radii)
    certified = [float(jnp.mean(correct))]
    certified += map(
        float, margin.certified_accuracy(found.radii, correct, np.float32(config.radii))
    )
    count = len(found.broken)
    subset = [float(np.mean(correct[:count]))]
    subset += map(
        float,
        margin.certified_accuracy(found.radii[:count], correct[:count], np.float32(config.radii)),
    )
    return [
        {"radius": r, "certified": c, "certified_of_attacked": s, "attacked": float(np.mean(a))}
        for r, c, s, a in zip(radii, certified, subset, found.robust)
    ]


def _batches(array):
    """Parts of `BATCH` rows; the last is filled up with its last row."""
    for start in range(0, len(array), BATCH):
        part = array[start : start + BATCH]
        missing = BATCH - len(part)
        yield np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part


if __name__ == "__main__":
    keep_freed_memory()
    main()
