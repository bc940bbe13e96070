"""Freed memory stays with the process: arrays that come and go cost no page faults."""

import ctypes
import importlib
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from experiments import _memory

ROOT = Path(__file__).parents[2]

COUNT_FAULTS = """
import resource, sys
import numpy as np
from experiments._memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def touch():
    np.empty(100_000_000, np.uint8)[::512] = 1  # written to on every page, then freed

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, mode],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.process
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="not the GNU C library",
)
def test_arrays_that_come_and_go_cost_no_page_faults():
    plain, kept = faults("plain"), faults("keep")
    assert plain >= 400  # 100 MB ten times, in pages of at most 2 MB
    assert kept < plain / 20


def test_other_platforms_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)  # not to be called
    assert _memory.keep_freed_memory() is False


@pytest.mark.parametrize(
    "name",
    ["train", "certify", "compare_layers", "regularize", "hybrid", "smooth"]
    + [f"benchmarks.{b}" for b in ("layers", "constrain_share", "smoothing", "spectral_norms")],
)
def test_every_program_keeps_its_memory_and_no_caller_of_main(name, monkeypatch):
    calls = []
    monkeypatch.setattr(_memory, "keep_freed_memory", lambda: calls.append(name))
    monkeypatch.setattr(sys, "argv", [name, "--no-such-option"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"experiments.{name}").main(["--no-such-option"])
    assert calls == []
    with pytest.raises(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module has been imported already
        runpy.run_module(f"experiments.{name}", run_name="__main__")
    assert calls == [name]
