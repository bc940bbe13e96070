"""Certifying a run by noise: a table from a log, the same after any interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import certify, smooth, train

SMALL = ["smoothing.images=12", "smoothing.num_samples=900", "smoothing.batch_size=300"]
TUNING = [
    "smoothing.tuning_images=6",
    "smoothing.tuning_samples=200",
    "smoothing.temperatures=0.1,1",
]
ROOT = Path(smooth.__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "smooth_digits"
    options = ["epochs=15", "model.hidden=64", *TUNING, *SMALL]
    with jax.numpy_dtype_promotion("standard"):
        return train.main(["smooth_digits", *options, "--run-dir", str(directory)])


@pytest.fixture(scope="module")
def report(run):
    return certify.main([str(run)])


def test_every_method_from_the_same_samples(run, report, capsys):
    methods = report["methods"]
    assert len(methods) == 7 and len(report["images"]) == 12
    for row in methods.values():
        assert row["certified"] == sorted(row["certified"], reverse=True)
        assert row["certified"][0] > 0.5 and row["mean_radius"] > 0.1
    labels = np.array(report["labels"])
    for name, each in report["per_image"].items():
        right = np.array(each["prediction"]) == labels
        mean = np.mean(np.array(each["radius"]) * right)
        np.testing.assert_allclose(mean, methods[name]["mean_radius"], rtol=1e-12)
    aware, plain = methods["soft, Lipschitz-aware"], methods["soft scores"]
    assert aware["mean_radius"] >= plain["mean_radius"]
    assert json.loads((run / "smoothing.json").read_text())["methods"] == methods
    for name in ("smoothing.png", "map.png"):
        assert (run / name).stat().st_size > 10_000


def test_from_the_log_alone_with_another_level(run, report, capsys):
    started = time.perf_counter()
    again = smooth.main([str(run)])
    assert again["methods"] == report["methods"] and again["map"] == report["map"]
    looser = smooth.main([str(run), "smoothing.alpha=0.05", "radii=0.1,0.2"])
    assert time.perf_counter() - started < 60
    for name, row in looser["methods"].items():
        assert row["mean_radius"] >= report["methods"][name]["mean_radius"]
        assert row["radius"] == [0.0, 0.1, 0.2]
    with pytest.raises(SystemExit, match="900 samples of image 0 and 1000 are asked for"):
        smooth.main([str(run), "smoothing.num_samples=1000"])
    with pytest.raises(SystemExit, match="sigma = 0.25 instead of 0.5"):
        smooth.main([str(run), "smoothing.sigma=0.5"])


def test_a_log_that_was_cut_goes_on(run, report):
    log = run / "counts.log"
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2 + 13])
    assert certify.main([str(run)])["methods"] == report["methods"]
    content = log.read_bytes()
    head = content.index(b"\n") + 1
    assert len(content) == len(whole) and content[:head] == whole[:head]


def test_other_batches_are_other_records_and_the_same_counts(run, report):
    """Votes do not depend on the batch size; scores may round differently inside the network."""
    log = run / "counts.log"
    whole = log.read_bytes()
    log.unlink()
    try:
        other = certify.main([str(run), "smoothing.batch_size=450"])
    finally:
        log.write_bytes(whole)
    for name in ("Cohen et al.", "weighted Bonferroni"):
        assert other["methods"][name] == report["methods"][name]


@pytest.mark.process
def test_a_killed_job_goes_on(run, report, tmp_path):
    log = run / "counts.log"
    whole = log.read_bytes()
    log.unlink()
    command = [sys.executable, "-m", "experiments.certify", str(run)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.stat().st_size > len(whole) // 4):
        time.sleep(0.02)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = certify.main([str(run)])
    assert again["methods"] == report["methods"]
    assert len(log.read_bytes()) == len(whole)


def test_radii_hold_against_noise_at_moved_images(run, report):
    """At half of its radius in a random direction the smoothed class is the same."""
    from experiments import config as configs
    from experiments import setup
    from lipjax.data import to_unit
    from lipjax.smoothing.sampling import sample_counts

    config = configs.read_run(run)
    data = setup.dataset(config)
    model, _, _ = certify.trained(run, config)
    rng = np.random.default_rng(0)
    with smooth.CountLog(
        run / "counts.log",
        header=json.loads((run / "counts.log").read_bytes().split(b"\n")[0])["header"],
        width=160,
    ) as log:
        sampled = smooth.collect(log, config.smoothing, np.array(report["images"]), 10)
    votes = [sampled[stage]["votes"] for stage in (0, 1)]
    found = smooth.gaussian.certify(*votes, sigma=0.25, alpha=0.001)
    draw = jax.jit(
        lambda key, x: sample_counts(
            key, lambda x: model(x), x, sigma=0.25, num_samples=600, num_classes=10, batch_size=600
        )
    )
    sure = np.flatnonzero(found.radius > 0.2)
    assert len(sure) > 3
    for i in sure:
        image = to_unit(data.test.images[report["images"][i]], 16)
        step = rng.normal(size=image.shape)
        moved = image + np.float32(found.radius[i] / 2 * step / np.linalg.norm(step))
        assert int(np.argmax(draw(jax.random.key(int(i)), moved))) == found.prediction[i]


def test_bad_options_are_named(run):
    for options, word in (
        (["smoothing.sigma=0"], "smoothing.sigma is 0"),
        (["smoothing.alpha=2.0"], "smoothing.alpha is 2"),
        (["smoothing.noise=1"], "is no field"),
        (["epochs=3"], "may not be changed here"),
    ):
        with pytest.raises(SystemExit, match=word):
            certify.main([str(run), *options])
    with pytest.raises(SystemExit, match="tuning is 0"):
        train.main(["smooth_digits", "tuning=0"])
