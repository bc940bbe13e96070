"""Every notebook runs from top to bottom; what it asserts are its tests.

A notebook is kept twice: `notebooks/NAME.py`, the source in percent format, and `NAME.ipynb`, the
same with outputs, made by `make notebooks`.
"""

import runpy
from pathlib import Path

import jax
import jupytext
import pytest

from tests.marks import slow

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def test_there_are_notebooks():
    assert "certify_in_ten_lines" in NAMES


LONG = {
    "certify_in_ten_lines",
    "one_condition_many_layers",
    "randomized_smoothing",
    "spectral_norms",
}


@pytest.mark.every
@pytest.mark.parametrize("name", [slow(name) if name in LONG else name for name in NAMES])
def test_runs(name, monkeypatch):
    """As in a user's kernel, without the strict settings of the tests."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


@pytest.mark.every
@pytest.mark.parametrize("name", NAMES)
def test_both_forms_agree(name):
    source, executed = (jupytext.read(FOLDER / f"{name}.{kind}") for kind in ("py", "ipynb"))
    cells = [[(c.cell_type, c.source) for c in book.cells] for book in (source, executed)]
    assert cells[0] == cells[1], "run: make notebooks"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 200_000
