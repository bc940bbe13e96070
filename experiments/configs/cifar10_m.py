"""CIFAR-10 with the published M network and recipe (Araujo et al. 2023).

command: python -m experiments.train cifar10_m --data-dir DIR
         python -m experiments.certify runs/cifar10_m --data-dir DIR
time:    not run here; the published runs took GPUs
result:  not run here. No source was at hand to check the published figures of this size in.
"""

import dataclasses

from experiments.configs import cifar10_s
from lipjax.models import SIZES

CONFIG = dataclasses.replace(cifar10_s.CONFIG, model=SIZES["M"])
