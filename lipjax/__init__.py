"""Neural networks whose stability is proved.

    spectral    spectral norms of matrices and convolutions, as proved bounds
    layers      1-Lipschitz layers: SLL, CPL, AOL, and the condition that proves them
    margin      certificates from the margins of a Lipschitz classifier
    smoothing   randomized smoothing: sampling, confidence, certificates from counts
    attacks     projected gradient descent, to hold certificates against
    data        readers, batches and augmentation
    training    losses, the jitted step, checkpoints
    nn, models  Flax modules and whole networks
    selfcheck   does this platform compute right numbers?

Everything is written for `jax.jit`, `jax.vmap` and `jax.grad`. `training`, `nn`, `models` and
`selfcheck` are imported on first use, because they bring optax and Flax along.
"""

import importlib

from lipjax import attacks as attacks
from lipjax import data as data
from lipjax import layers as layers
from lipjax import margin as margin
from lipjax import smoothing as smoothing
from lipjax import spectral as spectral
from lipjax import typing as typing

__version__ = "0.1.0"

_LAZY = ("models", "nn", "selfcheck", "training")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"lipjax.{name}")
    raise AttributeError(f"module 'lipjax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
