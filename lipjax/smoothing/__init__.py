"""Randomized smoothing: sampling, confidence, and certificates from counts.

    sampling    votes and moments of any function under noise, the same for every batch size
    confidence  bounds on a probability or a mean, each at its own level
    gaussian    the certificate of Cohen et al., from the votes for one class
    multiclass  certificates from the votes for all classes
    lipschitz   radii of smoothed scores that are Lipschitz before they are smoothed
    kernels     noise on tokens
    discrete    what changed tokens leave of a probability
    hybrid      changed tokens and a moved continuous part together

Certificates run in float64 on the host and take NumPy arrays of counts; sampling is JAX.
"""

from lipjax.smoothing import confidence as confidence
from lipjax.smoothing import discrete as discrete
from lipjax.smoothing import gaussian as gaussian
from lipjax.smoothing import hybrid as hybrid
from lipjax.smoothing import kernels as kernels
from lipjax.smoothing import lipschitz as lipschitz
from lipjax.smoothing import multiclass as multiclass
from lipjax.smoothing import sampling as sampling
