"""Every kind of layer within the same budget: rows, certificates, going on, the table."""

import json

import jax
import pytest

from experiments import compare_layers


def run(out, *options):
    options = ["--data", "digits", "--cpu-minutes", "0.05", "--out", str(out), *options]
    with jax.numpy_dtype_promotion("standard"):
        return compare_layers.main(options)


@pytest.mark.slow
def test_rows_seeds_and_going_on(tmp_path, capsys):
    out = tmp_path / "found.json"
    rows = run(out, "--layers", "aol", "--nets", "dense", "--best", "0")
    assert [row["seed"] for row in rows] == [0]
    row = rows[0]
    assert row["steps"] > 10 and row["bound"] <= 1 + 1e-5 and row["steps_skipped"] == 0
    clean, *certified = row["test"]
    assert clean > 0.7 and certified == sorted(certified, reverse=True) and certified[0] <= clean
    stored = json.loads(out.read_text())
    stored["rows"][0]["seconds"] = -1.0  # not made again
    out.write_text(json.dumps(stored))
    options = ["--layers", "aol", "--nets", "dense", "--best", "1", "--seeds", "2"]
    rows = run(out, *options)
    assert [row["seed"] for row in rows] == [0, 1] and rows[0]["seconds"] == -1.0
    assert json.loads(out.read_text())["rows"] == rows
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split()[:3] == ["dense", "aol", "2"] and "±" in printed[-1]
    with pytest.raises(SystemExit, match="error: out is .* which holds rows made with"):
        run(out, *options, "--batch-size", "128")


@pytest.mark.every
@pytest.mark.parametrize(
    "options,word",
    [
        (["--layers", "conv"], "layers is 'conv'"),
        (["--nets", "wide"], "nets is 'wide'"),
        (["--cpu-minutes", "0"], "cpu_minutes"),
        (["--seeds", "0"], "seeds"),
    ],
)
def test_bad_options_are_named(tmp_path, options, word):
    with pytest.raises(SystemExit, match=f"error: {word}"):
        run(tmp_path / "found.json", *options)
