"""CIFAR-10 with the published LiResNet L12W512 and its recipe (Hu et al. 2023).

command: python -m experiments.train cifar10_liresnet --data-dir DIR
         python -m experiments.certify runs/cifar10_liresnet --data-dir DIR
time:    not run here; the published runs took GPUs
result:  not run here. Published, without generated data: 81.0 % clean, certified 69.8 % at 36/255,
         56.3 % at 72/255, 42.9 % at 108/255 (as a later paper's table 1 is quoted by a third party)

Left out of the recipe: Lookahead around NAdam, and RandAugment. `lipjax.models.liresnet` says how the
network differs: here its certificates are proved.
"""

from experiments.config import RunConfig
from lipjax.models import LiResNetConfig

CONFIG = RunConfig(
    data="cifar10",
    model=LiResNetConfig(),
    epochs=800,
    batch_size=256,
    learning_rate=0.001,
    optimizer="nadam",
    betas=(0.9, 0.999),
    schedule="cosine",
    clip=3.0,
    loss="emma",
    epsilon=3 * 36 / 255,
    crop=4,
    flip=True,
    checkpoint_every=1000,
    attack_images=256,
    attack_steps=20,
)
