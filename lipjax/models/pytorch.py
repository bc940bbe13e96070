"""Published checkpoints of the SLL and CPL papers as `LipschitzConvNet`s.

Takes the arrays of a PyTorch `state_dict` by their names and returns the network with the same
parameters in this library's layout: kernels `[height, width, in, out]`, matrices `[in, out]`, and
features flattened with the channel last. What the published code computes from them and what this
library does differ in two places, both on the safe side: steps are rounded so that the layer is
1-Lipschitz, and CPL divides by an upper bound on the norm where the code divides by an estimate from
below.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lipjax import _checks
from lipjax.layers import cpl, head, sll
from lipjax.models.convnet import ConvNetConfig, LipschitzConvNet


def from_state_dict(
    state: Mapping[str, np.ndarray],
    *,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    mean: tuple[float, ...] = (0.0,),
    weights: str = "exp",
) -> LipschitzConvNet:
    """The network of the SLL or CPL paper with these parameters.

    Args:
        state: Arrays by name, as in `{k: v.numpy() for k, v in module.state_dict().items()}`. Names may
            have a prefix, such as `module.` or `model.`.
        image_shape: Height, width and channels of the input.
        mean: What the published wrapper subtracts from the input.
        weights: How the checkpoint means `q` of SLL: `"exp"`, of the present code, or `"abs"`, of the
            first release (which was not 1-Lipschitz; loaded like this it is). Convolutions ignore
            `q`, as the published code does.

    Returns:
        `LipschitzConvNet` with free parameters, of depth, width and hidden sizes read off the arrays.

    Raises:
        ValueError: for names or shapes that do not make such a network; the message has the first.

    Reference: Araujo et al. (2023), https://arxiv.org/abs/2303.03169; Meunier et al. (2022),
    https://arxiv.org/abs/2110.12690.
    """
    _checks.one_of(("exp", "abs"), weights=weights)
    arrays = {name: np.asarray(array) for name, array in state.items()}
    read = _read_cpl if any("stable_block." in name for name in arrays) else _read_sll
    convs, denses, last, layer = read(arrays)
    if not denses and not convs:
        raise ValueError(
            f"state has no layers of an SLL or CPL network; its names begin with {sorted(arrays)[:3]}."
        )
    if last is None:
        raise ValueError("state has no normalized last layer, a matrix 'weight' with a 'bias'.")
    config = _config(convs, denses, last, layer, image_shape, mean)
    model = LipschitzConvNet(config, rngs=nnx.Rngs(0))
    order = _channels_last(config)
    if convs:
        rows = [_conv_params(conv, layer) for conv in convs]
        model.conv.free = nnx.Param(_stacked(rows, model.conv.free.get_value(), "convolution"))
    if denses:
        rows = [_dense_params(dense, layer, order, weights) for dense in denses]
        model.dense.free = nnx.Param(_stacked(rows, model.dense.free.get_value(), "dense layer"))
    kernel = jnp.asarray(last["weight"][:, order].T, jnp.float32)
    model.head.free = nnx.Param(head.Params(kernel, jnp.asarray(last["bias"], jnp.float32)))
    return model


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
    rows = [found[i] for i in sorted(found)]
    convs = [row for row in rows if "kernel" in row]
    denses = [row for row in rows if "weight" in row and "q" in row]
    lasts = [row for row in rows if "weight" in row and "q" not in row]
    return convs, denses, (lasts[-1] if lasts else None), "sll"


def _read_cpl(arrays):
    """`stable_block.<i>`, `layers_linear.<i>` and `last_last`; `base` repeats them."""
    convs, denses, last = {}, {}, {}
    for name, array in arrays.items():
        match = re.search(r"(stable_block|layers_linear)\.(\d+)\.(kernel|weights|bias)$", name)
        if match:
            rows = convs if match[1] == "stable_block" else denses
            key = "kernel" if match[3] == "kernel" else match[3].replace("weights", "weight")
            rows.setdefault(int(match[2]), {})[key] = array
        elif match := re.search(r"last_last\.(weight|bias)$", name):
            last[match[1]] = array
    ordered = [[rows[i] for i in sorted(rows)] for rows in (convs, denses)]
    return *ordered, (last or None), "cpl"


def _config(convs, denses, last, layer, image_shape, mean) -> ConvNetConfig:
    sizes = dict(conv_depth=len(convs), dense_depth=len(denses))
    if convs:
        hidden, width, size, _ = _shaped(convs[0], "kernel", 4)
        sizes |= dict(conv_width=width, conv_hidden=hidden, kernel_size=size)
    if denses:
        sizes |= dict(dense_hidden=_shaped(denses[0], "weight", 2)[0])
    classes, features = _shaped(last, "weight", 2)
    config = ConvNetConfig(
        layer=layer, image_shape=image_shape, num_classes=classes, mean=mean, **sizes
    )
    if config.features != features:
        raise ValueError(
            f"image_shape is {image_shape}, which leaves {config.features} features; the last layer "
            f"of state takes {features}."
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
    _shaped(row, "weight", 2)
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
    height, width, _ = config.image_shape
    height, width = height // config.pool, width // config.pool
    channels = config.flat_features // (height * width)
    places = np.arange(config.flat_features).reshape(channels, height, width)
    return places.transpose(1, 2, 0).reshape(-1)
