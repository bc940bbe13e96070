"""From a config to the pieces of a run: data, network, loss and augmentation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.config import WITH_CERTIFICATE, RunConfig
from experiments.plain import PlainConfig, PlainNet
from lipjax import nn, training
from lipjax.data import Dataset, Split, augment, hold_out, load
from lipjax.models import (
    ConvNetConfig,
    LipConvNet,
    LipConvNetConfig,
    LipschitzConvNet,
    LiResNet,
    LiResNetConfig,
    StudyNet,
    StudyNetConfig,
)
from lipjax.smoothing import losses
from lipjax.training import triangular

NETWORKS = {
    PlainConfig: PlainNet,
    ConvNetConfig: LipschitzConvNet,
    StudyNetConfig: StudyNet,
    LipConvNetConfig: LipConvNet,
    LiResNetConfig: LiResNet,
}


def dataset(config: RunConfig, data_dir=None) -> Dataset:
    """The data to train on (`train`) and to measure on (`test`).

    If the config holds out a part of the training split, that part stands in for the test split:
    settings are chosen on it.
    """
    data = load(config.data, data_dir=data_dir)
    shape, classes = data.train.images.shape[1:], data.num_classes
    if config.model.image_shape != shape or config.model.num_classes != classes:
        raise ValueError(
            f"model.image_shape is {config.model.image_shape} and model.num_classes is "
            f"{config.model.num_classes}; {config.data} has images of shape {shape} and "
            f"{classes} classes."
        )
    if config.hold_out:
        rest, held = _split(data.train, config.seed, hold_out=config.hold_out)
        data = dataclasses.replace(data, train=rest, test=held)
    if config.tuning:
        data = dataclasses.replace(
            data, train=_split(data.train, config.seed, tuning=config.tuning)[0]
        )
    return data


def tuning_split(config: RunConfig, data_dir=None) -> Split:
    """The part of the training split that `dataset` keeps for choices."""
    data = dataset(dataclasses.replace(config, tuning=0.0, smoothing=None), data_dir)
    return _split(data.train, config.seed, tuning=config.tuning)[1]


def _split(split, seed, **named):
    ((name, fraction),) = named.items()
    try:
        return hold_out(split, fraction=fraction, seed=seed)
    except ValueError as error:
        raise ValueError(f"{name} is {fraction}: {error}") from error


def network(config: RunConfig) -> nnx.Module:
    """The network with its initial parameters."""
    return NETWORKS[type(config.model)](config.model, rngs=nnx.Rngs(config.seed))


def mesh(config: RunConfig) -> jax.sharding.Mesh | None:
    """The devices of this process, if there are several and each gets as much of a batch; else None."""
    devices = jax.local_devices()
    if len(devices) == 1 or config.batch_size % (len(devices) * config.num_microbatches):
        return None
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("data",), axis_types=auto, devices=devices)


def constraint(mesh: jax.sharding.Mesh | None):
    """`params -> weights`; devices that train together share the work."""
    if mesh is None:
        return nn.constrain
    return functools.partial(nn.constrain, mesh=mesh, axis=mesh.axis_names[0])


def optimizer(config: RunConfig, num_steps: int) -> optax.GradientTransformation:
    """Adam or NAdam with the schedule of the config; the norm of the gradient is clipped before."""
    b1, b2 = config.betas
    schedule = SCHEDULES[config.schedule](config.learning_rate, num_steps)
    step = getattr(optax, config.optimizer)(schedule, b1=b1, b2=b2)
    return optax.chain(optax.clip_by_global_norm(config.clip), step) if config.clip else step


def _cosine(peak, num_steps):
    return optax.warmup_cosine_decay_schedule(0.0, peak, num_steps // 40, num_steps)


SCHEDULES = {"triangular": triangular, "cosine": _cosine}


def augmentation(config: RunConfig):
    """`(key, image) -> image` for one image, or None."""
    noise = config.noise if config.noisy_loss == "plain" else 0.0
    if not (config.affine or config.crop or config.flip or config.jitter or noise):
        return None

    def apply(key, image):
        crop_key, flip_key, color_key, noise_key, affine_key = jax.random.split(key, 5)
        if config.affine:
            shift, rotation, scale, shear = config.affine
            image = augment.random_affine(
                affine_key, image, shift=shift, rotation=rotation, scale=scale, shear=shear
            )
        if config.crop:
            image = augment.random_crop(crop_key, image, pad=config.crop)
        if config.flip:
            image = augment.random_flip(flip_key, image)
        if config.jitter:
            brightness, contrast, saturation, hue = config.jitter
            image = augment.color_jitter(
                color_key,
                image,
                brightness=brightness,
                contrast=contrast,
                saturation=saturation,
                hue=hue,
            )
        if noise:
            image = augment.gaussian_noise(noise_key, image, sigma=noise)
        return image

    try:
        jax.eval_shape(apply, jax.random.key(0), jnp.zeros(config.model.image_shape))
    except ValueError as error:
        named = ("affine", "crop", "flip", "jitter", "noise")
        given = ", ".join(f"{name} is {getattr(config, name)}" for name in named)
        raise ValueError(f"the augmentation is impossible ({given}): {error}") from error
    return apply


def loss(config: RunConfig):
    """`(network, batch, key) -> (loss, metrics)`: the mean loss of the config, which for one of smoothed
    classifiers has an accuracy on the images without its noise."""
    if config.noisy_loss != "plain":
        return _noisy_loss(config)

    def loss_fn(model, batch, key):
        del key
        logits = model(batch.images)
        found = jax.vmap(_example_loss(config, model, batch.progress))(logits, batch.labels)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch.labels)
        return jnp.mean(found), {"accuracy": accuracy} | _watched(model)

    return loss_fn


def _example_loss(config: RunConfig, model, progress):
    """`(logits, label) -> loss` of one example, for a network after some share of the run.

    The constant of the features is that of the parameterization, without the rounding that only a
    certificate counts.
    """
    options = config.loss_options
    if config.loss in WITH_CERTIFICATE:
        options["lipschitz"] = getattr(config.model, "input_lipschitz", 1.0)
        options["head"] = model.class_vectors()
    if "epsilon" in options:  # the published ramp, from 0.1 to 3 times 36 / 255
        options["epsilon"] *= (1 + 29 * jnp.minimum(1.0, 2.0 * progress)) / 30
    if config.loss == "logit_annealing":
        shift = {name: options.pop(name) for name in ("epsilon", "lipschitz", "head")}
        return lambda f, y: training.logit_annealing(
            training.emma_logits(f, y, **shift), y, **options
        )
    if config.loss == "hkr":
        options["min_margin"] = options.pop("margin")
    one = training.margin_loss if config.loss == "multi_margin" else getattr(training, config.loss)
    return lambda f, y: one(f, y, **options)


def _watched(model) -> dict:
    """How orthogonal the contractions of a network are, where it has some."""
    kept = nn.orthogonality(model)
    return {} if kept is None else {"orthogonality": kept}


def _noisy_loss(config: RunConfig):
    one = getattr(losses, config.noisy_loss)
    options = {"sigma": config.noise, "num_noise": config.num_noise}
    if config.noisy_loss == "smooth_adv":
        options["eps"] = config.attack_eps

    def loss_fn(model, batch, key):
        found = jax.vmap(lambda k, x, y: one(k, lambda noisy: model(noisy), x, y, **options))(
            jax.random.split(key, len(batch.labels)), batch.images, batch.labels
        )
        accuracy = jnp.mean(jnp.argmax(model(batch.images), -1) == batch.labels)
        return jnp.mean(found), {"accuracy": accuracy} | _watched(model)

    return loss_fn
