"""Randomized smoothing of an ordinary network on the digits of scikit-learn.

command: python -m experiments.train smooth_digits
         python -m experiments.certify runs/smooth_digits
"""

from experiments.config import RunConfig, SmoothingConfig
from experiments.plain import PlainConfig

CONFIG = RunConfig(
    data="digits",
    model=PlainConfig(image_shape=(8, 8, 1), hidden=(256, 128), mean=(0.3053,)),
    epochs=60,
    batch_size=128,
    learning_rate=0.003,
    betas=(0.9, 0.99),
    offset=0.0,
    temperature=1.0,
    noise=0.25,
    tuning=0.1,
    radii=(0.25, 0.5, 0.75, 1.0),
    smoothing=SmoothingConfig(sigma=0.25, images=0),
)
