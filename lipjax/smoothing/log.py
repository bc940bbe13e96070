"""A log of counts: what was sampled for which input, so that a job that is killed loses nothing.

A log is one file: a line of JSON that says what is counted, then records of one length, each with a
checksum. A record that was not written whole counts nothing and is written again; no sample is counted
twice, because a record names the samples it counts. Certificates are made from the log, at any time and
with any method.
"""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from lipjax import _checks

FORMAT = "lipjax counts 1"
SELECTION, ESTIMATION = 0, 1
"""Stages: the sample that chooses, and the one that is certified with."""


class CountLog:
    """An open log, to read and to go on with; a context manager.

    Args:
        path: Its file, made if it does not exist.
        header: What is counted, as JSON holds it: the network, the data, sigma, the key. A log that was
            made with another header is refused.
        width: Numbers in a record: classes, or all parts of `lipjax.smoothing.sampling.Moments`.

    Guarantee: after an interruption at any point, `total` of the log opened again is what was added
    before the interruption, the last `add` possibly not at all. A second process is refused.

    Raises:
        ValueError: for a file that is no log, is damaged or has another header; it stays as it was.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "counts"
    >>> with CountLog(path, header={"sigma": 0.5}, width=2) as log:
    ...     log.add(7, SELECTION, 0, 100, [98, 2])
    >>> with CountLog(path, header={"sigma": 0.5}, width=2) as log:
    ...     log.done(7, SELECTION), log.total(7, SELECTION).tolist()
    (100, [98, 2])
    """

    def __init__(self, path, *, header: dict, width: int):
        _checks.integer(1, width=width)
        self.path = Path(path)
        header = json.loads(json.dumps(header))
        first = json.dumps({"format": FORMAT, "width": width, "header": header}).encode() + b"\n"
        self._struct = struct.Struct(f"<{4 + width}iI")
        new = not self.path.exists() or not self.path.stat().st_size
        self._file = open(self.path, "ab+")
        try:
            _lock(self._file, self.path)
            if new:
                self._write(first)
            start, records = self._read(header, width)
            self._file.truncate(start + len(records) * self._struct.size)
        except BaseException:
            self._file.close()
            raise
        self.width = width
        self._totals, self._ranges = {}, {}
        for image, stage, a, b, *values in records:
            self._count(image, stage, a, b, values)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Releases the file."""
        self._file.close()

    def add(self, index: int, stage: int, start: int, stop: int, values) -> None:
        """Stores what the samples from `start` up to `stop` of an input gave; then it is on disk."""
        values = [int(v) for v in np.asarray(values).reshape(-1)]
        if len(values) != self.width:
            raise ValueError(f"values has {len(values)} numbers; it must have {self.width}.")
        _checks.integer(0, index=index, stage=stage, start=start)
        if not start < stop:
            raise ValueError(f"stop is {stop}; it must be above start, {start}.")
        for a, b in self._ranges.get((index, stage), []):
            if a < stop and start < b:
                raise ValueError(
                    f"start is {start} and stop {stop}; samples {a} to {b} of input {index} were "
                    "counted before."
                )
        body = struct.pack(f"<{4 + self.width}i", index, stage, start, stop, *values)
        self._write(body + struct.pack("<I", zlib.crc32(body)))
        self._count(index, stage, start, stop, values)

    def done(self, index: int, stage: int) -> int:
        """How many samples from the first one on were counted: where to go on."""
        reached = 0
        for a, b in sorted(self._ranges.get((index, stage), [])):
            if a != reached:
                break
            reached = b
        return reached

    def total(self, index: int, stage: int) -> np.ndarray:
        """`int64[width]`, the sum of all records of an input; zero for none."""
        return self._totals.get((index, stage), np.zeros(self.width, np.int64)).copy()

    def indices(self) -> list[int]:
        """The inputs that have a record."""
        return sorted({index for index, _ in self._totals})

    def _count(self, index, stage, start, stop, values):
        place = (index, stage)
        self._ranges.setdefault(place, []).append((start, stop))
        self._totals[place] = self._totals.get(place, 0) + np.asarray(values, np.int64)

    def _write(self, content: bytes):
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, header, width):
        """Where records begin, and those that are whole."""
        self._file.seek(0)
        line = self._file.readline()
        try:
            found = json.loads(line)
            known = line.endswith(b"\n") and found["format"] == FORMAT
        except (ValueError, TypeError, KeyError):
            known = False
        if not known:
            raise ValueError(f"path is {str(self.path)!r}, which is no log of counts.")
        if found["width"] != width or found["header"] != header:
            names = [
                f"{k} = {found['header'].get(k)!r} instead of {header.get(k)!r}"
                for k in sorted(set(header) | set(found["header"]))
                if found["header"].get(k) != header.get(k)
            ]
            names += [f"width = {found['width']} instead of {width}"] * (found["width"] != width)
            raise ValueError(
                f"path is {str(self.path)!r}, a log with {', '.join(names)}; name another file."
            )
        content = self._file.read()
        size = self._struct.size
        whole, ranges = [], {}
        for i in range(len(content) // size):
            *body, checksum = self._struct.unpack_from(content, i * size)
            last = (i + 1) * size == len(content) - len(content) % size
            if zlib.crc32(content[i * size : (i + 1) * size - 4]) != checksum:
                if last:
                    break  # not written whole
                raise ValueError(f"path is {str(self.path)!r}; record {i} of the log is damaged.")
            place = tuple(body[:2])
            if any(a < body[3] and body[2] < b for a, b in ranges.get(place, [])):
                raise ValueError(
                    f"path is {str(self.path)!r}; record {i} counts samples {body[2]} to {body[3]} of "
                    f"input {body[0]} a second time."
                )
            ranges.setdefault(place, []).append((body[2], body[3]))
            whole.append(body)
        return len(line), whole


def _lock(file, path):
    """Keeps other processes out, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"path is {str(path)!r}, which another process has open.") from error
