"""Many images against their certificates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import margin, nn
from lipjax.attacks import pgd
from lipjax.models import SIZES, LipschitzConvNet
from tests.marks import slow


@pytest.mark.parametrize("images", [350, slow(1000)])
def test_many_images_no_attack_below_a_radius(images):
    """Untrained networks too: random weights, random images, each attacked at its own radius."""
    config = dataclasses.replace(SIZES["digits"], dense_depth=3, dense_width=64, dense_hidden=48)
    broken = 0
    for seed, layer in enumerate(("sll", "cpl", "aol")):
        model = LipschitzConvNet(dataclasses.replace(config, layer=layer), rngs=nnx.Rngs(seed))
        network = nn.freeze(model)
        head, bound = network.head.weights().kernel, network.feature_bound()
        x = jax.random.uniform(jax.random.key(seed), (images, 8, 8, 1))
        # Three layers of float32 leave an error of less than 2e-6 in a logit; an isometry (AOL at
        # its start) is attacked down to it.
        certify = jax.vmap(
            lambda f: margin.certify(f, lipschitz=bound, head=head, logit_error=2e-6)  # noqa: B023
        )
        certificate = certify(network(x))
        found = pgd(
            jax.random.key(1),
            network,
            x,
            certificate.prediction,
            eps=certificate.radius,
            num_steps=15,
        )
        sure = np.asarray(certificate.radius) > 0
        assert sure.mean() > 0.9 and not np.asarray(found.success)[sure].any()
        assert jnp.isfinite(certificate.radius).all()
        farther = pgd(
            jax.random.key(1),
            network,
            x,
            certificate.prediction,
            eps=3 * certificate.radius,
            num_steps=15,
        )
        broken += np.sum(farther.success)
    assert broken > images // 10  # negative control: certificates three times as large are refuted
