"""Certifying a run by noise: a table from a log, the same after any interruption."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
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
    assert len(methods) == 8 and len(report["images"]) == 12
    for row in methods.values():
        assert row["certified"] == sorted(row["certified"], reverse=True)
        assert row["certified"][0] > 0.5 and row["mean_radius"] > 0.1
    published, aware = methods["the same, as published"], methods["soft, Lipschitz-aware"]
    assert published["mean_radius"] <= aware["mean_radius"]
    labels = np.array(report["labels"])
    for name, each in report["per_image"].items():
        right = np.array(each["prediction"]) == labels
        mean = np.mean(np.array(each["radius"]) * right)
        np.testing.assert_allclose(mean, methods[name]["mean_radius"], rtol=1e-12)
    aware, plain = methods["soft, Lipschitz-aware"], methods["soft scores"]
    assert aware["mean_radius"] >= plain["mean_radius"] * 0.999  # a steep map gains nothing
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


def test_certifying_again_reads_the_log_and_writes_the_table(run, report, tmp_path):
    """A half record at the end was cut off, and the right to write was asked for."""
    log, out = run / "counts.log", tmp_path / "results" / "table.json"
    whole = log.read_bytes()
    log.write_bytes(whole + b"half")
    log.chmod(0o444)
    try:
        with smooth.CountLog(log, header=smooth.stored_header(log), width=90, read_only=True):
            for main in (smooth.main, certify.main):  # the second finds nothing to sample
                assert main([str(run), "--out", str(out)])["methods"] == report["methods"]
                table = json.loads(out.read_text())
                out.unlink()
        assert log.read_bytes() == whole + b"half"
    finally:
        log.chmod(0o644)
        log.write_bytes(whole)
    assert table["methods"] == report["methods"] and table["num_images"] == 12
    assert not {"per_image", "labels", "images", "selfcheck"} & set(table)
    assert table["platform"]["jax"] == jax.__version__ and table["config"] == report["config"]
    assert len(json.dumps(table)) < 10_000 and str(run) not in json.dumps(table)


def test_a_log_of_another_law_or_of_other_keys_is_refused(run, report, monkeypatch):
    header = smooth.stored_header(run / "counts.log")
    assert header["keys"] == "threefry2x32"
    law = smooth.noises.IntegerGaussian.finest(0.25, 16)
    assert header["noise"] == repr(law) and f"dither={law.dither}" in header["noise"]
    with jax.default_prng_impl("rbg"):
        with pytest.raises(SystemExit, match="keys = 'threefry2x32' instead of 'rbg'"):
            smooth.main([str(run)])
    other = smooth.noises.IntegerGaussian(0.25, 16)
    monkeypatch.setattr(smooth.noises.IntegerGaussian, "finest", lambda *_: other)
    with pytest.raises(
        SystemExit, match="counts.log was made with noise = 'IntegerGaussian.*refine"
    ):
        smooth.main([str(run)])


def test_fingerprints_tell_shapes_and_types():
    arrays = np.arange(6.0), np.arange(6.0).reshape(2, 3), np.arange(6.0).view(np.int64)
    arrays += ((np.arange(3.0), np.arange(3.0, 6.0)), np.arange(6.0)[:0], ())
    assert len({smooth.fingerprint(a) for a in arrays}) == len(arrays)
    assert smooth.fingerprint(jnp.arange(3)) == smooth.fingerprint(np.arange(3, dtype=np.int32))


def test_a_log_that_was_cut_goes_on(run, report):
    log = run / "counts.log"
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2 + 13])
    assert certify.main([str(run)])["methods"] == report["methods"]
    content = log.read_bytes()
    head = content.index(b"\n") + 1
    assert len(content) == len(whole) and content[:head] == whole[:head]


@pytest.mark.slow
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


def test_attacks_on_the_smoothed_classifier_stay_outside_of_its_radii(run, report):
    """Inside no attack changes the class; four times as far most do."""
    from experiments import config as configs
    from experiments import setup
    from lipjax.data import to_unit
    from lipjax.smoothing.sampling import sample_counts

    config = configs.read_run(run)
    data = setup.dataset(config)
    model, _, _ = certify.trained(run, config)
    with smooth.CountLog(
        run / "counts.log", header=smooth.stored_header(run / "counts.log"), width=90
    ) as log:
        sampled = smooth.collect(log, config.smoothing, np.array(report["images"]), 10)
    votes = [sampled[stage]["votes"] for stage in (0, 1)]
    found = smooth.gaussian.certify(*votes, sigma=0.25, alpha=0.001)

    @jax.jit
    def draw(key, x):
        options = dict(sigma=0.25, num_samples=600, num_classes=10, batch_size=600)
        return sample_counts(key, lambda x: model(x), x, **options)

    @jax.jit
    def uphill(key, x, label):
        """The step against the smoothed score of the class that Gaussian noise differentiates."""

        def score(x):
            noise = 0.25 * jax.random.normal(key, (256, *x.shape))
            return jnp.mean(jax.nn.softmax(model(x[None] + noise), axis=-1)[:, label])

        return -jax.grad(score)(x)

    def attacked(image, label, budget, key):
        """Twenty steps of gradient descent on the smoothed score, kept within the budget."""
        delta = np.zeros(image.shape, np.float32)
        for step in range(20):
            slope = np.asarray(uphill(jax.random.fold_in(key, step), image + delta, label))
            delta = delta + np.float32(budget / 5) * slope / max(np.linalg.norm(slope), 1e-12)
            delta = delta * np.float32(min(1, budget / np.linalg.norm(delta)))
        return image + delta

    sure = np.flatnonzero(found.radius > 0.2)
    assert len(sure) > 3
    broken = 0
    for i in sure:
        image = np.asarray(to_unit(data.test.images[report["images"][i]], 16))
        key, label = jax.random.key(int(i)), int(found.prediction[i])
        inside = attacked(image, label, found.radius[i] * 0.99, key)
        assert int(np.argmax(draw(key, inside))) == label
        outside = attacked(image, label, found.radius[i] * 4, key)
        broken += int(np.argmax(draw(key, outside))) != label
    assert broken >= len(sure) / 2  # the attack is one


def test_a_refused_command_changes_nothing(run, report):
    """The choice of the map was overwritten before the log was looked at."""
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    for options in (
        ["smoothing.sigma=0.5"],
        ["smoothing.exact=False"],
        ["smoothing.sigma=0.5", "smoothing.temperatures=7.0"],
    ):
        with pytest.raises(SystemExit, match="counts.log was made with"):
            smooth.main([str(run), *options])
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before
    again = smooth.main([str(run)])
    assert again["methods"] == report["methods"]


def test_a_map_that_is_asked_for_later_is_not_taken(run, report, capsys):
    again = smooth.main([str(run), "smoothing.temperatures=7.0"])
    assert again["map"] == report["map"]
    assert "the map of soft scores stays" in capsys.readouterr().out


@pytest.mark.few(1)
@pytest.mark.parametrize("content", ["{}", '{"map": ["soft', '{"map": ["none", 1], "rows": []}'])
def test_a_log_is_worth_more_than_the_choice_of_its_map(run, report, content, capsys):
    path = run / "map.json"
    whole = path.read_bytes()
    path.write_text(content)
    try:
        for _ in range(2):  # damaged, then gone: the log knows the map
            assert smooth.main([str(run)])["methods"] == report["methods"]
            assert "does not hold the map of counts.log" in capsys.readouterr().out
            path.unlink(missing_ok=True)
        log, kept = run / "counts.log", (run / "counts.log").read_bytes()
        path.write_text(content)
        log.unlink()
        with pytest.raises(SystemExit, match="has no samples yet; draw them with"):
            smooth.main([str(run), "smoothing.sigma=0.5"])
        assert not log.exists() and path.read_text() == content
        with pytest.raises(SystemExit, match="holds no choice of a map; delete it"):
            certify.main([str(run)])
        log.write_bytes(kept)
    finally:
        path.write_bytes(whole)


def test_a_log_of_other_images_is_refused(run, report, monkeypatch):
    from experiments import setup

    load = setup.dataset

    def shuffled(*arguments):
        data = load(*arguments)
        order = np.arange(len(data.test.labels))[::-1]
        test = data.test._replace(images=data.test.images[order], labels=data.test.labels[order])
        return dataclasses.replace(data, test=test)

    monkeypatch.setattr(setup, "dataset", shuffled)
    with pytest.raises(SystemExit, match="counts.log was made with data = "):
        smooth.main([str(run)])


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
