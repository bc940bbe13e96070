"""Randomized smoothing of an ordinary network on Fashion-MNIST.

command: python -m experiments.train smooth_fashion_mnist --data-dir DIR
         python -m experiments.certify runs/smooth_fashion_mnist --data-dir DIR
time:    35 s of training on 2 CPU cores that other jobs shared; 2.5 million noisy images sampled in
         10 minutes, two thirds of which other jobs had the cores
result:  of 250 test images (smoothing.images=250), certified with 10,000 samples and the budget "auto":
         86.4 % at 0, 79.2 % at 0.25, 66.8 % at 0.5, 50.4 % at 0.75; mean radius 0.567, that of Cohen
         et al. 0.565. The settings were not tuned.
"""

from experiments.config import RunConfig, SmoothingConfig
from experiments.plain import PlainConfig

CONFIG = RunConfig(
    data="fashion_mnist",
    model=PlainConfig(image_shape=(28, 28, 1), hidden=(512, 256), mean=(0.286,)),
    epochs=10,
    batch_size=256,
    learning_rate=0.002,
    betas=(0.9, 0.99),
    offset=0.0,
    temperature=1.0,
    noise=0.25,
    tuning=0.02,
    radii=(0.25, 0.5, 0.75, 1.0),
    smoothing=SmoothingConfig(sigma=0.25, images=500),
)
