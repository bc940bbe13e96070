"""Randomized smoothing: sampling, confidence, and certificates from samples.

    noise       Gaussian noise on floats and on integers, noise on tokens, products
    moments     exact sums of scores and of their squares
    sampling    votes and moments of any function under noise, the same for every batch size
    confidence  bounds on a probability or a mean, each at its own level
    gaussian    the certificate of Cohen et al., from the votes for one class
    multiclass  certificates from the votes for all classes
    simplex     maps from logits to scores, with their Lipschitz constants
    soft        certificates from averaged scores
    lipschitz   radii of smoothed scores that are Lipschitz before they are smoothed
    kernels     noise on tokens, as what a certificate needs of it
    discrete    what changed tokens leave of a probability
    hybrid      changed tokens and a moved continuous part together
    sequential  a target radius with as few samples as it takes
    losses      training losses
    curves      certified accuracy of many inputs, with bounds
    log         counts on disk, that survive a killed job
    wrap        functions outside of JAX, denoisers

Certificates run in float64 on the host and take NumPy arrays of counts; sampling is JAX.
"""

from lipjax.smoothing import confidence as confidence
from lipjax.smoothing import curves as curves
from lipjax.smoothing import discrete as discrete
from lipjax.smoothing import gaussian as gaussian
from lipjax.smoothing import hybrid as hybrid
from lipjax.smoothing import kernels as kernels
from lipjax.smoothing import lipschitz as lipschitz
from lipjax.smoothing import log as log
from lipjax.smoothing import losses as losses
from lipjax.smoothing import multiclass as multiclass
from lipjax.smoothing import noise as noise
from lipjax.smoothing import sampling as sampling
from lipjax.smoothing import sequential as sequential
from lipjax.smoothing import simplex as simplex
from lipjax.smoothing import soft as soft
from lipjax.smoothing import wrap as wrap
