"""A small BRONet, LiResNet with a trunk of block reflectors, on the digits of scikit-learn.

command: python -m experiments.train digits_bronet
         python -m experiments.certify runs/digits_bronet
time:    113 s of training on 2 CPU cores that other jobs shared
result:  97.2 % clean, certified 93.9 % at 36/255, 87.5 % at 72/255, 75.3 % at 108/255, 66.9 % at
         0.5, 5.6 % at 1. The settings are those of digits_liresnet, not tuned.
"""

import dataclasses

from experiments.configs import digits_liresnet

CONFIG = dataclasses.replace(
    digits_liresnet.CONFIG,
    model=dataclasses.replace(digits_liresnet.CONFIG.model, layer="reflector"),
)
