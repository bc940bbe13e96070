"""A film review and an emoji: praise or complaint, living being or thing; words masked, pixels noisy.

command: python -m experiments.hybrid hybrid_reviews --data-dir DIR
time:    55 s on 2 CPU cores that other jobs shared, training included
result:  of 250 test reviews, certified with 10,000 samples: 62.4 % right, 45.6 % whatever one word is
         changed, 30.8 % with two, 18.0 % with three; 7.6 % also where all pixels move by 0.25. beta and
         sigma were chosen on a validation part of the training split (two values of beta tried).
"""

from experiments.config import HybridConfig

CONFIG = HybridConfig(data="reviews", beta=0.9, sigma=0.25, max_edits=5, examples=250)
