"""A small BRONet, LiResNet with a trunk of block reflectors, on the digits of scikit-learn.

command: python -m experiments.train digits_bronet
         python -m experiments.certify runs/digits_bronet
time:    TIME
result:  RESULT
"""

import dataclasses

from experiments.configs import digits_liresnet

CONFIG = dataclasses.replace(
    digits_liresnet.CONFIG,
    model=dataclasses.replace(digits_liresnet.CONFIG.model, layer="reflector"),
)
