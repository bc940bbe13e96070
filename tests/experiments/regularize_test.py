"""The penalty lowers the norms of the layers and the bound of the network."""

import json

import jax
import pytest

from experiments import regularize


@pytest.mark.slow
def test_two_trainings_and_their_table(tmp_path, capsys):
    out = tmp_path / "found.json"
    options = "--data digits --width 8 --stages 1 --blocks 1 --steps 120 --weight 0.01".split()
    with jax.numpy_dtype_promotion("standard"):
        free, penalized = regularize.main([*options, "--out", str(out)])
    assert penalized.bound < 0.6 * free.bound
    assert min(free.accuracy, penalized.accuracy) > 0.85
    assert "largest layer" in capsys.readouterr().out
    stored = json.loads(out.read_text())
    assert stored["results"][1]["weight"] == 0.01 and stored["settings"]["width"] == "8"
    with pytest.raises(SystemExit, match="error: data is 'cifar'"):
        regularize.main(["--data", "cifar"])


@pytest.mark.every
@pytest.mark.parametrize(
    "options,word",
    [
        (["--steps", "0"], "steps"),
        (["--weight", "-1"], "weight"),
        (["--learning-rate", "nan"], "learning_rate"),
        (["--out", "nowhere/found.json"], "out"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(SystemExit, match=f"error: {word}"):
        regularize.main(["--data", "digits", *options])
