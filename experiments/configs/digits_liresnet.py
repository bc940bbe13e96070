"""A small LiResNet on the digits of scikit-learn.

command: python -m experiments.train digits_liresnet
         python -m experiments.certify runs/digits_liresnet
time:    95 s of training on 2 CPU cores
result:  95.8 % clean, certified 91.7 % at 36/255, 81.9 % at 72/255, 67.5 % at 108/255, 60.8 % at
         0.5, 1.9 % at 1. The settings were not tuned.
"""

import dataclasses

from experiments.configs import digits
from lipjax.models import LiResNetConfig

CONFIG = dataclasses.replace(
    digits.CONFIG,
    model=LiResNetConfig(
        image_shape=(8, 8, 1),
        width=32,
        depth=4,
        patch=2,
        dense_width=128,
        dense_depth=4,
        mean=(0.3053,),
    ),
    epochs=60,
    learning_rate=0.005,
    attack_steps=20,
)
