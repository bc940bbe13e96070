"""The log of counts: nothing lost and nothing counted twice, whatever happens to the file."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from lipjax.smoothing.log import ESTIMATION, SELECTION, CountLog

HEADER = {"sigma": 0.5, "data": "digits"}
ROOT = Path(__file__).parents[2]


def opened(path, **options):
    return CountLog(path, **{"header": HEADER, "width": 3} | options)


def filled(path):
    with opened(path) as log:
        log.add(0, SELECTION, 0, 10, [5, 3, 2])
        log.add(0, ESTIMATION, 0, 100, [50, 30, 20])
        log.add(0, ESTIMATION, 100, 150, [25, 15, 10])
        log.add(4, SELECTION, 0, 10, [0, 0, 10])
    return path.read_bytes()


def test_what_was_added_comes_back(tmp_path):
    path = tmp_path / "counts"
    filled(path)
    with opened(path) as log:
        assert log.total(0, ESTIMATION).tolist() == [75, 45, 30]
        assert log.done(0, ESTIMATION) == 150 and log.done(4, ESTIMATION) == 0
        assert log.total(9, SELECTION).tolist() == [0, 0, 0] and log.indices() == [0, 4]
        log.add(4, ESTIMATION, 50, 60, [1, 2, 7])
        assert log.done(4, ESTIMATION) == 0  # the first samples are missing
        log.add(4, ESTIMATION, 0, 50, [50, 0, 0])
        assert log.done(4, ESTIMATION) == 60


def test_cut_anywhere_it_goes_on(tmp_path):
    """Every length that a killed write can leave."""
    path = tmp_path / "counts"
    whole = filled(path)
    with opened(path) as log:
        expected = log.total(0, ESTIMATION)
    head = whole.index(b"\n") + 1
    size = (len(whole) - head) // 4
    for cut in range(head, len(whole) + 1, 3):
        path.write_bytes(whole[:cut])
        kept = (cut - head) // size
        with opened(path) as log:
            records = sum(len(r) for r in log._ranges.values())
            assert records == kept
            if log.done(0, ESTIMATION) < 150:
                start = log.done(0, ESTIMATION)
                rest = expected - log.total(0, ESTIMATION)
                log.add(0, ESTIMATION, start, 150, rest)
        with opened(path) as log:
            np.testing.assert_array_equal(log.total(0, ESTIMATION), expected)
    # A last record of full length whose content did not reach the disk.
    path.write_bytes(whole[:-5] + b"\0" * 5)
    with opened(path) as log:
        assert log.indices() == [0]


def test_no_sample_is_counted_twice(tmp_path):
    path = tmp_path / "counts"
    whole = filled(path)
    with opened(path) as log:
        for start, stop in ((0, 1), (99, 101), (149, 200), (0, 500)):
            with pytest.raises(ValueError, match="counted before"):
                log.add(0, ESTIMATION, start, stop, [1, 0, 0])
    assert path.read_bytes() == whole
    head = whole.index(b"\n") + 1
    size = (len(whole) - head) // 4
    path.write_bytes(whole + whole[head : head + size])
    with pytest.raises(ValueError, match="a second time"):
        opened(path)


def test_damaged_and_foreign_files_are_refused_and_stay(tmp_path):
    path = tmp_path / "counts"
    whole = filled(path)
    head = whole.index(b"\n") + 1
    flipped = bytearray(whole)
    flipped[head + 20] ^= 1
    for content, options, word in (
        (bytes(flipped), {}, "record 0 of the log is damaged"),
        (b"some text\nmore", {}, "is no log of counts"),
        (b'{"format": "other"}\n', {}, "is no log of counts"),
        (whole[: head - 1], {}, "is no log of counts"),
        (whole, {"header": HEADER | {"sigma": 1.0}}, "sigma = 0.5 instead of 1.0"),
        (whole, {"width": 4}, "width = 3 instead of 4"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=word):
            opened(path, **options)
        assert path.read_bytes() == content


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "counts"
    filled(path)
    with opened(path):
        with pytest.raises(ValueError, match="another process"):
            opened(path)
    opened(path).close()


@pytest.mark.process
def test_a_killed_process_loses_nothing_that_it_announced(tmp_path):
    path = tmp_path / "counts"
    program = textwrap.dedent(
        f"""
        from lipjax.smoothing.log import CountLog
        with CountLog({str(path)!r}, header={HEADER!r}, width=3) as log:
            i = log.done(0, 1)
            while True:
                log.add(0, 1, i, i + 1, [1, 0, i % 7])
                i += 1
                print(i, flush=True)
        """
    )
    announced = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        for _ in range(5):
            announced = int(process.stdout.readline())
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        announced = max([announced] + [int(line) for line in rest[:-1] if line])
        process.wait()
        with opened(path) as log:
            done = log.done(0, 1)
            assert announced <= done <= announced + 1
            total = log.total(0, 1)
            assert total[0] == done and total[2] == sum(i % 7 for i in range(done))


def test_bad_input_is_named(tmp_path):
    with opened(tmp_path / "counts") as log:
        for arguments, word in (
            ((0, 0, 0, 5, [1, 2]), "values has 2 numbers"),
            ((-1, 0, 0, 5, [1, 2, 3]), "index is -1"),
            ((0, 0, 5, 5, [1, 2, 3]), "stop is 5"),
        ):
            with pytest.raises(ValueError, match=word):
                log.add(*arguments)
    with pytest.raises(ValueError, match="width is 0"):
        opened(tmp_path / "other", width=0)
