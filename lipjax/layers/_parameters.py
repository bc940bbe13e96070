"""Free parameters as the constraints take them: of the right rank, and as JAX holds them."""

from lipjax import _checks


def of_dense(kind, params, outputs: int | None = -1):
    """Parameters of a dense layer, as that NamedTuple of arrays.

    Args:
        kind: The `Params` of the layer.
        params: One of them, or its fields in a sequence, of JAX, NumPy or plain floats.
        outputs: The axis of the kernel that has one bias for each entry; None for none.

    Raises:
        ValueError: for other parameters, the kernel of a convolution (which a dense constraint would
            turn into a layer that expands), or a bias that does not fit it.
    """
    ranks, axes = 2, "[n, m]: use constrain_conv for a convolution, jax.vmap for several layers"
    return _of(kind, params, ranks, axes, outputs)


def of_conv(kind, params, ranks=(3, 4, 5), outputs: int = -1):
    """Parameters of a convolution; as `of_dense`."""
    axes = "[*window, n, m]: use constrain_dense for a matrix, jax.vmap for several layers"
    return _of(kind, params, ranks, axes, outputs)


def _of(kind, params, ranks, axes, outputs):
    named = getattr(params, "_fields", kind._fields) == kind._fields
    if not isinstance(params, list | tuple) or len(params) != len(kind._fields) or not named:
        raise ValueError(
            f"params is a {type(params).__module__}.{type(params).__name__}; it must be "
            f"Params({', '.join(kind._fields)}), as init of this layer makes them."
        )
    pairs = zip(kind._fields, params)
    params = kind(*(_checks.array(**{f"params.{name}": value}) for name, value in pairs))
    _checks.ranked(ranks, axes, **{"params.kernel": params.kernel})
    for name, value in zip(params._fields, params):
        _checks.real_floating(**{f"params.{name}": value})
    _checks.ranked(1, "[m]", **{"params.bias": params.bias})
    if outputs is not None:
        size = params.kernel.shape[outputs]
        _checks.axis_size(0, size, "one per output of the kernel", **{"params.bias": params.bias})
    return params
