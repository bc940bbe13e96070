"""JSON lines survive kills and resumes; progress is quiet away from a terminal."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.training import JsonLines, metrics, progress, read_json_lines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, steps, **options):
    with JsonLines(path, **options) as lines:
        for step in steps:
            lines.write(step, loss=1 / step)


def test_every_line_is_there_at_once(path):
    lines = JsonLines(path)
    lines.write(1, loss=np.float32(0.25), right=jnp.int32(3))
    assert json.loads(path.read_text()) == {"step": 1, "loss": 0.25, "right": 3}
    lines.close()


def test_resuming_drops_later_lines_and_keeps_the_bytes_of_the_others(path):
    write(path, [10, 20, 30, 40, 50])
    whole = path.read_bytes()
    write(path, [], last_step=30)
    assert [line["step"] for line in read_json_lines(path)] == [10, 20, 30]
    write(path, [40, 50], last_step=30)
    assert path.read_bytes() == whole


def test_a_run_that_starts_anew_starts_the_file_anew(path):
    write(path, [10, 20])
    write(path, [10])
    assert [line["step"] for line in read_json_lines(path)] == [10]


@pytest.mark.parametrize("torn", ['{"step": 30, "lo', '{"step": 30}', "\x00\x00", "é"])
def test_a_torn_last_line_is_left_out(path, torn):
    write(path, [10, 20])
    with open(path, "ab") as file:
        file.write(torn.encode()[:-1] if torn == "é" else torn.encode())
    assert [line["step"] for line in read_json_lines(path)] == [10, 20]
    write(path, [30], last_step=20)
    assert [line["step"] for line in read_json_lines(path)] == [10, 20, 30]


@pytest.mark.every
@pytest.mark.parametrize("damage", ["nonsense", "[1]", '{"loss": 1}', '{"step": "ten"}'])
def test_damage_elsewhere_is_an_error_that_names_the_line(path, damage):
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is"):
        read_json_lines(path)


def test_values_that_are_not_finite_are_null(path):
    with JsonLines(path) as lines:
        lines.write(1, a=float("nan"), b=np.float32(np.inf), c=jnp.float32(-np.inf), d=0.1)
    assert read_json_lines(path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 0.1}]


def test_no_file_has_no_lines(path):
    assert read_json_lines(path) == []


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def reports(clock, **options):
    """One report a second, from step 110 to 200 in tens, as lines."""
    file = io.StringIO()
    with progress(200, 100, file=file, **options) as report:
        for step in range(110, 201, 10):
            clock.now += 1
            report(step, loss=0.5)
    return file.getvalue().splitlines()


def test_away_from_a_terminal_there_is_a_plain_line_every_so_often(clock):
    lines = reports(clock, seconds=4)
    assert [line.split(",")[0] for line in lines] == [
        "step 110/200",
        "step 150/200",
        "step 190/200",
        "step 200/200",
    ]
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_rate_and_time_left_leave_out_what_was_done_before(clock):
    lines = reports(clock, seconds=0, unit="images", per_step=32)
    assert lines[0] == "step 110/200, loss 0.5"
    assert lines[1] == "step 120/200, 320 images/s, 0:00:08 left, loss 0.5"
    assert lines[-1] == "step 200/200, 320 images/s, 0:00:00 left, loss 0.5"


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any file for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    text = "\n".join(reports(clock))
    assert "━" in text and "step 200/200" in text and "0:00:00 left" in text and "\x1b" in text
