"""Configs: overrides by name and type, a round trip through JSON, and errors that say what fits."""

import dataclasses
import json

import pytest

from experiments import config as configs
from lipjax.models import StudyNetConfig

KINDS = (configs.RunConfig, configs.HybridConfig)


@pytest.mark.parametrize("kind", KINDS)
def test_every_config_loads_and_survives_json(kind):
    for name in configs.names(kind):
        config = configs.load(name, kind)
        assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config))), kind) == config


@pytest.mark.parametrize("name", [name for kind in KINDS for name in configs.names(kind)])
def test_every_config_opens_with_command_time_and_result(name):
    import importlib

    text = importlib.import_module(f"experiments.configs.{name}").__doc__
    assert all(f"{word}:" in text for word in ("command", "time", "result"))


def test_overrides():
    config = configs.override(
        configs.load("digits"),
        [
            "epochs=3",
            "model.layer=cpl",
            "flip=True",
            "radii=0.1,0.2",
            "betas=(0.9, 0.99)",
            "model.dense_width=None",
        ],
    )
    assert (config.epochs, config.model.layer, config.flip) == (3, "cpl", True)
    assert (config.radii, config.betas) == ((0.1, 0.2), (0.9, 0.99))
    assert config.model.dense_width is None
    assert config.model.dense_depth == configs.load("digits").model.dense_depth


@pytest.mark.parametrize(
    "assignment,word",
    [
        ("epoch=3", "'epoch' is no field; the fields are data, model.layer"),
        ("epochs", "must have the form field=value"),
        ("epochs=many", "epochs is 'many', of the wrong type"),
        ("radii=0.5,0.1", "radii is"),
        ("betas=1.5,0.9", "betas is"),
        ("seed=-1", "seed is -1"),
        ("model.std=0", r"model\.std is"),
        ("betas=[0.5,0.9", "betas is .*of the wrong type"),
        ("radii=0.5,,1", "radii is .*of the wrong type"),
        ("epochs=1,2", r"epochs is \(1, 2\), of the wrong type"),
        ("model.kernel_size=(3,3)", r"model.kernel_size is \(3, 3\), of the wrong type"),
        ("epochs=0", "epochs is 0"),
        ("flip=maybe", "flip is 'maybe', of the wrong type"),
        ("model.layer=resnet", r"model\.layer is 'resnet'"),
        ("data=imagenet", "data is 'imagenet'"),
        ("jitter=0.1", "jitter is"),
        ("num_microbatches=3", "num_microbatches is 3"),
        ("noisy_loss=cohen", "noisy_loss is 'cohen'"),
    ],
)
def test_bad_assignments_are_named(assignment, word):
    with pytest.raises(ValueError, match=word):
        configs.override(configs.load("digits"), [assignment])


def test_a_noisy_loss_needs_noise():
    with pytest.raises(ValueError, match="noise is 0; with noisy_loss 'macer'"):
        configs.override(configs.load("digits"), ["noise=0", "noisy_loss=macer"])


def test_unknown_config_and_run_are_named(tmp_path):
    with pytest.raises(ValueError, match="CONFIG is 'cifar'"):
        configs.load("cifar")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        configs.read_run(tmp_path)


def test_a_config_without_its_main_fields_is_damaged(tmp_path):
    for text, word in (("{}", "missing fields .'data', 'model'"), ('{"foo": 1}', "unknown fields")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=f"config.json is damaged: .*{word}"):
            configs.read_run(tmp_path)


def test_assignments_are_applied_together():
    """One by one, the first would leave a patch and a pool that do not divide the image."""
    config = configs.override(configs.load("mnist"), ["model.patch=4", "model.pool=7"])
    assert (config.model.patch, config.model.pool) == (4, 7)


def test_the_study_network_goes_through_a_file():
    model = StudyNetConfig(layer="sll", image_shape=(28, 28, 1), pad=2)
    run = configs.RunConfig(data="fashion_mnist", model=model)
    assert configs.from_dict(configs.to_dict(run)) == run
    changed = configs.override(run, ["model.layer=cayley", "model.width=32", "model.conv_hidden=8"])
    assert changed.model == dataclasses.replace(model, layer="cayley", width=32, conv_hidden=8)
