"""Attacks: what a certificate is held against, and a Lipschitz constant from below."""

from lipjax.attacks.lower_bound import lipschitz_lower_bound as lipschitz_lower_bound
from lipjax.attacks.pgd import Attack as Attack
from lipjax.attacks.pgd import minimal_distance as minimal_distance
from lipjax.attacks.pgd import pgd as pgd
