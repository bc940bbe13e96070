"""The digits of scikit-learn, the run of `make demo`.

command: python -m experiments.train digits && python -m experiments.certify runs/digits
"""

import dataclasses

from experiments.config import RunConfig
from lipjax.models import SIZES

CONFIG = RunConfig(
    data="digits",
    model=dataclasses.replace(SIZES["digits"], mean=(0.3053,)),
    epochs=250,
    batch_size=128,
    learning_rate=0.01,
    offset=0.9,
    temperature=0.15,
    noise=0.12,
    radii=(36 / 255, 72 / 255, 108 / 255, 0.5, 1.0),
)
