"""Train, stop, certify: the two commands on a short run, with what they leave on disk."""

import json

import numpy as np
import pytest

from experiments import certify, linear, train
from lipjax.data import load

SHORT = [
    "epochs=3",
    "model.dense_depth=2",
    "model.dense_width=64",
    "model.dense_hidden=32",
    "attack_steps=10",
]


@pytest.fixture(autouse=True)
def standard_promotion():
    import jax

    with jax.numpy_dtype_promotion("standard"):
        yield


def test_train_then_certify(tmp_path, capsys):
    run = train.main(["digits", *SHORT, "--run-dir", str(tmp_path / "run")])
    out = tmp_path / "results" / "table.json"
    report = certify.main([str(run), "--out", str(out)])
    table = json.loads(out.read_text())
    assert table["rows"] == report["rows"] and table["num_images"] == report["num_images"]
    assert not {"labels", "predictions", "radii"} & set(table) and out.stat().st_size < 10_000
    printed = capsys.readouterr().out
    assert "proved Lipschitz bound" in printed and "36/255" in printed
    stored = json.loads((run / "certificates.json").read_text())
    assert stored == json.loads(json.dumps(report))
    assert stored["selfcheck"]["ok"] and stored["feature_bound"]["kind"] == "upper"
    assert stored["certified_radii_broken_by_the_attack"] == 0
    assert len(stored["radii"]) == stored["num_images"] == 360
    for row in stored["rows"]:
        assert row["certified_of_attacked"] <= row["attacked"] + 1e-6
    certified = [row["certified"] for row in stored["rows"]]
    assert certified == sorted(certified, reverse=True) and certified[0] > 0.5
    assert (run / "certified_accuracy.png").stat().st_size > 5000
    assert not list(run.glob("*.part*"))


def test_the_same_command_goes_on_and_another_config_is_refused(tmp_path):
    run = tmp_path / "run"
    train.main(["digits", *SHORT, "--run-dir", str(run)])
    before = (run / "metrics.jsonl").read_text()
    train.main(["digits", *SHORT, "--run-dir", str(run)])
    assert (run / "metrics.jsonl").read_text() == before
    with pytest.raises(SystemExit, match="error:.*epochs"):
        train.main(["digits", *SHORT, "epochs=4", "--run-dir", str(run)])


def test_errors_leave_nothing_behind(tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(SystemExit, match="error: 'epoch' is no field"):
        train.main(["digits", "epoch=3", "--run-dir", str(run)])
    with pytest.raises(SystemExit, match="error:.*image"):
        train.main(["digits", "model.image_shape=16,16,1", "--run-dir", str(run)])
    with pytest.raises(SystemExit, match="error:"):
        train.main(["mnist", "--data-dir", str(tmp_path / "nowhere"), "--run-dir", str(run)])
    with pytest.raises(SystemExit, match="error: epochs is 1000000000000 and batch_size"):
        train.main(["digits", "epochs=1000000000000", "--run-dir", str(run)])
    with pytest.raises(SystemExit, match="error: the augmentation is impossible .*crop is 40"):
        train.main(["digits", "crop=40", "--run-dir", str(run)])
    with pytest.raises(SystemExit, match="error: hold_out is 1e-09"):
        train.main(["digits", "hold_out=1e-9", "--run-dir", str(run)])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: --run-dir is .*is a file"):
        train.main(["digits", "--run-dir", str(tmp_path / "file" / "run")])
    for command in (train, certify):
        with pytest.raises(SystemExit):
            command.main([])
    assert (
        "CONFIG is missing" in (printed := capsys.readouterr().err) and "RUN is missing" in printed
    )
    assert not run.exists()
    with pytest.raises(SystemExit, match=r"error:.*config\.json"):
        certify.main([str(run)])


def test_linear_baseline_is_exact():
    weights = np.array([[1.0, 0.0], [-1.0, 0.0]])
    points = np.array([[0.5, 3.0], [-0.25, 1.0]])
    distance = linear.exact_radius(weights, points @ weights.T, np.array([0, 0]))
    np.testing.assert_allclose(distance, [0.5, -0.25])


def test_linear_baseline_on_the_digits():
    best = linear.best_per_radius(load("digits"), (0.0, 36 / 255, 0.5))
    np.testing.assert_allclose(best, [0.969, 0.919, 0.608], atol=0.02)


@pytest.mark.slow
@pytest.mark.data
def test_fashion_mnist_through_the_same_path(tmp_path):
    """Real images, a convolutional network, thousands of certificates, none broken."""
    import os

    if not os.environ.get("LIPJAX_DATA"):
        pytest.skip("LIPJAX_DATA names no directory with data sets")
    run = train.main(
        [
            "fashion_mnist",
            "epochs=1",
            "batch_size=512",
            "model.patch=4",
            "model.conv_depth=1",
            "model.dense_depth=2",
            "model.dense_hidden=64",
            "model.pool=1",
            "--run-dir",
            str(tmp_path / "run"),
        ]
    )
    report = certify.main([str(run), "attack_images=1024", "attack_steps=3"])
    assert report["rows"][0]["certified"] > 0.6
    assert report["certified_radii_broken_by_the_attack"] == 0
