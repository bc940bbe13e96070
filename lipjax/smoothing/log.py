"""A log of counts: what was sampled for which input, so that a job that is killed loses nothing.

A log is one file: a line of JSON that says what is counted, then records of one length, each with a
checksum. A record that was not written whole counts nothing and is written again; no sample is counted
twice, because a record names the samples it counts. Certificates are made from the log, at any time and
with any method.
"""

import bisect
import json
import os
import zlib
from pathlib import Path

import numpy as np

from lipjax import _checks

FORMAT = "lipjax counts 1"
SELECTION, ESTIMATION = 0, 1
"""Stages: the sample that chooses, and the one that is certified with."""

BLOCK = 2**22
"""Bytes of a log that are read at a time."""


def stored_header(path) -> dict | None:
    """The header that a log was made with; the file stays as it is and is not locked.

    Args:
        path: The file of a `CountLog`, which another process may have open.

    Returns:
        The header; None if there is no file, an empty one, or one whose header was not written whole.

    Raises:
        ValueError: for a file that is no log.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "counts"
    >>> CountLog(path, header={"sigma": 0.5}, width=2).close()
    >>> stored_header(path), stored_header(path.with_name("other"))
    ({'sigma': 0.5}, None)
    """
    path = Path(path)
    if not path.exists():
        return None
    with open(path, "rb") as file:
        line = file.readline()
    begin = json.dumps({"format": FORMAT})[:-1].encode()
    if not line.endswith(b"\n") and line[: len(begin)] == begin[: len(line)]:
        return None
    return _parsed(line, path)["header"]


class CountLog:
    """An open log, to read and to go on with; a context manager.

    Args:
        path: Its file, made if it does not exist or if its header was not written whole.
        header: What is counted, as JSON holds it: the network, the data, sigma, the key. A log that was
            made with another header is refused.
        width: Numbers in a record: classes, or all parts of `lipjax.smoothing.sampling.Moments`.
        read_only: Whether to read only. The file must exist, needs no right to be written and stays as
            it is: a last record that was not written whole is passed over. Others may read it meanwhile.

    Guarantee: after an interruption at any point, `total` of the log opened again is what was added
    before the interruption, the last `add` possibly not at all. A second process is refused, unless
    both only read. Memory is that of the totals and of the ranges of samples, in which neighbours are
    joined.

    Raises:
        ValueError: for a header that JSON does not hold, and for a file that is no log, is damaged or
            has another header; it stays as it was. A last record that is short, or whose checksum is 0
            because it was not written, is no damage.
        OSError: for a full disk or a file that may not be opened; it names the file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "counts"
    >>> with CountLog(path, header={"sigma": 0.5}, width=2) as log:
    ...     log.add(7, SELECTION, 0, 100, [98, 2])
    >>> with CountLog(path, header={"sigma": 0.5}, width=2) as log:
    ...     log.done(7, SELECTION), log.total(7, SELECTION).tolist()
    (100, [98, 2])
    """

    def __init__(self, path, *, header: dict, width: int, read_only: bool = False):
        _checks.integer(1, width=width)
        self.path = Path(path)
        self.width = int(width)
        self.read_only = read_only
        header = _as_json(header)
        first = {"format": FORMAT, "width": self.width, "header": header}
        first = json.dumps(first).encode() + b"\n"
        self._totals, self._ranges = {}, {}
        self._file = open(self.path, "rb" if read_only else "ab+", buffering=0)
        try:
            _lock(self._file, self.path, shared=read_only)
            self._file.seek(0)
            line = self._file.readline()
            if line != first and first.startswith(line):  # new, or cut before its newline
                if not read_only:
                    self._file.truncate(0)
                    self._write(first)
            else:
                self._refuse_others(_parsed(line, self.path), header)
                end = self._read(len(line))
                if not read_only:
                    self._file.truncate(end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Releases the file."""
        self._file.close()

    def add(self, index: int, stage: int, start: int, stop: int, values) -> None:
        """Stores what the samples from `start` up to `stop` of an input gave; then it is on disk.

        Args:
            index: The input, as all numbers an integer below 2^31.
            stage: `SELECTION` or `ESTIMATION`; no other number.
            start: The first sample,
            stop: and the one after the last.
            values: `int[width]`, their sums, none below 0.

        Raises:
            ValueError: for samples that were counted before, for numbers that are no such integers, and
                where the log is only read; nothing is stored.
        """
        if self.read_only:
            raise ValueError("read_only is True; open the log without it to add to it.")
        values = np.asarray(values).reshape(-1)
        if len(values) != self.width:
            raise ValueError(f"values has {len(values)} numbers; it must have {self.width}.")
        if values.dtype.kind not in "iu" or (values >= 2**31).any() or (values < 0).any():
            raise ValueError(
                f"values is {values}; it must hold integers that fit into 32 bits, none below 0."
            )
        for name, value in dict(index=index, stage=stage, start=start, stop=stop).items():
            _checks.integer(0, **{name: value})
            if value >= 2**31:
                raise ValueError(f"{name} is {value}; it must be below 2^31.")
        _checks.one_of((SELECTION, ESTIMATION), stage=stage)
        if not start < stop:
            raise ValueError(f"stop is {stop}; it must be above start, {start}.")
        if counted := _meeting(self._ranges.get((index, stage), []), start, stop):
            raise ValueError(
                f"start is {start} and stop {stop}; samples {counted[0]} to {counted[1]} of input "
                f"{index} were counted before."
            )
        body = np.array([index, stage, start, stop, *values], "<i4").tobytes()
        record = body + zlib.crc32(body).to_bytes(4, "little")
        length = os.fstat(self._file.fileno()).st_size
        try:
            self._write(record)
            self._count(np.frombuffer(record, "<i4")[None])
        except BaseException:  # an interrupt: what was counted is what the file holds
            self._file.truncate(length)
            self._totals, self._ranges = {}, {}
            self._file.seek(0)
            self._read(len(self._file.readline()))
            raise

    def done(self, index: int, stage: int) -> int:
        """How many samples from the first one on were counted: where to go on."""
        start, stop = self._ranges.get((index, stage), [(0, 0)])[0]
        return stop if start == 0 else 0

    def total(self, index: int, stage: int) -> np.ndarray:
        """`int64[width]`, the sum of all records of an input; zero for none."""
        return self._totals.get((index, stage), np.zeros(self.width, np.int64)).copy()

    def indices(self) -> list[int]:
        """The inputs that have a record."""
        return sorted({index for index, _ in self._totals})

    def _count(self, records):
        """Adds `int32[n, 4 + width + 1]`, the records in any order."""
        records = records[np.lexsort(records[:, 2::-1].T)]  # by input, then stage, then start
        places, start, stop = records[:, :2], records[:, 2], records[:, 3]
        same = (places[1:] == places[:-1]).all(1)
        joined = same & (start[1:] == stop[:-1])
        firsts = np.flatnonzero(np.append(True, ~joined))
        lasts = np.append(firsts[1:], len(records)) - 1
        for (index, stage), a, b in zip(
            places[firsts].tolist(), start[firsts].tolist(), stop[lasts].tolist()
        ):
            ranges = self._ranges.setdefault((index, stage), [])
            if counted := _meeting(ranges, a, b):
                raise ValueError(
                    f"path is {str(self.path)!r}, which counts samples {max(a, counted[0])} to "
                    f"{min(b, counted[1])} of input {index} a second time."
                )
            _join(ranges, a, b)
        firsts = np.flatnonzero(np.append(True, ~same))
        sums = np.add.reduceat(records[:, 4:-1], firsts, axis=0, dtype=np.int64)
        for place, added in zip(map(tuple, places[firsts].tolist()), sums):
            self._totals[place] = self._totals.get(place, 0) + added

    def _write(self, content: bytes):
        length = os.fstat(self._file.fileno()).st_size
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:  # a full disk: what was written of it counts nothing
            self._file.truncate(length)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _refuse_others(self, found, header):
        """Raises for the first line of another log."""
        stored, names = found["header"], []
        for k in sorted(set(header) | set(stored)):
            if (k in stored) != (k in header) or _typed(stored[k]) != _typed(header[k]):
                names.append(f"{k} = {stored.get(k)!r} instead of {header.get(k)!r}")
        if found["width"] == self.width and not names:
            return
        if found["width"] != self.width:
            names.append(f"width = {found['width']} instead of {self.width}")
        raise ValueError(
            f"path is {str(self.path)!r}, a log with {', '.join(names)}; name another file."
        )

    def _read(self, end):
        """Counts the records after byte `end`; returns the byte after the last that was written."""
        size = 4 * (4 + self.width + 1)
        head, length = end, os.fstat(self._file.fileno()).st_size
        self._file.seek(end)
        while length - end >= size:
            content = memoryview(self._file.read(max(1, BLOCK // size) * size))
            num = len(content) // size
            records = np.frombuffer(content, "<i4", num * size // 4).reshape(num, -1)
            found = (zlib.crc32(content[i * size : (i + 1) * size - 4]) for i in range(num))
            right = np.fromiter(found, np.uint32, num) == records[:, -1].view("<u4")
            if not right[-1] and records[-1, -1] == 0 and end + num * size == length:
                length -= size  # space that was reserved, and not written
                records, right = records[:-1], right[:-1]
            right &= (records[:, :3] >= 0).all(1) & (records[:, 2] < records[:, 3])
            if not right.all():
                number = (end - head) // size + int(np.argmin(right))
                raise ValueError(
                    f"path is {str(self.path)!r}; record {number} of the log is damaged."
                )
            if len(records):
                self._count(records)
            end += len(records) * size
        return end


def _as_json(header) -> dict:
    """The header as it comes back from its file."""
    if not isinstance(header, dict):
        raise ValueError(f"header is {header!r}; it must be a dict.")
    try:
        return json.loads(json.dumps(header, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"header is {header!r}, which JSON does not hold: {error}.") from error


def _typed(value):
    """What JSON holds, so that True and 1 are not equal."""
    if isinstance(value, dict):
        return {k: _typed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_typed(v) for v in value]
    return (bool, value) if isinstance(value, bool) else value


def _parsed(line, path) -> dict:
    """The first line of a log."""
    try:
        found = json.loads(line)
        known = (
            line.endswith(b"\n")
            and found["format"] == FORMAT
            and isinstance(found["width"], int)
            and isinstance(found["header"], dict)
        )
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise ValueError(f"path is {str(path)!r}, which is no log of counts.")
    return found


def _meeting(ranges, start, stop):
    """The first of the sorted ranges that has a number in `[start, stop)`, or None."""
    i = bisect.bisect(ranges, start, key=lambda r: r[1])  # the first that ends after start
    return ranges[i] if i < len(ranges) and ranges[i][0] < stop else None


def _join(ranges, start, stop):
    """Adds `[start, stop)` to sorted ranges that do not have any of it."""
    i = bisect.bisect(ranges, (start, stop))
    before = i > 0 and ranges[i - 1][1] == start
    after = i < len(ranges) and ranges[i][0] == stop
    start = ranges[i - 1][0] if before else start
    stop = ranges[i][1] if after else stop
    ranges[i - before : i + after] = [(start, stop)]


def _lock(file, path, *, shared):
    """Keeps other processes out, or those that write alone, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"path is {str(path)!r}, which another process has open.") from error
