"""CIFAR-10 with the published S network and recipe (Araujo et al. 2023).

command: python -m experiments.train cifar10_s --data-dir DIR
         python -m experiments.certify runs/cifar10_s --data-dir DIR
time:    29 images/s on 2 CPU cores, 29 minutes an epoch; the published runs took GPUs
result:  epochs=1: 52.2 % clean, certified 40.6 % at 36/255, 30.8 % at 72/255, 22.4 % at 108/255,
         4.4 % at 1 (forward passes over the test split, no attack). Published for 1000
         epochs: certified 62.6 % at 36/255 (in an issue of the authors' code), of the first version,
         whose layers were not quite 1-Lipschitz. No source was at hand to check the other figures in.
"""

from experiments.config import RunConfig
from lipjax.models import SIZES
from lipjax.training.losses import SLL_OFFSET

CONFIG = RunConfig(
    data="cifar10",
    model=SIZES["S"],
    epochs=1000,
    batch_size=256,
    learning_rate=0.01,
    betas=(0.5, 0.9),
    offset=SLL_OFFSET,
    temperature=0.25,
    crop=4,
    flip=True,
    jitter=(0.1, 0.5, 0.3, 0.02),
    checkpoint_every=1000,
    attack_images=256,
    attack_steps=20,
)
