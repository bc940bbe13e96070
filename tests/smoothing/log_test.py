"""The log of counts: nothing lost and nothing counted twice, whatever happens to the file."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from lipjax.smoothing import log as log_module
from lipjax.smoothing.log import ESTIMATION, SELECTION, CountLog, stored_header

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


def first_line(width=3, header=HEADER):
    line = {"format": log_module.FORMAT, "width": width, "header": header}
    return json.dumps(line).encode() + b"\n"


def record(index, stage, start, stop, values):
    body = np.array([index, stage, start, stop, *values], "<i4").tobytes()
    return body + zlib.crc32(body).to_bytes(4, "little")


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
            samples = sum(int(log.total(i, s).sum()) for i in (0, 4) for s in (0, 1))
            assert samples == [0, 10, 110, 160, 170][kept]
            if log.done(0, ESTIMATION) < 150:
                start = log.done(0, ESTIMATION)
                rest = expected - log.total(0, ESTIMATION)
                log.add(0, ESTIMATION, start, 150, rest)
        with opened(path) as log:
            np.testing.assert_array_equal(log.total(0, ESTIMATION), expected)
    # A last record of full length whose content did not reach the disk.
    for zeros in (5, size):
        path.write_bytes(whole[:-zeros] + b"\0" * zeros)
        with opened(path) as log:
            assert log.indices() == [0]
        assert path.read_bytes() == whole[:-size]


def test_a_header_cut_anywhere_is_written_again(tmp_path):
    path = tmp_path / "counts"
    first = first_line()
    for cut in range(len(first)):
        path.write_bytes(first[:cut])
        assert stored_header(path) is None
        assert path.read_bytes() == first[:cut]
        opened(path).close()
        assert path.read_bytes() == first
        filled(path)
        with opened(path) as log:
            assert log.done(0, ESTIMATION) == 150


def test_the_stored_header(tmp_path):
    path = tmp_path / "counts"
    assert stored_header(path) is None and not path.exists()
    filled(path)
    with opened(path):  # no lock in the way
        assert stored_header(str(path)) == HEADER
    for content in (
        b"some text",
        b"some text\n",
        b'{"format": "other"}\n',
        first_line()[:-2] + b"\n",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no log of counts"):
            stored_header(path)
        assert path.read_bytes() == content


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


@pytest.mark.parametrize("block", [1, 100, 2**20])
def test_records_in_any_order_and_in_blocks(tmp_path, monkeypatch, block):
    """Sums, where to go on and what was counted do not depend on the order or on how a file is read."""
    monkeypatch.setattr(log_module, "BLOCK", block)
    path = tmp_path / "counts"
    rng = np.random.default_rng(0)
    places = [
        (i, s, 7 * k, 7 * k + 7) for i in range(3) for s in (0, 1) for k in range(20) if k != 12
    ]
    values = rng.integers(-(2**31), 2**31, (len(places), 3))
    order = rng.permutation(len(places))
    content = first_line() + b"".join(record(*places[j], values[j]) for j in order)
    path.write_bytes(content)
    with opened(path) as log:
        for i in range(3):
            for s in (0, 1):
                own = [p[:2] == (i, s) for p in places]
                np.testing.assert_array_equal(log.total(i, s), values[own].sum(0))
                assert log.done(i, s) == 84
        with pytest.raises(ValueError, match="samples 0 to 84 of input 1 were counted before"):
            log.add(1, 0, 83, 92, [0, 0, 0])
        with pytest.raises(ValueError, match="samples 91 to 140 of input 1 were counted before"):
            log.add(1, 0, 84, 92, [0, 0, 0])
        log.add(1, 0, 84, 91, [0, 0, 0])
        assert log.done(1, 0) == 140
    for start, stop in ((0, 1), (6, 8), (83, 85), (90, 92), (0, 500), (139, 140)):
        path.write_bytes(content + record(2, 1, start, stop, [1, 2, 3]))
        with pytest.raises(ValueError, match="of input 2 a second time"):
            opened(path)
    for start, stop in ((5, 5), (6, 5), (-3, -1)):
        path.write_bytes(content + record(2, 1, start, stop, [1, 2, 3]))
        with pytest.raises(ValueError, match=f"record {len(places)} of the log is damaged"):
            opened(path)


def test_memory_is_that_of_the_totals(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "BLOCK", 2**16)
    path = tmp_path / "counts"
    values = np.arange(160)
    with open(path, "wb") as file:
        file.write(first_line(width=160))
        for start in range(2000):
            for index in range(3):
                file.write(record(index, 0, start, start + 1, values))
    tracemalloc.start()
    with opened(path, width=160) as log:
        assert log.done(2, 0) == 2000 and (log.total(2, 0) == 2000 * values).all()
        _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < path.stat().st_size / 4


def test_damaged_and_foreign_files_are_refused_and_stay(tmp_path):
    path = tmp_path / "counts"
    whole = filled(path)
    head = whole.index(b"\n") + 1
    size = (len(whole) - head) // 4

    def flipped(position):
        content = bytearray(whole)
        content[position] ^= 1
        return bytes(content)

    for content, options, word in (
        (flipped(head + 20), {}, "record 0 of the log is damaged"),
        (flipped(len(whole) - size + 20), {}, "record 3 of the log is damaged"),
        (flipped(len(whole) - 1), {}, "record 3 of the log is damaged"),
        (whole[: -size - 4] + b"\0" * 4 + whole[-size:], {}, "record 2 of the log is damaged"),
        (whole[:-4] + b"\0" * 4 + b"part", {}, "record 3 of the log is damaged"),
        (flipped(whole.index(b"format")), {}, "is no log of counts"),
        (flipped(whole.index(b"width")), {}, "is no log of counts"),
        (flipped(whole.index(b"header")), {}, "is no log of counts"),
        (flipped(head - 1), {}, "is no log of counts"),
        (b"some text\nmore", {}, "is no log of counts"),
        (b'{"format": "other"}\n', {}, "is no log of counts"),
        (whole[: head - 1], {"header": HEADER | {"sigma": 1.0}}, "is no log of counts"),
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


def test_a_log_that_is_only_read_stays_as_it_is(tmp_path):
    """Certifying again cut off a half record and asked for the right to write."""
    path = tmp_path / "counts"
    whole = filled(path)
    head = whole.index(b"\n") + 1
    size = (len(whole) - head) // 4
    for content, samples in (
        (whole, 150),
        (whole[:-3], 150),
        (whole[: -size - 3], 100),
        (whole[: head + size] + b"\0" * size, 0),
        (whole[: head - 1], 0),
        (b"", 0),
    ):
        path.write_bytes(content)
        path.chmod(0o444)
        before = path.stat().st_mtime_ns
        with opened(path, read_only=True) as log, opened(path, read_only=True) as other:
            assert log.done(0, ESTIMATION) == other.done(0, ESTIMATION) == samples
            with pytest.raises(ValueError, match="read_only is True"):
                log.add(9, ESTIMATION, 0, 1, [1, 0, 0])
            with pytest.raises(ValueError, match="another process"):
                path.chmod(0o644)
                opened(path)
        assert path.read_bytes() == content and path.stat().st_mtime_ns == before
    path.write_bytes(whole)
    with opened(path):
        with pytest.raises(ValueError, match="another process"):
            opened(path, read_only=True)
    with pytest.raises(ValueError, match="sigma = 0.5 instead of 1.0"):
        opened(path, header=HEADER | {"sigma": 1.0}, read_only=True)
    with pytest.raises(FileNotFoundError, match="missing"):
        opened(tmp_path / "missing", read_only=True)
    assert not (tmp_path / "missing").exists()


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
            ((0, 0, 0, 5, [1, 2, 2**31]), "values is .*; it must hold integers that fit into 32"),
            ((0, 0, 0, 5, [1, 2, -(2**31) - 1]), "values is"),
            ((0, 0, 0, 5, [1, 2, -1]), r"values is \[ 1  2 -1\]; .* none below 0"),
            ((0, 2, 0, 5, [1, 2, 3]), r"stage is 2; it must be one of \[0, 1\]"),
            ((0, 0, 0, 5, [1, 2, 2**80]), "values is"),
            ((0, 0, 0, 5, [1, 2, 0.5]), "values is"),
            ((0, 0, 0, 5, np.ones(3, np.float32)), "values is"),
            ((0, 0, 0, 5, np.full(3, 2**63, np.uint64)), "values is"),
            ((2**31, 0, 0, 5, [1, 2, 3]), "index is 2147483648; it must be below 2.31"),
            ((0, 2**31, 0, 5, [1, 2, 3]), "stage is 2147483648"),
            ((0, 0, 2**31, 2**31 + 5, [1, 2, 3]), "start is 2147483648"),
            ((0, 0, 0, 2**31, [1, 2, 3]), "stop is 2147483648"),
            ((0.0, 0, 0, 5, [1, 2, 3]), "index is 0.0"),
            ((0, 0, 0, 5.5, [1, 2, 3]), "stop is 5.5"),
        ):
            with pytest.raises(ValueError, match=word):
                log.add(*arguments)
        log.add(0, 0, 0, 2**31 - 1, np.array([2**31 - 1, 0, 7]))
    with opened(tmp_path / "counts") as log:
        assert log.indices() == [0] and log.done(0, 0) == 2**31 - 1
        assert log.total(0, 0).tolist() == [2**31 - 1, 0, 7]
    with pytest.raises(ValueError, match="width is 0"):
        opened(tmp_path / "other", width=0)
    for header in ([1, 2], None, "sigma", {"sigma": float("nan")}, {"sigma": np.float32(1)}):
        with pytest.raises(ValueError, match="header is"):
            opened(tmp_path / "other", header=header)
    assert not (tmp_path / "other").exists()


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    """A full disk: the same samples can be added again, once."""
    resource = pytest.importorskip("resource")
    import signal

    path = tmp_path / "counts"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with CountLog(path, header={}, width=50) as log:
            log.add(0, SELECTION, 0, 10, np.arange(50))
            length = path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (length + 60, old[1]))
            with pytest.raises(OSError, match=f"{path.name}'"):
                log.add(0, SELECTION, 10, 20, np.arange(50))
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            assert path.stat().st_size == length and log.done(0, SELECTION) == 10
            log.add(0, SELECTION, 10, 20, np.arange(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    with CountLog(path, header={}, width=50) as log:
        assert log.done(0, SELECTION) == 20
        np.testing.assert_array_equal(log.total(0, SELECTION), 2 * np.arange(50))


@pytest.mark.parametrize("where", ["half of a record", "the end", "the count"])
def test_an_interrupt_while_writing_counts_nothing_and_the_log_goes_on(
    tmp_path, monkeypatch, where
):
    path = tmp_path / "log"
    with CountLog(path, header={}, width=2) as log:
        log.add(0, 1, 0, 100, [60, 40])
        before = path.read_bytes()

        def interrupted(_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if where == "the end":
                patch.setattr("os.fsync", interrupted)
            elif where == "the count":
                count = log._count

                def counted(records):
                    patch.setattr(log, "_count", count)
                    count(records)
                    raise KeyboardInterrupt

                patch.setattr(log, "_count", counted)
            else:
                raw = log._file

                class Half:
                    def write(self, content):
                        raw.write(content[: len(content) // 2])
                        raise KeyboardInterrupt

                    def __getattr__(self, name):
                        return getattr(raw, name)

                patch.setattr(log, "_file", Half())
            with pytest.raises(KeyboardInterrupt):
                log.add(0, 1, 100, 200, [70, 30])
        assert path.read_bytes() == before and log.done(0, 1) == 100
        log.add(0, 1, 100, 200, [50, 50])
    with CountLog(path, header={}, width=2) as log:
        assert log.total(0, 1).tolist() == [110, 90]


def test_headers_are_compared_as_json(tmp_path):
    CountLog(tmp_path / "log", header={"exact": True, "n": 1}, width=2).close()
    with pytest.raises(ValueError, match="exact = True instead of 1"):
        CountLog(tmp_path / "log", header={"exact": 1, "n": 1}, width=2)
    CountLog(tmp_path / "log", header={"exact": True, "n": 1.0}, width=2).close()
    with pytest.raises(ValueError, match="more = None instead of None|more"):
        CountLog(tmp_path / "log", header={"exact": True, "n": 1, "more": None}, width=2)
