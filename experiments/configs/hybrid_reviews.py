"""A film review and an emoji: praise or complaint, living being or thing; words masked, pixels noisy.

command: python -m experiments.hybrid hybrid_reviews --data-dir DIR
time:    unmeasured
result:  unmeasured
"""

from experiments.config import HybridConfig

CONFIG = HybridConfig(data="reviews", beta=0.9, sigma=0.25, max_edits=5, examples=250)
