"""Configs: overrides by name and type, a round trip through JSON, and errors that say what fits."""

import dataclasses
import json

import pytest

from experiments import config as configs
from lipjax.models import StudyNetConfig

pytestmark = pytest.mark.every

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
        ("loss=hinge", "loss is 'hinge'"),
        ("margin=0.7", "margin is 0.7, which loss 'cross_entropy' does not have"),
        ("offset=large", "offset is 'large', of the wrong type"),
        ("offset=-1", "offset is -1"),
        ("temperature=0", "temperature is 0"),
        ("loss=certificate_regularized", "gamma is None; with loss 'certificate_regularized'"),
        ("optimizer=lion", "optimizer is 'lion'"),
        ("schedule=linear", "schedule is 'linear'"),
        ("clip=-1", "clip is -1"),
    ],
)
def test_bad_assignments_are_named(assignment, word):
    with pytest.raises(ValueError, match=word):
        configs.override(configs.load("digits"), [assignment])


def test_a_noisy_loss_needs_noise():
    with pytest.raises(ValueError, match="noise is 0; with noisy_loss 'macer'"):
        configs.override(configs.load("digits"), ["noise=0", "noisy_loss=macer"])


def test_another_loss_starts_from_its_own_options():
    config = configs.override(configs.load("digits"), ["loss=logit_annealing", "beta=3"])
    assert config.loss_options == configs.LOSSES["logit_annealing"] | {"beta": 3.0}
    assert config.margin is None
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config
    back = configs.override(config, ["loss=cross_entropy", "offset=None"])
    assert back.loss_options == {"offset": 0.9, "temperature": 0.15}
    same = configs.override(configs.load("mnist"), ["loss=cross_entropy"])
    assert same == configs.load("mnist")  # the loss that it has keeps its options


@pytest.mark.parametrize("loss", configs.LOSSES)
def test_a_loss_refuses_the_options_of_others(loss):
    own = dict.fromkeys(configs.LOSSES[loss], 0.3)
    assert configs.RunConfig(loss=loss, **own).loss_options == own
    for other in set(configs.LOSS_OPTIONS) - set(own):
        with pytest.raises(ValueError, match=f"{other} is 0.3, which loss '{loss}' does not have"):
            configs.RunConfig(loss=loss, **own, **{other: 0.3})


def test_a_loss_of_certificates_needs_a_bound_and_is_no_smoothed_one():
    with pytest.raises(ValueError, match="loss is 'emma', which needs a network with a Lipschitz"):
        configs.override(configs.load("smooth_digits"), ["loss=emma"])
    with pytest.raises(ValueError, match="noisy_loss is 'macer' and loss is 'multi_margin'"):
        configs.override(configs.load("smooth_digits"), ["loss=multi_margin", "noisy_loss=macer"])


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
