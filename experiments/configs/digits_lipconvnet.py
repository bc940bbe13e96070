"""LipConvNet with skew orthogonal convolutions on the digits of scikit-learn.

command: python -m experiments.train digits_lipconvnet
         python -m experiments.certify runs/digits_lipconvnet
time:    92 s of training on 2 CPU cores
result:  94.4 % clean, certified 90.8 % at 36/255, 80.8 % at 72/255, 67.5 % at 108/255, 59.4 % at
         0.5, 4.4 % at 1. The settings were not tuned.
"""

import dataclasses

from experiments.configs import digits
from lipjax.models import LipConvNetConfig

CONFIG = dataclasses.replace(
    digits.CONFIG,
    model=LipConvNetConfig(
        layer="skew", image_shape=(8, 8, 1), width=16, blocks=2, block_depth=2, mean=(0.3053,)
    ),
    epochs=20,
    learning_rate=0.005,
    attack_steps=20,
)
