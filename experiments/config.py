"""What defines a run: a frozen dataclass, one file of it per run in `experiments/configs`."""

import ast
import dataclasses
import importlib
import json
import pkgutil
import types
from fractions import Fraction
from pathlib import Path

from experiments.plain import PlainConfig
from lipjax import _checks
from lipjax.data import NAMES
from lipjax.models import ConvNetConfig, LipConvNetConfig, LiResNetConfig, StudyNetConfig
from lipjax.smoothing.multiclass import BUDGETS

MEASURED = ("radii", "attack_images", "attack_steps", "smoothing")
"""Fields that only certification uses; they may change after training."""

NOISY_LOSSES = ("plain", "gaussian", "stability", "smooth_adv", "macer", "consistency")

LOSSES = {
    "cross_entropy": {"offset": 0.9, "temperature": 0.15},
    "multi_margin": {"margin": 0.7},
    "certificate_regularized": {"gamma": None},  # nothing is published that holds everywhere
    "hkr": {"alpha": 10.0, "margin": 1.0},
    "emma": {"epsilon": 3 * 36 / 255},
    "logit_annealing": {"offset": 2.0, "temperature": 0.75, "beta": 5.0, "epsilon": 3 * 36 / 255},
}
"""The options of each loss, and what they are unless they are given."""

LOSS_OPTIONS = tuple(sorted({name for options in LOSSES.values() for name in options}))

WITH_CERTIFICATE = ("certificate_regularized", "emma", "logit_annealing")
"""Losses that take the Lipschitz constant and the class vectors of the network."""

MODELS = (ConvNetConfig, StudyNetConfig, LipConvNetConfig, LiResNetConfig, PlainConfig)


@dataclasses.dataclass(frozen=True)
class SmoothingConfig:
    """How a run is certified by randomized smoothing.

    Attributes:
        sigma: Standard deviation of the noise, in pixel scale [0, 1].
        alpha: Chance of a wrong certificate, for each image and method.
        num_selection: Samples that choose the class and how alpha is spent.
        num_samples: Samples that are certified with.
        images: Test images, spread evenly; 0 means all.
        batch_size: Noisy copies in a call of the network.
        exact: Whether pixels and noise are integers, see `lipjax.smoothing.noise`.
        tuning_images: Images, kept from training by `tuning`, that choose the map of the soft scores.
        tuning_samples: Noisy copies of each.
        temperatures: Of the maps to choose from.
    """

    sigma: float = 0.25
    alpha: float = 0.001
    num_selection: int = 100
    num_samples: int = 10_000
    images: int = 500
    batch_size: int = 2000
    exact: bool = True
    tuning_images: int = 100
    tuning_samples: int = 1000
    temperatures: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

    def __post_init__(self):
        _checks.positive(sigma=self.sigma, temperatures=self.temperatures)
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must lie strictly between 0 and 1.")
        _checks.integer(2, num_selection=self.num_selection, num_samples=self.num_samples)
        _checks.integer(1, batch_size=self.batch_size, tuning_images=self.tuning_images)
        _checks.integer(2, tuning_samples=self.tuning_samples)
        _checks.integer(0, images=self.images)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A training run and what its certification measures.

    Attributes:
        data: Name of the data set, see `lipjax.data.load`.
        model: The network.
        epochs: Passes over the training split.
        batch_size: Examples a step.
        learning_rate: Peak of the schedule.
        optimizer: `"adam"` or `"nadam"`.
        betas: Decay rates of both.
        schedule: `"triangular"`, see `lipjax.training.triangular`, or `"cosine"`: up over the first
            fortieth of the run, then down to 0 along a cosine.
        clip: Largest norm of the gradient; 0 for none.
        loss: A loss of `lipjax.training`: `"cross_entropy"`, `"multi_margin"` (`margin_loss`),
            `"certificate_regularized"`, `"hkr"`, `"emma"` or `"logit_annealing"`. Its options are
            below, None for those that other losses have, see `LOSSES`.
        offset: Of the cross-entropy and of logit annealing, in units of the logits: larger trades
            accuracy for radius.
        temperature: Of the same.
        margin: That `"multi_margin"` and the hinge of `"hkr"` ask for, in units of the logits.
        gamma: Weight of the certified radius in `"certificate_regularized"`.
        alpha: Weight of the hinge in `"hkr"`.
        beta: How fast logit annealing lets go.
        epsilon: l2 radius that `"emma"` and logit annealing train for, in pixel scale [0, 1]. It
            grows from a thirtieth over the first half of the run. 0 takes the logits as they are.
        noise: Standard deviation of Gaussian noise on the training images, in pixel scale [0, 1].
        noisy_loss: `"plain"`: `loss` of one noisy copy. Otherwise a loss of
            `lipjax.smoothing.losses` with the deviation `noise`: `"gaussian"`, `"stability"`,
            `"smooth_adv"`, `"macer"` or `"consistency"`.
        num_noise: Noisy copies of an image in such a loss.
        attack_eps: l2 radius of the attack of `"smooth_adv"`.
        affine: Random shift (pixels), rotation (degrees), scale and shear, see
            `lipjax.data.augment.random_affine`; empty for none.
        crop: Pixels that are padded (by reflection) before a random crop; 0 for none.
        flip: Whether images are mirrored at random.
        jitter: Brightness, contrast, saturation and hue of the colour jitter; contrast and
            saturation b mean factors in [1 - b, 1 + b]. Empty for none.
        hold_out: Part of the training split that is kept for validation and not trained on.
        seed: Of everything random.
        num_microbatches: Parts of a batch, computed one after the other.
        checkpoint_every: Steps between checkpoints.
        tuning: Part of the training split that is not trained on but kept for choices that certification
            makes before it sees a test image.
        radii: l2 radii at which accuracy is reported, in pixel scale [0, 1].
        attack_images: Test images that are attacked; 0 means all.
        attack_steps: Gradient steps of the attack.
        smoothing: Certificates are those of randomized smoothing then; None for margins.
    """

    data: str = "digits"
    model: ConvNetConfig | StudyNetConfig | LipConvNetConfig | LiResNetConfig | PlainConfig = (
        ConvNetConfig()
    )
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.01
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.5, 0.9)
    schedule: str = "triangular"
    clip: float = 0.0
    loss: str = "cross_entropy"
    offset: float | None = None
    temperature: float | None = None
    margin: float | None = None
    gamma: float | None = None
    alpha: float | None = None
    beta: float | None = None
    epsilon: float | None = None
    noise: float = 0.0
    noisy_loss: str = "plain"
    num_noise: int = 2
    attack_eps: float = 0.25
    affine: tuple[float, ...] = ()
    crop: int = 0
    flip: bool = False
    jitter: tuple[float, ...] = ()
    hold_out: float = 0.0
    seed: int = 0
    num_microbatches: int = 1
    checkpoint_every: int = 500
    tuning: float = 0.0
    radii: tuple[float, ...] = (36 / 255, 72 / 255, 108 / 255, 1.0)
    attack_images: int = 0
    attack_steps: int = 50
    smoothing: SmoothingConfig | None = None

    def __post_init__(self):
        _checks.one_of(NAMES, data=self.data)
        _checks.integer(1, epochs=self.epochs, batch_size=self.batch_size)
        _checks.integer(1, num_microbatches=self.num_microbatches, attack_steps=self.attack_steps)
        _checks.integer(1, checkpoint_every=self.checkpoint_every)
        _checks.integer(0, crop=self.crop, attack_images=self.attack_images, seed=self.seed)
        _checks.within(0, 2**32 - 1, seed=self.seed)
        _checks.positive(learning_rate=self.learning_rate)
        self._complete_loss()
        _checks.positive(radii=self.radii)
        if not self.radii or list(self.radii) != sorted(set(self.radii)):
            raise ValueError(f"radii is {self.radii}; it must hold increasing numbers.")
        _checks.within(0.0, 1e6, noise=self.noise, attack_eps=self.attack_eps, clip=self.clip)
        _checks.one_of(("adam", "nadam"), optimizer=self.optimizer)
        _checks.one_of(("triangular", "cosine"), schedule=self.schedule)
        _checks.one_of(NOISY_LOSSES, noisy_loss=self.noisy_loss)
        _checks.integer(2 if self.noisy_loss == "consistency" else 1, num_noise=self.num_noise)
        if self.noisy_loss != "plain" and not self.noise:
            raise ValueError(
                f"noise is 0; with noisy_loss {self.noisy_loss!r} it must be above 0, such as 0.25."
            )
        _checks.within(0.0, 0.9999, betas=self.betas)
        if len(self.betas) != 2:
            raise ValueError(f"betas is {self.betas}; it must hold two numbers.")
        _checks.within(0.0, 0.9, hold_out=self.hold_out, tuning=self.tuning)
        if self.smoothing is not None and not self.tuning:
            raise ValueError("tuning is 0; with smoothing it must be above 0, such as 0.05.")
        if len(self.affine) not in (0, 4):
            raise ValueError(
                f"affine is {self.affine}; it must be empty or hold shift, rotation, scale and shear."
            )
        if len(self.jitter) not in (0, 4):
            raise ValueError(
                f"jitter is {self.jitter}; it must be empty or hold brightness, contrast, "
                "saturation and hue."
            )
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"num_microbatches is {self.num_microbatches}; it must divide the batch_size "
                f"{self.batch_size}."
            )

    def _complete_loss(self):
        """Fills in the options of the loss that were not given, and refuses those it does not have."""
        _checks.one_of(tuple(LOSSES), loss=self.loss)
        options = LOSSES[self.loss]
        for name in LOSS_OPTIONS:
            value = getattr(self, name)
            if name not in options and value is not None:
                raise ValueError(
                    f"{name} is {value}, which loss {self.loss!r} does not have; set it to None. Its "
                    f"options are {', '.join(options)}."
                )
            if name in options:
                value = options[name] if value is None else value
                if value is None:
                    raise ValueError(
                        f"{name} is None; with loss {self.loss!r} it must be a number, such as 0.1."
                    )
                _checks.within(0.0, 1e6, **{name: value})
                object.__setattr__(self, name, value)
        if self.temperature is not None:
            _checks.positive(temperature=self.temperature)
        if self.loss in WITH_CERTIFICATE and isinstance(self.model, PlainConfig):
            raise ValueError(
                f"loss is {self.loss!r}, which needs a network with a Lipschitz bound; model is a "
                "PlainConfig, which has none."
            )
        if self.noisy_loss != "plain" and self.loss != "cross_entropy":
            raise ValueError(
                f"noisy_loss is {self.noisy_loss!r} and loss is {self.loss!r}; with another loss than "
                "'cross_entropy' it must be 'plain'."
            )

    @property
    def loss_options(self) -> dict:
        """The options of the loss, by name."""
        return {name: getattr(self, name) for name in LOSSES[self.loss]}


@dataclasses.dataclass(frozen=True)
class HybridConfig:
    """A network of tokens and a continuous part, trained and certified under noise on both.

    Attributes:
        data: `"reviews"` or `"energy"`, see `experiments.mixed`.
        beta: Chance that a word is masked or a column gets another value.
        sigma: Standard deviation of the noise on the continuous part, in its units.
        alpha: Chance of a wrong certificate, for each example.
        budget: How alpha is spent, see `lipjax.smoothing.multiclass.certify`.
        max_edits: Most tokens that change.
        radii: At which certified accuracy is reported.
        num_selection: Samples that choose the class and how alpha is spent.
        num_samples: Samples that are certified with.
        examples: Test examples, spread evenly; 0 means all.
        sample_batch: Noisy copies in a call of the network.
        embedding: Numbers that stand for a token.
        hidden: Width of the layers.
        epochs: Passes over the training split.
        batch_size: Examples a step.
        learning_rate: Peak of the triangular schedule of Adam.
        hold_out: Part of the training split that stands in for the test split: to choose settings.
        seed: Of everything random.
    """

    data: str = "reviews"
    beta: float = 0.9
    sigma: float = 0.25
    alpha: float = 0.001
    budget: str = "auto"
    max_edits: int = 4
    radii: tuple[float, ...] = (0.25, 0.5)
    num_selection: int = 100
    num_samples: int = 10_000
    examples: int = 0
    sample_batch: int = 2000
    embedding: int = 32
    hidden: int = 128
    epochs: int = 20
    batch_size: int = 100
    learning_rate: float = 0.003
    hold_out: float = 0.0
    seed: int = 0

    def __post_init__(self):
        _checks.one_of(("reviews", "energy"), data=self.data)
        _checks.one_of(BUDGETS, budget=self.budget)
        _checks.within(0.0, 1.0, beta=self.beta)
        _checks.positive(sigma=self.sigma, learning_rate=self.learning_rate, radii=self.radii)
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must lie strictly between 0 and 1.")
        _checks.integer(2, num_selection=self.num_selection, num_samples=self.num_samples)
        _checks.integer(1, sample_batch=self.sample_batch, embedding=self.embedding)
        _checks.integer(1, hidden=self.hidden, epochs=self.epochs, batch_size=self.batch_size)
        _checks.integer(0, max_edits=self.max_edits, examples=self.examples, seed=self.seed)
        _checks.within(0.0, 0.9, hold_out=self.hold_out)


HYBRID_MEASURED = (
    "alpha", "budget", "max_edits", "radii", "examples", "num_samples", "sample_batch",
)  # fmt: skip
"""Fields of `HybridConfig` that only certification uses."""


def names(kind=RunConfig) -> list[str]:
    """The runs of a kind that have a file in `experiments/configs`."""
    import experiments.configs as package

    found = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [name for name in found if isinstance(_read(name), kind)]


def load(name: str, kind=RunConfig):
    """The `CONFIG` of `experiments/configs/<name>.py`."""
    if name not in names(kind):
        other = HybridConfig if kind is RunConfig else RunConfig
        script = "experiments.train" if kind is HybridConfig else "experiments.hybrid"
        hint = f" {name} is a run of {script}." if name in names(other) else ""
        raise ValueError(f"CONFIG is {name!r}; it must be one of {names(kind)}.{hint}")
    return _read(name)


def _read(name):
    return importlib.import_module(f"experiments.configs.{name}").CONFIG


def override(config, assignments: list[str], *, only=None):
    """The config with `field=value` assignments applied; nested fields as `model.layer=cpl`.

    Values are Python literals, fractions such as 36/255 and comma-separated lists of them; what is
    none of these is a string. Another `loss` starts from its own options.

    Args:
        config: Where to start from.
        assignments: The assignments.
        only: The fields that may be assigned; all when None.

    Raises:
        ValueError: for an assignment without `=`, an unknown field or a value that does not fit.
    """
    known, kinds, changes = _fields(config), _types(config), {}
    allowed = [f for f in known if only is None or f.partition(".")[0] in only]
    for assignment in assignments:
        field, found, text = assignment.partition("=")
        if not found:
            raise ValueError(f"{assignment!r} must have the form field=value.")
        if field not in allowed:
            why = "may not be changed here" if field in known else "is no field"
            raise ValueError(f"{field!r} {why}; the fields are {', '.join(allowed)}.")
        changes[field] = _fitting(field, _literal(text), known[field], kinds[field])
    outer = {f: v for f, v in changes.items() if "." not in f}
    for part in ("model", "smoothing"):  # the fields that are configs themselves
        inner = {f.partition(".")[2]: v for f, v in changes.items() if f.startswith(part + ".")}
        if inner:  # all at once: what fits together may not fit one by one
            try:
                outer[part] = dataclasses.replace(getattr(config, part), **inner)
            except (ValueError, TypeError) as error:  # which names the field without its prefix
                raise ValueError(f"{part}.{error}") from error
    if "loss" in outer and outer["loss"] != config.loss:
        outer = dict.fromkeys(LOSS_OPTIONS) | outer
    return dataclasses.replace(config, **outer)


def _literal(text: str):
    """A number, fraction, truth value, None, tuple of them, or the text itself."""
    text = text.strip()
    if "," in text or text[:1] in "([":
        enclosed = text[:1] + text[-1:] in ("()", "[]")
        *parts, last = (text[1:-1] if enclosed else text).split(",")
        parts += [last] if last.strip() else []  # a comma may end the list
        if any(not part.strip() or set(part) & set("()[]") for part in parts):
            return text
        return tuple(_literal(part) for part in parts)
    try:
        return float(Fraction(text)) if "/" in text else ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, ZeroDivisionError):
        return text


def _fitting(field: str, value, current, kind):
    """The value as the type of the current one; of a field that may be None, as its type."""
    optional = isinstance(kind, types.UnionType) and type(None) in kind.__args__
    if isinstance(current, tuple) and not isinstance(value, tuple):
        value = (value,)
    number = isinstance(current, float) or (optional and float in kind.__args__)
    if number and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    fits = isinstance(value, type(current)) and isinstance(value, bool) == isinstance(current, bool)
    if isinstance(value, tuple) and isinstance(current, tuple):
        fits = all(isinstance(part, int | float) for part in value)
        if current and all(isinstance(part, int) for part in current):
            fits = all(isinstance(part, int) for part in value)
    if optional:
        fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits:
        raise ValueError(f"{field} is {value!r}, of the wrong type; it must be like {current!r}.")
    return value


def to_dict(config) -> dict:
    """The config as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(fields: dict, kind=RunConfig):
    """The inverse of `to_dict`."""
    return _build(kind, fields)


def read_run(run_dir: Path) -> RunConfig:
    """The config that a run directory was made with."""
    path = Path(run_dir) / "config.json"
    if not path.exists():
        raise ValueError(
            f"RUN is {str(run_dir)!r}, which holds no config.json; it must be the directory of a "
            "run, as `python -m experiments.train` prints it."
        )
    try:
        return from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: {str(error).rstrip('.')}. Train again, or restore it."
        ) from error


def _build(kind, fields):
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    unknown = set(fields) - set(types)
    if unknown or (kind is RunConfig and not {"data", "model"} <= set(fields)):
        missing = {"data", "model"} - set(fields) if kind is RunConfig else ()
        raise ValueError(f"unknown fields {sorted(unknown)}, missing fields {sorted(missing)}.")
    values = {}
    for name, value in fields.items():
        if name == "model":
            value = _build(_model_of(value), value)
        if name == "smoothing" and value is not None:
            value = _build(SmoothingConfig, value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _model_of(stored: dict):
    """The model config whose fields these are; of several, the one that lacks the fewest."""
    fields = {kind: {field.name for field in dataclasses.fields(kind)} for kind in MODELS}
    return min(MODELS, key=lambda kind: (len(set(stored) - fields[kind]), len(fields[kind])))


def _types(config) -> dict:
    """The declared type of every field, named as `_fields` names them."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{name}": inner for name, inner in _types(value).items()}
        else:
            flat[field.name] = field.type
    return flat


def _fields(config) -> dict:
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{name}": inner for name, inner in _fields(value).items()}
        else:
            flat[field.name] = value
    return flat
