"""Published checkpoints: of the SLL and CPL papers, and of the comparison study.

Takes the arrays of a PyTorch `state_dict` by their names and returns the network with the same
parameters in this library's layout: kernels `[height, width, in, out]`, matrices `[in, out]`, and
features flattened with the channel last. What the published code computes from them and what this
library does differ in two places, both on the safe side: steps are rounded so that the layer is
1-Lipschitz, and CPL divides by an upper bound on the norm where the code divides by an estimate from
below.

Of the study's networks those of AOL, CPL and SLL are read. The others are other functions here: SOC is
divided by an estimate of the norm that is stored with it, BCOP is orthogonalized with one as well, and
Cayley's filters are shifted.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lipjax import _checks, nn
from lipjax.layers import aol, cpl, head, sll
from lipjax.models.convnet import ConvNetConfig, LipschitzConvNet, channel_order
from lipjax.models.studynet import StudyNet, StudyNetConfig


def from_state_dict(
    state: Mapping[str, np.ndarray],
    *,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    mean: tuple[float, ...] = (0.0,),
    weights: str = "exp",
    num_classes: int = 10,
) -> LipschitzConvNet | StudyNet:
    """The network of the SLL or CPL paper or of the comparison study with these parameters.

    Args:
        state: Arrays by name, as in `{k: v.numpy() for k, v in module.state_dict().items()}`. Names may
            have a prefix, such as `module.` or `model.`.
        image_shape: Height, width and channels of the input.
        mean: What the published wrapper subtracts from the input.
        weights: How the checkpoint means `q` of SLL: `"exp"`, of the present code, or `"abs"`, of the
            first release (which was not 1-Lipschitz; loaded like this it is). Convolutions ignore
            `q`, as the published code does; those of the study use its size.
        num_classes: Of a network of the study, or of the CPL paper without `last_last`, whose arrays do
            not say it.

    Returns:
        `LipschitzConvNet`, or `StudyNet` for names that begin with `FirstConv`, `Block1` and so on, with
        free parameters; depth, width and hidden sizes are read off the arrays. The logits of a CPL
        network without `last_last` are its first features, as in the published code.

    Raises:
        ValueError: for names or shapes that do not make such a network; the message has the first.

    Reference: Araujo et al. (2023), https://arxiv.org/abs/2303.03169; Meunier et al. (2022),
    https://arxiv.org/abs/2110.12690; Prach et al. (2024), https://arxiv.org/abs/2311.16833.
    """
    _checks.one_of(("exp", "abs"), weights=weights)
    arrays = {name: np.asarray(array) for name, array in state.items()}
    if any(re.search(r"(^|\.)FirstConv\.", name) for name in arrays):
        return _study(arrays, image_shape, mean, num_classes)
    read = _read_cpl if any("stable_block." in name for name in arrays) else _read_sll
    convs, denses, last, layer = read(arrays)
    _check_finite([*convs, *denses, last or {}], arrays)
    if not denses and not convs:
        raise ValueError(
            f"state has no layers of an SLL or CPL network; its names begin with {sorted(arrays)[:3]}."
        )
    if last is None and layer == "sll":
        raise ValueError(
            "state has no normalized last layer: a matrix 'weight' with a 'bias'. Networks of SLL with "
            "another last layer are not read."
        )
    config = _config(convs, denses, last, layer, image_shape, mean, num_classes)
    model = LipschitzConvNet(config, rngs=nnx.Rngs(0))
    order = _channels_last(config)
    if convs:
        rows = [_conv_params(conv, layer) for conv in convs]
        model.conv.free = nnx.Param(_stacked(rows, model.conv.free.get_value(), "convolution"))
    if denses:
        rows = [_dense_params(dense, layer, order, weights) for dense in denses]
        model.dense.free = nnx.Param(_stacked(rows, model.dense.free.get_value(), "dense layer"))
    if last is not None:
        kernel = jnp.asarray(last["weight"][:, order].T, jnp.float32)
        model.head.free = nnx.Param(head.Params(kernel, jnp.asarray(last["bias"], jnp.float32)))
    return model


def _study(arrays, image_shape, mean, num_classes) -> StudyNet:
    """`FirstConv`, `Block<i>.<2 j>` (activations stand between) and `ClassificationHead.0`."""
    rows = {}
    for name, array in arrays.items():
        match = re.search(r"(?:^|\.)(FirstConv|Block\d+\.\d+|ClassificationHead\.0)\.(.+)$", name)
        if match is None:
            raise ValueError(
                f"state has the name {name!r}; those of the comparison study begin with 'FirstConv', "
                "'Block<number>.<number>' or 'ClassificationHead.0'."
            )
        rows.setdefault(match[1], {})[match[2]] = array
    first = rows["FirstConv"]
    layer = (
        "aol" if _AOL in first else "sll" if "q" in first else "cpl" if "kernel" in first else None
    )
    if layer is None:
        raise ValueError(
            f"state has 'FirstConv' with {sorted(first)}; only the study's networks of AOL, CPL and SLL "
            "are read."
        )
    blocks = {}
    for name in rows:
        if match := re.fullmatch(r"Block(\d+)\.(\d+)", name):
            blocks.setdefault(int(match[1]), []).append(int(match[2]))
    if "ClassificationHead.0" not in rows or sorted(blocks) != list(range(1, len(blocks) + 1)):
        raise ValueError(
            f"state has the blocks {sorted(blocks)} and the layers {sorted(rows)[:3]} and more; blocks "
            "are numbered from 1 on, and 'ClassificationHead.0' follows."
        )
    for i in blocks:
        _check_spaced(f"Block{i}", blocks[i])
        if len(blocks[i]) != len(blocks[1]):
            raise ValueError(
                f"state has {len(blocks[1])} layers in Block1 and {len(blocks[i])} in Block{i}; all "
                "blocks have as many."
            )
    for name, row in rows.items():
        missing = {"bias", _AOL if layer == "aol" else "kernel", *["q"] * (layer == "sll")} - set(
            row
        )
        if missing:
            raise ValueError(f"state lacks '{name}.{min(missing)}'; the network is one of {layer}.")
        _check_finite([{k: row[k] for k in (_AOL, "kernel", "bias", "q") if k in row}], arrays)
    name = _AOL if layer == "aol" else "kernel"
    config = StudyNetConfig(
        layer=layer,
        image_shape=image_shape,
        num_classes=num_classes,
        width=_shaped(first, name, 4)[1],
        blocks=len(blocks),
        block_depth=len(blocks[1]),
        kernel_size=_shaped(rows[f"Block1.{blocks[1][0]}"], name, 4)[2],
        mean=mean,
    )
    model = StudyNet(config, rngs=nnx.Rngs(0))

    def filled(part, names):
        found = [_study_params(rows[n], layer) for n in names]
        like = part.free.get_value()
        if isinstance(part, nn.Stack):
            part.free = nnx.Param(_stacked(found, like, f"{names[0]} and on, number"))
        else:
            one = jax.tree.map(lambda leaf: leaf[None], like)
            stacked = _stacked(found, one, f"{names[0]}, number")
            part.free = nnx.Param(jax.tree.map(lambda leaf: leaf[0], stacked))

    filled(model.first, ["FirstConv"])
    for i, stage in enumerate(model.stages, 1):
        filled(stage, [f"Block{i}.{j}" for j in sorted(blocks[i])])
    filled(model.last, ["ClassificationHead.0"])
    return model


_AOL = "parametrizations.weight.original"


def _study_params(row, layer):
    array = row.get(_AOL if layer == "aol" else "kernel")
    if array is None or array.ndim != 4 or "bias" not in row:
        raise ValueError(f"state has a layer of {sorted(row)}; the first is one of {layer}.")
    kernel = jnp.asarray(array.transpose(2, 3, 1, 0), jnp.float32)
    if layer == "aol":
        return aol.Params(kernel, jnp.asarray(row["bias"], jnp.float32))
    log_q = np.log(np.abs(row["q"]) + 1e-6) if layer == "sll" else None
    return _params(kernel, row, layer, log_q)


def _read_sll(arrays):
    """Layers of one numbered sequence: convolutions have `kernel`, the head has no `q`."""
    found = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(?:.*\.)?(\d+)\.(kernel|weight|bias|q)", name)
        if match is None:
            raise ValueError(
                f"state has the name {name!r}; layers of SLL are called '<number>.kernel', '.weight', "
                "'.bias' and '.q'."
            )
        found.setdefault(int(match[1]), {})[match[2]] = array
    kinds = {frozenset(names): kind for kind, names in _SLL.items()}
    numbers = {kind: [] for kind in _SLL}
    for i in sorted(found):
        kind = kinds.get(frozenset(found[i]))
        if kind is None:
            raise ValueError(
                f"state has of layer {i} only {sorted(found[i])}; a convolution has "
                f"{_SLL['convolution']}, a dense layer {_SLL['dense layer']} and the last layer "
                f"{_SLL['last layer']}."
            )
        numbers[kind].append(i)
    for kind, places in numbers.items():
        _check_spaced(kind, places)
    if len(numbers["last layer"]) > 1 or (
        numbers["last layer"] and max(found) in numbers["dense layer"]
    ):
        raise ValueError(
            f"state has the last layer, with a weight and a bias alone, at {numbers['last layer']} of "
            f"{sorted(found)}; it must be there once, at the end. (A dense layer has a 'q' too.)"
        )
    convs, denses, lasts = ([found[i] for i in places] for places in numbers.values())
    return convs, denses, (lasts[-1] if lasts else None), "sll"


_SLL = {
    "convolution": ["bias", "kernel", "q"],
    "dense layer": ["bias", "q", "weight"],
    "last layer": ["bias", "weight"],
}


def _check_spaced(what, places):
    """Numbers rise evenly, by two where activations stand between; a gap is a layer that is missing."""
    if len({b - a for a, b in zip(places, places[1:])}) > 1:
        raise ValueError(
            f"state has {what} numbered {places}, with a gap: parts of the checkpoint are missing."
        )


def _read_cpl(arrays):
    """`stable_block.<i>`, `layers_linear.<i>` and `last_last`, if any; `base` repeats them."""
    convs, denses, last = {}, {}, {}
    for name, array in arrays.items():
        match = re.search(r"(stable_block|layers_linear)\.(\d+)\.(kernel|weights|bias)$", name)
        if match:
            rows = convs if match[1] == "stable_block" else denses
            key = "kernel" if match[3] == "kernel" else match[3].replace("weights", "weight")
            rows.setdefault(int(match[2]), {})[key] = array
        elif match := re.search(r"last_last\.(weight|bias)$", name):
            last[match[1]] = array
    for part, rows, names in (
        ("stable_block", convs, {"kernel", "bias"}),
        ("layers_linear", denses, {"weight", "bias"}),
        ("last_last", {0: last} if last else {}, {"weight", "bias"}),
    ):
        _check_spaced(part, sorted(rows))
        for i, row in rows.items():
            if set(row) != names:
                raise ValueError(
                    f"state has of {part}, layer {i}, only {sorted(row)}; it must have {sorted(names)}."
                )
    ordered = [[rows[i] for i in sorted(rows)] for rows in (convs, denses)]
    return *ordered, (last or None), "cpl"


def _check_finite(rows, arrays):
    """That what is read is finite, also in float32, which the parameters are made of."""
    names = {id(array): name for name, array in arrays.items()}
    for array in (array for row in rows for array in row.values()):
        try:
            with np.errstate(over="ignore"):
                finite = not np.iscomplexobj(array) and np.isfinite(array.astype(np.float32)).all()
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise ValueError(
                f"state has {names[id(array)]!r} with NaN, infinity or what float32 does not hold."
            )


def _config(convs, denses, last, layer, image_shape, mean, num_classes) -> ConvNetConfig:
    sizes = dict(conv_depth=len(convs), dense_depth=len(denses))
    if convs:
        hidden, width, *window = _shaped(convs[0], "kernel", 4)
        if window[0] != window[1]:
            raise ValueError(
                f"state has a first 'kernel' of shape {(hidden, width, *window)}; it must be "
                "[hidden, channels, height, width] with a square window, as PyTorch has it."
            )
        size = window[0]
        sizes |= dict(conv_width=width, conv_hidden=hidden, kernel_size=size)
    if denses:
        sizes |= dict(dense_hidden=_shaped(denses[0], "weight", 2)[0])
    if last is None:
        sizes |= dict(num_classes=num_classes, head="projection")
    else:
        sizes |= dict(num_classes=_shaped(last, "weight", 2)[0])
    config = ConvNetConfig(layer=layer, image_shape=image_shape, mean=mean, **sizes)
    for row in [last] if last is not None else denses[-1:]:
        features = _shaped(row, "weight", 2)[1]
        if config.features != features:
            raise ValueError(
                f"image_shape is {image_shape}, which leaves {config.features} features; the last "
                f"layer of state takes {features}."
            )
    return config


def _shaped(row, name, rank):
    array = row.get(name)
    if array is None or array.ndim != rank:
        shape = None if array is None else array.shape
        raise ValueError(
            f"state has a layer whose {name!r} has shape {shape}; it must have {rank} axes."
        )
    return array.shape


def _conv_params(row, layer):
    _shaped(row, "kernel", 4)
    kernel = jnp.asarray(row["kernel"].transpose(2, 3, 1, 0), jnp.float32)
    return _params(kernel, row, layer, np.zeros(kernel.shape[-1]))


def _dense_params(row, layer, order, weights):
    shape = _shaped(row, "weight", 2)
    if shape[1] != len(order):
        raise ValueError(
            f"state has a dense layer whose 'weight' has shape {shape}; it must be [hidden, features] "
            f"with {len(order)} features."
        )
    kernel = jnp.asarray(row["weight"][:, order].T, jnp.float32)
    q = row.get("q", np.zeros(kernel.shape[-1]))
    if weights == "abs" and "q" in row:
        q = np.log(np.maximum(np.abs(q), 1e-6))
    return _params(kernel, row, layer, q)


def _params(kernel, row, layer, log_q):
    bias = jnp.asarray(np.reshape(row["bias"], -1), jnp.float32)
    if layer == "cpl":
        return cpl.Params(kernel, bias)
    return sll.Params(kernel, bias, jnp.asarray(np.reshape(log_q, -1), jnp.float32))


def _stacked(rows, like, what):
    """All layers' parameters on axis 0, with the shapes of the network's own."""
    for i, row in enumerate(rows):
        for name, array, own in zip(like._fields, row, like):
            if array.shape != own.shape[1:]:
                raise ValueError(
                    f"state has {name} of {what} {i} in a shape that becomes {array.shape}; the first "
                    f"one makes it {own.shape[1:]}."
                )
    return type(like)(*(jnp.stack(leaves) for leaves in zip(*rows)))


def _channels_last(config):
    """For each flattened feature here, (row, column, channel), its place in (channel, row, column)."""
    return np.argsort(channel_order(config))
