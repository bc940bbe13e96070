"""CIFAR-10 with convex potential layers in a network of size S, and their recipe (Meunier et al. 2022).

command: python -m experiments.train cifar10_cpl --data-dir DIR
         python -m experiments.certify runs/cifar10_cpl --data-dir DIR
time:    not run here; the published runs took GPUs
result:  not run here. Published, of the XL network with 236 million parameters: 78.5 % clean,
         certified 64.4 % at 36/255, 48.0 % at 72/255, 33.0 % at 108/255, as Prach et al. (2024,
         table 4) quote it. No source was at hand to check the figures of size S in.

Two differences: the published step divides by power iteration, a bound from below, and the padding of
the crops is a reflection here.
"""

import dataclasses

from experiments.config import RunConfig
from lipjax.models import SIZES

CONFIG = RunConfig(
    data="cifar10",
    model=dataclasses.replace(SIZES["S"], layer="cpl"),
    epochs=200,
    batch_size=256,
    learning_rate=0.001,
    betas=(0.9, 0.999),
    loss="multi_margin",
    margin=0.7,
    crop=4,
    flip=True,
    checkpoint_every=1000,
    attack_images=256,
    attack_steps=20,
)
