"""The network of the comparison study with AOL on the digits of scikit-learn.

command: python -m experiments.train digits_study
         python -m experiments.certify runs/digits_study
time:    32 s of training on 2 CPU cores
result:  92.2 % clean, certified 87.2 % at 36/255, 77.5 % at 72/255, 64.2 % at 108/255, 56.1 % at
         0.5, 5.0 % at 1. The settings were not
         tuned.
"""

from experiments.config import RunConfig
from lipjax.models import StudyNetConfig

CONFIG = RunConfig(
    data="digits",
    model=StudyNetConfig(
        layer="aol", image_shape=(8, 8, 1), width=16, blocks=3, block_depth=2, mean=(0.3053,)
    ),
    epochs=100,
    batch_size=128,
    learning_rate=0.005,
    offset=0.9,
    temperature=0.15,
    noise=0.08,
    affine=(0.3, 6.0, 0.05, 0.05),
    radii=(36 / 255, 72 / 255, 108 / 255, 0.5, 1.0),
    attack_steps=20,
)
