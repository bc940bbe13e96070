"""The whole loop: neither chunks nor kills change a bit of what comes out."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import digits_run
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from digits_run import NUM_STEPS, train

from experiments.loops import supervised
from lipjax.data import Split, load
from lipjax.training import read_json_lines

ROOT = Path(supervised.__file__).parents[2]


def outcome(run_dir, state):
    """Everything that must not differ: the bits of the state and the bytes of the metrics."""
    state = state._replace(key=jax.random.key_data(state.key))
    bits = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    return bits, (run_dir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("reference")
    return outcome(run_dir, train(run_dir, num_steps=90))


def test_it_learns_and_says_so(tmp_path, reference):
    train(tmp_path, num_steps=90)
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 90]
    assert set(lines[0]) == {"step", "loss", "accuracy", "skipped"}
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["accuracy"] > 0.5
    assert all(line["skipped"] == 0 for line in lines)


@pytest.mark.few(1)
@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 64}, {"checkpoint_every": 13}])
def test_chunks_and_checkpoints_do_not_change_a_bit(tmp_path, reference, options):
    assert outcome(tmp_path, train(tmp_path, num_steps=90, **options)) == reference


def test_another_seed_changes_bits(tmp_path, reference):
    """The control: the comparison notices a difference."""
    bits, lines = outcome(tmp_path, train(tmp_path, num_steps=90, seed=4))
    assert bits != reference[0] and lines != reference[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_goes_on(tmp_path, reference, monkeypatch, capsys, number):
    def interrupting(seed, step, **sizes):
        if step == 39:
            signal.raise_signal(number)
        return indices(seed, step, **sizes)

    indices = supervised.batch_indices
    monkeypatch.setattr(supervised, "batch_indices", interrupting)
    with pytest.raises(SystemExit) as left:
        train(tmp_path, num_steps=90)
    assert left.value.code == 128 + number
    assert "stopped at step 35; saved in" in capsys.readouterr().err
    monkeypatch.setattr(supervised, "batch_indices", indices)
    assert outcome(tmp_path, train(tmp_path, num_steps=90)) == reference


def test_a_finished_run_is_returned_as_it_is(tmp_path, reference, monkeypatch):
    train(tmp_path, num_steps=90)
    monkeypatch.setattr(supervised.JsonLines, "write", None)  # nothing is trained any more
    assert outcome(tmp_path, train(tmp_path, num_steps=90)) == reference


def test_another_run_is_refused(tmp_path):
    train(tmp_path, num_steps=5, config={"width": 32})
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    digits = load("digits").train
    changed = Split(digits.images + np.uint8(1), digits.labels)
    for options, message in [
        ({"config": {"width": 33}}, "width = 32; here width = 33"),
        ({"config": {"width": 32}, "seed": 4}, "seed = 3; here seed = 4"),
        ({"config": {"width": 32}, "split": changed}, "data_checksum = "),
        ({"config": {"width": 32}, "resume": False}, "holds a run at step 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(tmp_path, num_steps=5, **options)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_a_bad_loss_function_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(digits_run, "loss_fn", lambda weights, batch, key: jnp.sum(batch.images))
    with pytest.raises(ValueError, match=r"it must return .loss, metrics."):
        train(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_the_step_is_traced_once(tmp_path, monkeypatch):
    traces = []
    loss_fn = digits_run.loss_fn
    counting = lambda *args: traces.append(1) or loss_fn(*args)  # noqa: E731
    monkeypatch.setattr(digits_run, "loss_fn", counting)
    train(tmp_path, num_steps=20)
    train(tmp_path, num_steps=20)
    assert len(traces) == 2


def test_a_run_that_is_never_finite_gives_up(tmp_path):
    with pytest.raises(FloatingPointError, match="20 steps up to step 20"):
        split = Split(np.zeros((10, 2, 2, 1), np.uint8), np.zeros(10, np.int32))
        supervised.train(
            np.ones(2, np.float32),
            lambda weights, batch, key: (np.float32(np.nan) * weights.sum(), {}),
            split,
            max_value=255,
            optimizer=optax.sgd(0.1),
            num_steps=100,
            batch_size=4,
            seed=0,
            run_dir=tmp_path,
            chunk=5,
            log_every=10,
        )
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert lines == [{"step": 10, "skipped": 10}, {"step": 20, "skipped": 10}]


@pytest.mark.every
@pytest.mark.parametrize(
    "split, message",
    [
        (Split(np.zeros((10, 4), np.uint8), np.zeros(10, np.int32)), "images has shape"),
        (Split(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32)), "images has shape"),
        (Split(np.zeros((9, 2, 2, 1), np.uint8), np.zeros(8, np.int32)), "labels has shape"),
        (Split(np.zeros((9, 8, 8, 1), np.float32), np.zeros(9, np.int32)), "must be uint8"),
    ],
)
def test_bad_data_is_refused_and_nothing_is_written(tmp_path, split, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", split=split)
    assert not list(tmp_path.iterdir())


def start(run_dir, seconds_per_step=0.0):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("digits_run.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(run_dir), str(seconds_per_step)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child):
    _, errors = child.communicate(timeout=120)
    return child.returncode, errors


def latest_checkpoint(run_dir):
    folder = run_dir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def wait_for_checkpoint(child, run_dir):
    deadline = time.monotonic() + 120
    while not latest_checkpoint(run_dir):
        assert child.poll() is None, finish(child)
        assert time.monotonic() < deadline
        time.sleep(0.005)


def results(run_dir):
    with np.load(run_dir / "final.npz") as arrays:
        bits = {name: array.tobytes() for name, array in arrays.items()}
    return bits, (run_dir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The results of a run in a process that nobody disturbs; it works while others are killed."""
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    child = start(run_dir)

    @functools.cache
    def expected():
        code, errors = finish(child)
        assert code == 0, errors
        return results(run_dir)

    yield expected
    child.kill()


def finish_and_compare(run_dir, uninterrupted):
    code, errors = finish(start(run_dir))
    assert code == 0, errors
    bits, lines = results(run_dir)
    expected_bits, expected_lines = uninterrupted()
    assert len(bits) > 8 and bits == expected_bits
    assert lines == expected_lines and len(lines.splitlines()) == NUM_STEPS // 20


@pytest.mark.process
def test_a_killed_run_ends_with_the_same_bits(tmp_path, uninterrupted):
    child = start(tmp_path, seconds_per_step=0.015)
    wait_for_checkpoint(child, tmp_path)
    time.sleep(np.random.default_rng(0).uniform(0, 1.5))
    child.kill()
    assert finish(child)[0] == -signal.SIGKILL
    assert 0 < latest_checkpoint(tmp_path) < NUM_STEPS
    finish_and_compare(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.process
def test_a_terminated_run_saves_where_it_is(tmp_path, uninterrupted):
    child = start(tmp_path, seconds_per_step=0.015)
    wait_for_checkpoint(child, tmp_path)
    time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    code, errors = finish(child)
    assert code == 128 + signal.SIGTERM, errors
    stopped = int(re.search(r"stopped at step (\d+); saved in", errors)[1])
    assert latest_checkpoint(tmp_path) == stopped < NUM_STEPS
    finish_and_compare(tmp_path, uninterrupted)
