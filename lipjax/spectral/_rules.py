"""What each operation of a program does to Lipschitz bounds: one small function each."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from lipjax._numerics import round_up
from lipjax.spectral._program import Constant, Linear, Value, floored, root
from lipjax.spectral.conv import conv_gram_iteration
from lipjax.spectral.gram import gram_iteration


def _keep(walk, eqn, inputs):
    """Operations of norm 1 that move the entries, and elementwise ones of slope at most 1."""
    return Value(walk.flush(inputs[0]))


def _affine(walk, eqn, inputs):
    """Sums: of two branches, or with a constant, which changes no difference."""
    values = [i for i in inputs if isinstance(i, Value)]
    if len(values) == 1:
        return values[0]
    return Value(walk.record("sum", *(walk.flush(v) for v in values)))


def _negated(walk, eqn, inputs):
    return inputs[0]


def _product(walk, eqn, inputs):
    values = [i for i in inputs if isinstance(i, Value)]
    if len(values) == 2:
        raise ValueError(walk.refusal(eqn, "a product of two such values has no constant"))
    factor = inputs[1] if isinstance(inputs[0], Value) else inputs[0]
    return walk.scaled(eqn, values[0], factor)


def _quotient(walk, eqn, inputs):
    if not isinstance(inputs[1], Constant):
        raise ValueError(walk.refusal(eqn, "a division by such a value has no constant"))
    divisor = jnp.abs(inputs[1].array)
    inverse = jnp.where(jnp.isinf(divisor), 0, floored(round_up(1 / divisor)))
    return walk.scaled(eqn, inputs[0], Constant(inverse, inputs[1].shape))


def _joined(walk, eqn, inputs):
    """Elementwise maxima and concatenations: no more than the hypotenuse of the branches."""
    nodes = [walk.flush(i) for i in inputs if isinstance(i, Value)]
    return Value(nodes[0] if len(nodes) == 1 else walk.record("hypot", *nodes))


def _concatenated(walk, eqn, inputs):
    """As `_joined`, but slices of one array together are that array, or copies of its entries."""
    cuts, others = {}, []
    for value in inputs:
        if isinstance(value, Value) and value.cut is not None:
            var, counts = value.cut
            cuts.setdefault((id(var), value.node), []).append(counts)
        elif isinstance(value, Value):
            others.append(value)
    for (_, node), counts in cuts.items():
        others.append(walk.copied(eqn, Value(node), int(np.max(sum(counts), initial=0))))
    return _joined(walk, eqn, others)


def _cut(walk, eqn, inputs):
    node = walk.flush(inputs[0])
    return Value(node, cut=(eqn.invars[0], _seen(eqn, ())))


def _seen(eqn, rest):
    """How often an operation that selects entries of its first operand selects each."""
    aval, params = eqn.invars[0].aval, dict(eqn.params)
    if params.get("mode") == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        # Indices that break the promise are clamped; the transpose would leave them out.
        params["mode"] = lax.GatherScatterMode.CLIP
    select = functools.partial(eqn.primitive.bind, **params)
    with jax.ensure_compile_time_eval():
        operand = jax.ShapeDtypeStruct(aval.shape, jnp.float32)
        (counts,) = jax.linear_transpose(lambda v: select(v, *rest), operand)(
            jnp.ones(eqn.outvars[0].aval.shape, jnp.float32)
        )
    return counts if isinstance(counts, jax.core.Tracer) else np.asarray(counts)


def _gathered(walk, eqn, inputs):
    """Entries picked by constant indices: the norm is the root of how often one is picked."""
    if not isinstance(inputs[0], Value):
        raise ValueError(walk.refusal(eqn, "its indices depend on the input"))
    most = _seen(eqn, [inputs[1].full()]).max(initial=0)
    if not isinstance(most, jax.Array):
        return Value(walk.flush(walk.copied(eqn, inputs[0], int(most))))
    norm = round_up(jnp.sqrt(most))
    return Value(walk.layer(walk.flush(inputs[0]), walk.name(eqn, "gather"), "copy", norm))


def _written(walk, eqn, inputs):
    """Entries overwritten by others at constant places: each comes from one of the two."""
    operand, *rest = inputs
    indices, updates = rest[1:], rest[0]
    if eqn.primitive.name == "scatter":
        indices, updates = rest[:1], rest[1]
        program = eqn.params["update_jaxpr"]  # of x.at[i].apply(f) it is f
        if program is not None and (program.eqns or program.outvars[0] is not program.invars[1]):
            raise ValueError(walk.refusal(eqn, "it changes entries by a function of its own"))
    if not all(isinstance(i, Constant) for i in indices):
        raise ValueError(walk.refusal(eqn, "its place depends on the input"))
    return _joined(walk, eqn, [operand, updates])


def _clamped(walk, eqn, inputs):
    low, value, high = inputs
    if not (isinstance(low, Constant) and isinstance(high, Constant)):
        raise ValueError(walk.refusal(eqn, "its limits depend on the input"))
    return _keep(walk, eqn, [value])


def _selected(walk, eqn, inputs):
    return _joined(walk, eqn, inputs[1:])  # by a constant: decisions were refused before


def _broadcast(walk, eqn, inputs):
    """Copies: the norm is the square root of their number."""
    copies = math.prod(eqn.params["shape"]) // max(1, math.prod(eqn.invars[0].aval.shape))
    return Value(walk.flush(walk.copied(eqn, inputs[0], copies)))


def _repeated(walk, eqn, inputs):
    copies = eqn.outvars[0].aval.size // max(1, eqn.invars[0].aval.size)
    return Value(walk.flush(walk.copied(eqn, inputs[0], copies)))


def _sliced(walk, eqn, inputs):
    if not all(isinstance(i, Constant) for i in inputs[1:]):
        raise ValueError(walk.refusal(eqn, "its place depends on the input"))
    return _keep(walk, eqn, inputs)


def _reduced_sum(walk, eqn, inputs):
    shape = eqn.invars[0].aval.shape
    count = math.prod(shape[axis] for axis in eqn.params["axes"])
    node = walk.flush(inputs[0])
    if count == 1:
        return Value(node)
    return Value(walk.layer(node, walk.name(eqn, f"sum of {count}"), "pool", root(count)))


def _padded(walk, eqn, inputs):
    if not isinstance(inputs[1], Constant):
        raise ValueError(walk.refusal(eqn, "it is padded with a value of the input"))
    return _keep(walk, eqn, inputs)


def _pooled(walk, eqn, inputs, *, summed):
    """A point lies in at most `ceil(window / stride)` windows per axis."""
    params = eqn.params
    if max((*params["base_dilation"], *params["window_dilation"])) > 1:
        raise ValueError(walk.refusal(eqn, "a dilated window is not supported"))
    window, strides = params["window_dimensions"], params["window_strides"]
    seen = math.prod(-(-w // s) for w, s in zip(window, strides))
    size = math.prod(window) if summed else 1
    node = walk.flush(inputs[0])
    if seen * size == 1:
        return Value(node)
    what = "sum" if summed else "max"
    shape = "x".join(str(w) for w in window if w > 1)
    name = walk.name(eqn, f"{what} pool {shape}")
    return Value(walk.layer(node, name, "pool", root(seen * size)))


def _convolved(walk, eqn, inputs):
    if not (isinstance(inputs[0], Value) and isinstance(inputs[1], Constant)):
        raise ValueError(walk.refusal(eqn, "its kernel depends on the input"))
    params, x = eqn.params, eqn.invars[0].aval
    if params["batch_group_count"] != 1:
        raise ValueError(walk.refusal(eqn, "batch groups are not supported"))
    numbers = params["dimension_numbers"]
    out_channel, in_channel, *window_axes = numbers.rhs_spec
    kernel = jnp.transpose(inputs[1].full(), (*window_axes, in_channel, out_channel))
    *window, c_in, c_out = kernel.shape
    sizes = tuple(x.shape[axis] for axis in numbers.lhs_spec[2:])
    groups, strides = params["feature_group_count"], params["window_strides"]
    geometry = _cheapest(
        window, sizes, strides, params["rhs_dilation"], params["lhs_dilation"], params["padding"]
    )
    norm = functools.partial(conv_gram_iteration, groups=groups, **geometry, **walk.options)
    shape = "x".join(map(str, window)) + f" {c_in * groups} -> {c_out}"
    shape += f", stride {'x'.join(map(str, strides))}" if max(strides) > 1 else ""
    shape += f", {groups} groups" if groups > 1 else ""
    linear = Linear("conv", walk.name(eqn, shape), kernel, numbers.out_spec[1], norm)
    return Value(walk.flush(inputs[0]), linear)


def _cheapest(window, sizes, strides, dilation, lhs_dilation, padding):
    """Options of `conv_gram_iteration`: the torus of this size, or the grid for all sizes."""
    if max(lhs_dilation) > 1:  # zeros between the points, an isometry, then a plain convolution
        return dict(padding="any")
    grid = [-(-(n + max(0, *p)) // s) for n, p, s in zip(sizes, padding, strides)]
    everywhere = [1 if k == 1 else max(32, 16 * (k - 1)) for k in window]
    if math.prod(grid) > 4 * math.prod(everywhere):
        return dict(padding="any", strides=strides, dilation=dilation)
    return dict(
        padding=tuple((max(0, a), max(0, b)) for a, b in padding),
        input_size=sizes,
        strides=strides,
        dilation=dilation,
    )


def _multiplied(walk, eqn, inputs):
    (contract, batch) = eqn.params["dimension_numbers"]
    if all(isinstance(i, Value) for i in inputs):
        raise ValueError(walk.refusal(eqn, "a product of two such values has no constant"))
    if batch[0]:
        raise ValueError(walk.refusal(eqn, "batched products are not supported"))
    side = 1 if isinstance(inputs[0], Value) else 0
    axes = contract[side]
    matrix = inputs[side].full()
    free = [axis for axis in range(matrix.ndim) if axis not in axes]
    shape = [matrix.shape[axis] for axis in free]
    rows = math.prod(matrix.shape[axis] for axis in axes)
    matrix = jnp.transpose(matrix, (*axes, *free)).reshape(rows, math.prod(shape))
    # The axis of the output that the last free axis of the matrix becomes, if it has just one.
    last = len(eqn.outvars[0].aval.shape) - 1 if side == 1 else 0
    axis = last if len(free) == 1 else -1
    norm = functools.partial(gram_iteration, **walk.options)
    name = walk.name(eqn, f"{rows} -> {math.prod(shape)}")
    return Value(walk.flush(inputs[1 - side]), Linear("dense", name, matrix, axis, norm))


def _elementwise(walk, eqn, inputs):
    slope = _SLOPES[eqn.primitive.name]
    node = walk.flush(inputs[0])
    if slope != 1:
        node = walk.layer(node, walk.name(eqn, eqn.primitive.name), "activation", slope)
    return Value(node)


def _converted(walk, eqn, inputs):
    dtype = eqn.outvars[0].aval.dtype
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(walk.refusal(eqn, f"{dtype} rounds too much for a bound"))
    return _keep(walk, eqn, inputs)


def activation_slope(name, inner, inputs):
    """The largest slope of a `jax.nn` activation, recognized by its whole program; else None."""
    if name not in _ACTIVATIONS or not isinstance(inner, core.ClosedJaxpr):
        return None
    value, *rest = inputs
    if not isinstance(value, Value) or not all(isinstance(i, Constant) for i in rest):
        return None
    slope, of_argument = _ACTIVATIONS[name]
    avals = [v.aval for v in inner.jaxpr.invars]
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
    try:
        traced = jax.make_jaxpr(getattr(jax.nn, name))(*like)
    except TypeError:  # a function of that name with other arguments
        return None
    if str(traced.jaxpr.eqns[0].params.get("jaxpr")) != str(inner):
        return None
    for constant in rest if of_argument else []:
        slope = jnp.maximum(slope, jnp.max(of_argument(jnp.asarray(constant.array, jnp.float32))))
    return slope


_SLOPES = {
    "abs": 1, "tanh": 1, "sin": 1, "cos": 1, "atan": 1, "asinh": 1, "logistic": 0.25, "erf": 1.1284
}  # fmt: skip


def _if_positive(argument):
    return jnp.where(argument > 0, 1.0, jnp.inf)


_ACTIVATIONS = {  # the largest slope, rounded up, and the slope that an argument may lead to
    "silu": (1.1, None),
    "mish": (1.09, None),
    "softplus": (1.0, None),
    "log_sigmoid": (1.0, None),
    "soft_sign": (1.0, None),
    "selu": (1.7581, None),
    "hard_tanh": (1.0, None),
    "hard_silu": (1.5, None),
    "squareplus": (1.0, _if_positive),
    "celu": (1.0, _if_positive),
    "elu": (1.0, jnp.abs),
    "leaky_relu": (1.0, jnp.abs),
}
_KEEP = (
    "reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "copy_p",
    "reduce_max", "reduce_min", "sort", "stop_gradient", "pvary", "pcast", "reshard",
    "sharding_constraint",
)  # fmt: skip
RULES = {
    "add": _affine,
    "add_any": _affine,
    "sub": _affine,
    "neg": _negated,
    "mul": _product,
    "div": _quotient,
    "max": _joined,
    "min": _joined,
    "concatenate": _concatenated,
    "stack": _joined,
    "tile": _repeated,
    "slice": _cut,
    "dynamic_slice": _sliced,
    "gather": _gathered,
    "scatter": _written,
    "dynamic_update_slice": _written,
    "clamp": _clamped,
    "select_n": _selected,
    "broadcast_in_dim": _broadcast,
    "reduce_sum": _reduced_sum,
    "pad": _padded,
    "reduce_window_max": functools.partial(_pooled, summed=False),
    "reduce_window_min": functools.partial(_pooled, summed=False),
    "reduce_window_sum": functools.partial(_pooled, summed=True),
    "conv_general_dilated": _convolved,
    "dot_general": _multiplied,
    "convert_element_type": _converted,
    **dict.fromkeys(_KEEP, _keep),
    **dict.fromkeys(_SLOPES, _elementwise),
}
