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
    """Speeds and times faster than the peers, all from one run."""
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| layer | examples/s |") :].split("\n\n")[0].splitlines()[2:]
    file = ROOT / "experiments" / "benchmarks" / "layers_cpu_avx512.json"
    found = {}
    for row in json.loads(file.read_text())["rows"]:
        ours = row["seconds"].pop("lipjax")
        word = {
            ("conv", "SLL"): "5 hidden",
            ("conv", "SLL, as many hidden channels"): "45 hidden",
            ("conv", "normalized as a matrix"): "as a matrix",
        }.get((row["kind"], row["layer"]), row["layer"])
        (line,) = [
            x
            for x in table
            if re.match(rf"\| {row['kind']} .*\b{re.escape(word)}\b", x.split(" | ")[0])
        ]
        found.setdefault(line, []).append(f"{row['examples'] / ours:.0f}")
        found[line] += [f"{seconds / ours:.1f}" for seconds in row["seconds"].values()]
        found[line] += [f"{at_most:.1f}" for at_most in row.get("at_most", {}).values()]
    assert set(found) == set(table)
    for line, numbers in found.items():
        assert set(numbers) <= set(re.findall(r"\d+\.?\d*", line)), line
