"""A small one of every layer of `lipjax.nn`, for what must hold of all."""

from flax import nnx

from lipjax import nn

SIZE = (4, 5)
"""Images that the convolutions act on."""

DENSE = {
    name: lambda rngs, name=name: getattr(nn, name)(6, 6, rngs=rngs)
    for name in (
        "SpectralDense BjorckDense CayleyDense HouseholderDense QRDense CholeskyDense SkewDense "
        "AOLDense RescaledDense"
    ).split()
} | {"ReflectorDense": lambda rngs: nn.ReflectorDense(6, rngs=rngs)}
"""Linear layers on `float[..., 6]`."""

CONV = {
    "SpectralConv": lambda rngs: nn.SpectralConv(3, 3, rngs=rngs),
    "AOLConv": lambda rngs: nn.AOLConv(3, 3, rngs=rngs),
    "RescaledConv": lambda rngs: nn.RescaledConv(3, 3, rngs=rngs),
    "BCOPConv": lambda rngs: nn.BCOPConv(3, 3, rngs=rngs),
    "SOCConv": lambda rngs: nn.SOCConv(3, 3, rngs=rngs),
    "CayleyConv": lambda rngs: nn.CayleyConv(3, 3, input_size=SIZE, rngs=rngs),
    "ReflectorConv": lambda rngs: nn.ReflectorConv(3, input_size=SIZE, rngs=rngs),
}
"""Linear layers on `float[..., 4, 5, 3]`."""

SANDWICH = {
    "SandwichDense": lambda rngs: nn.SandwichDense(6, 6, rngs=rngs),
    "SandwichConv": lambda rngs: nn.SandwichConv(3, 3, input_size=SIZE, rngs=rngs),
}

RESIDUAL = {
    "SLLDense": lambda rngs: nn.SLLDense(6, 8, rngs=rngs),
    "SLLConv": lambda rngs: nn.SLLConv(3, 4, rngs=rngs),
    "CPLDense": lambda rngs: nn.CPLDense(6, 8, rngs=rngs),
    "CPLConv": lambda rngs: nn.CPLConv(3, 4, rngs=rngs),
}

OTHERS = {
    "NormalizedHead": lambda rngs: nn.NormalizedHead(6, 6, rngs=rngs),
    "Householder": lambda rngs: nn.Householder(6, rngs=rngs),
    "Residual": lambda rngs: nn.Residual(nn.CayleyDense(6, 6, rngs=rngs)),
    "ConvexMix": lambda rngs: nn.ConvexMix(nn.CayleyDense(6, 6, rngs=rngs)),
    "Chain": lambda rngs: nn.Chain(nn.AOLDense(6, 6, rngs=rngs), "max_min"),
}

LINEAR = DENSE | CONV
LAYERS = LINEAR | SANDWICH | RESIDUAL | OTHERS


def sample(name: str) -> tuple[int, ...]:
    """The shape of one example of a layer."""
    return (*SIZE, 3) if name.endswith("Conv") else (6,)


def make(name: str, seed: int = 0):
    """The layer with that seed."""
    return LAYERS[name](nnx.Rngs(seed))
