"""The rules of the house, as tests: names, imports, docstrings, pins."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lipjax

pytestmark = pytest.mark.every

ROOT = Path(__file__).parents[1]
MODULES = [m.name for m in pkgutil.walk_packages(lipjax.__path__, "lipjax.") if "._" not in m.name]
FLOORS = [
    {"typing", "_checks", "_numerics"},
    {"spectral", "sharding", "data"},
    {"layers", "margin", "smoothing", "attacks", "curvature", "token_mixing", "quantization"},
    {"training", "highway_bp", "forward_only"},
    {"nn"},
    {"models"},
]
NEW_NAMES = {"selfcheck"}  # stands beside the floors and imports none


def floor(part):
    return next((i for i, names in enumerate(FLOORS) if part in names), None)


def sources():
    return sorted((ROOT / "lipjax").rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    part = path.relative_to(ROOT / "lipjax").parts[0].removesuffix(".py")
    here = floor(part)
    if here is None:
        assert part in NEW_NAMES | {"__init__"}
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "lipjax":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lipjax."):
            names = [node.module.split(".")[1]]
        for name in names:
            there = floor(name)
            assert there is not None and (there < here or name == part or here == 0), (
                f"{part} imports {name}"
            )


def public_functions():
    seen = set()
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            inner = inspect.unwrap(value) if callable(value) else value
            if attribute.startswith("_") or not inspect.isfunction(inner):
                continue
            if getattr(inner, "__module__", "").startswith("lipjax") and inner not in seen:
                seen.add(inner)
                yield pytest.param(inner, id=f"{inner.__module__}.{inner.__name__}")


@pytest.mark.parametrize("fn", list(public_functions()))
def test_public_functions_have_docstrings_and_field_names(fn):
    assert fn.__doc__, "no docstring"
    names = list(inspect.signature(fn).parameters)
    assert "rng" not in names and "seed_key" not in names
    if "key" in names:
        assert names[0] == "key", "key comes first"


def test_import_is_light():
    code = (
        "import sys, lipjax; heavy = {'scipy.stats', 'flax', 'orbax', 'optax', 'sklearn', "
        "'matplotlib', 'rich'} & set(sys.modules); print(*sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


def test_constraints_hold_names_and_versions_alone():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and not any("://" in line or "@" in line for line in pins)
    assert all(re.match(r"[\w.-]+==[\w.+!]+( ;.*)?$", line) for line in pins)


def test_every_module_has_its_mirrored_test():
    missing = []
    for path in sources():
        relative = path.relative_to(ROOT / "lipjax")
        if relative.name.startswith("_"):
            continue
        mirrored = ROOT / "tests" / relative.parent / f"{relative.stem}_test.py"
        if not mirrored.exists():
            missing.append(str(relative))
    assert not missing


def test_the_readme_is_filled_in():
    text = (ROOT / "README.md").read_text()
    assert not re.search(r"[A-Z]+_(OUTPUT|TABLE|DIGITS)", text)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_table_of_layers_is_that_of_its_file():
    """Speeds, times faster than the peers and limits, each in its cell and in its order."""
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| layer | examples/s |") :].split("\n\n")[0].splitlines()[2:]
    file = ROOT / "experiments" / "benchmarks" / "layers_cpu_avx512.json"
    rows = {(r["kind"], r["layer"]): r for r in json.loads(file.read_text())["rows"]}
    words = {
        "SLL": "5 hidden",
        "SLL, as many hidden channels": "45 hidden",
        "normalized as a matrix": "as a matrix",
    }
    for line in table:
        name, *cells = line.strip("|").split("|")
        kind = name.split()[0]
        named = {}
        for row in rows:
            word = words.get(row[1], row[1]) if kind == "conv" else row[1]
            if row[0] == kind and (at := re.search(rf"\b{re.escape(word)}\b", name)):
                named[at.start()] = rows[row]
        expected = [[], [], []]
        for _, row in sorted(named.items()):
            ours = row["seconds"]["lipjax"]
            peers = {k: v / ours for k, v in row["seconds"].items() if k != "lipjax"}
            peers = {k: f"{peers[k]:.1f}" for k in _in_order(peers, cells[1])}
            expected[0].append(f"{row['examples'] / ours:.0f}")
            expected[1] += peers.values()
            expected[2] += [
                f"{row['at_most'][k]:.1f}" for k in peers if k in row.get("at_most", {})
            ]
        assert [re.findall(r"\d+\.?\d*", cell) for cell in cells] == expected, line
        for row in named.values():
            rows = {k: r for k, r in rows.items() if r is not row}
    assert not rows


def _in_order(peers, cell):
    """The names of the peers as they stand in a cell, where each begins as it does in the file."""
    places = {
        peer: cell.find("formula" if "formula" in peer else peer.split()[0]) for peer in peers
    }
    assert min(places.values(), default=0) >= 0, (peers, cell)
    return sorted(peers, key=places.get)
