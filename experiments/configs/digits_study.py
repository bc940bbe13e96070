"""The network of the comparison study with AOL on the digits of scikit-learn.

command: python -m experiments.train digits_study
         python -m experiments.certify runs/digits_study
time:    32 s of training on 2 CPU cores
result:  92.2 % clean, certified 87.2 % at 36/255, 77.5 % at 72/255, 64.2 % at 108/255, 56.1 % at
         0.5, 5.0 % at 1. The settings were not tuned.
"""

import dataclasses

from experiments.configs import digits
from lipjax.models import StudyNetConfig

CONFIG = dataclasses.replace(
    digits.CONFIG,
    model=StudyNetConfig(
        layer="aol", image_shape=(8, 8, 1), width=16, blocks=3, block_depth=2, mean=(0.3053,)
    ),
    epochs=100,
    learning_rate=0.005,
    attack_steps=20,
)
