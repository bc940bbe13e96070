"""LipConvNet with skew orthogonal convolutions on the digits of scikit-learn.

command: python -m experiments.train digits_lipconvnet
         python -m experiments.certify runs/digits_lipconvnet
time:    92 s of training on 2 CPU cores
result:  94.4 % clean, certified 90.8 % at 36/255, 80.8 % at 72/255, 67.5 % at 108/255, 59.4 % at
         0.5, 4.4 % at 1. The settings were not
         tuned.
"""

from experiments.config import RunConfig
from lipjax.models import LipConvNetConfig

CONFIG = RunConfig(
    data="digits",
    model=LipConvNetConfig(
        layer="skew", image_shape=(8, 8, 1), width=16, blocks=2, block_depth=2, mean=(0.3053,)
    ),
    epochs=20,
    batch_size=128,
    learning_rate=0.005,
    offset=0.9,
    temperature=0.15,
    noise=0.08,
    affine=(0.3, 6.0, 0.05, 0.05),
    radii=(36 / 255, 72 / 255, 108 / 255, 0.5, 1.0),
    attack_steps=20,
)
