"""Heating load of buildings, from columns of categories and of numbers.

command: python -m experiments.hybrid hybrid_energy --data-dir DIR
time:    unmeasured
result:  unmeasured
"""

from experiments.config import HybridConfig

CONFIG = HybridConfig(
    data="energy", beta=0.2, sigma=0.25, max_edits=2, embedding=16, hidden=64, epochs=300
)
