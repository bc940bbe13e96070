"""What a run says about itself: JSON lines for later, a progress bar for now."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lipjax import _checks


class JsonLines:
    """Appends one JSON object a line, each flushed at once.

    Opening it for a run that resumes at step s drops the lines of later steps, so that nothing is
    counted twice. The lines hold no clock, so that two runs can be compared byte by byte.

    Args:
        path: The file; its directory must exist.
        last_step: The step at which the run resumes: lines of later steps are dropped. 0 starts
            the file anew.

    Raises:
        ValueError: The file has a line that is not JSON, other than a torn last one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Path(directory) / "metrics.jsonl"
    ...     with JsonLines(path) as lines:
    ...         lines.write(1, loss=0.5)
    ...         lines.write(2, loss=math.nan)
    ...     read_json_lines(path)
    [{'step': 1, 'loss': 0.5}, {'step': 2, 'loss': None}]
    """

    def __init__(self, path, *, last_step: int = 0):
        _checks.integer(0, last_step=last_step)
        path = Path(path)
        kept = [line for line in read_json_lines(path) if line["step"] <= last_step]
        kept = kept if last_step else []
        draft = path.with_name(path.name + ".new")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(draft, path)  # a kill leaves the old file or the new one
        self._file = open(path, "a", encoding="utf-8")

    def write(self, step: int, **values) -> None:
        """Appends `{"step": step, **values}`; a float that is not finite is written as null."""
        self._file.write(json.dumps({"step": step} | _finite(values), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_json_lines(path) -> list[dict]:
    """The lines of a file that `JsonLines` wrote; none if there is no file.

    A torn last line, left by a killed process, is left out.

    Raises:
        ValueError: Another line is damaged; the message names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_parse(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


@contextlib.contextmanager
def progress(
    total: int,
    start: int = 0,
    *,
    unit: str = "steps",
    per_step: int = 1,
    seconds: float = 10.0,
    file=None,
) -> Iterator[Callable]:
    """A progress bar on a terminal, and elsewhere a plain line every so often.

    Args:
        total: Number of steps of the whole run.
        start: Number of steps already done.
        unit: What the rate counts, for example `"images"`.
        per_step: How many of them there are in a step.
        seconds: Least time between two plain lines; the last step always gets one.
        file: Where to write; standard error when None.

    Yields:
        `report(step, **values)`, to be called now and then with the steps done and with numbers to
        show. The rate leaves out what came before the first report, such as compilation.

    >>> import sys
    >>> with progress(100, file=sys.stdout, seconds=0) as report:
    ...     report(100, loss=0.25)
    step 100/100, loss 0.25
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(file=file, stderr=file is None)
    describe = _describe(total, unit, per_step)
    if not (console.is_terminal or console.is_jupyter):
        yield _plain(console.file, describe, total, seconds)
        return
    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"step {start}/{total}", total=total, completed=start)

        def report(step, **values):
            bar.update(task, completed=step, description=describe(step, values))

        yield report


def _describe(total, unit, per_step):
    """`step 300/1000, 5120 images/s, 0:01:10 left, loss 0.123`, as a function of what is known."""
    began = []

    def describe(step, values):
        now = time.monotonic()
        began[:] = began or [(now, step)]
        parts = [f"step {step}/{total}"]
        seconds, steps = now - began[0][0], step - began[0][1]
        if steps > 0 and seconds > 0:
            left = int((total - step) * seconds / steps)
            clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
            parts += [f"{steps * per_step / seconds:.4g} {unit}/s", f"{clock} left"]
        return ", ".join(parts + [f"{name} {value:.4g}" for name, value in values.items()])

    return describe


def _plain(file, describe, total, seconds):
    last = [-math.inf]

    def report(step, **values):
        text = describe(step, values)
        if step >= total or time.monotonic() - last[0] >= seconds:
            last[0] = time.monotonic()
            print(text, file=file, flush=True)

    return report


def _parse(path, number, line):
    try:
        parsed = json.loads(line)
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("step"), int):
        raise ValueError(
            f"{path}, line {number}, is {line[:60]!r}; it must be a JSON object with a step. "
            "Remove the line, or move the file away."
        )
    return parsed


def _finite(values):
    """Plain Python numbers, with None for floats that JSON cannot hold."""
    plain = {name: getattr(value, "item", lambda v=value: v)() for name, value in values.items()}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in plain.items()
    }
