"""A 1-Lipschitz network on Fashion-MNIST, certified by its margin, by noise, and by both.

command: python -m experiments.train smooth_fashion_mnist_sll --data-dir DIR
         python -m experiments.certify runs/smooth_fashion_mnist_sll --data-dir DIR
"""

import dataclasses

from experiments.configs import smooth_fashion_mnist
from lipjax.models import ConvNetConfig

CONFIG = dataclasses.replace(
    smooth_fashion_mnist.CONFIG,
    model=ConvNetConfig(
        image_shape=(28, 28, 1),
        mean=(0.286,),
        conv_depth=0,
        pool=2,
        dense_depth=4,
        dense_width=256,
        dense_hidden=256,
    ),
    epochs=5,
    learning_rate=0.005,
    betas=(0.5, 0.9),
    offset=0.9,
    temperature=0.25,
)
