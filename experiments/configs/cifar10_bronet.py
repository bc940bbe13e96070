"""CIFAR-10 with the published BRONet-L and logit annealing (Lai et al. 2025).

command: python -m experiments.train cifar10_bronet --data-dir DIR
         python -m experiments.certify runs/cifar10_bronet --data-dir DIR
time:    not run here; the published runs took GPUs
result:  not run here. Published: 81.57 % clean, certified 70.59 % at 36/255, 57.15 % at 72/255,
         42.53 % at 108/255 (the authors' answer to their reviewers)

Left out of the recipe: Lookahead around NAdam, its weight decay of 4e-5, and RandAugment. The trunk is
circular here and padded with zeros there.
"""

import dataclasses

from experiments.configs import cifar10_liresnet
from lipjax.models import LiResNetConfig

CONFIG = dataclasses.replace(
    cifar10_liresnet.CONFIG,
    model=LiResNetConfig(layer="reflector"),
    loss="logit_annealing",
    offset=2.0,
    temperature=0.75,
    beta=5.0,
)
