"""Flax modules (`flax.nnx`): thin wrappers of `lipjax.layers`."""

from lipjax.nn.constrained import Constrained as Constrained
from lipjax.nn.constrained import Stack as Stack
from lipjax.nn.constrained import constrain as constrain
from lipjax.nn.constrained import freeze as freeze
from lipjax.nn.layers import AOLConv as AOLConv
from lipjax.nn.layers import AOLDense as AOLDense
from lipjax.nn.layers import CPLConv as CPLConv
from lipjax.nn.layers import CPLDense as CPLDense
from lipjax.nn.layers import GroupSort as GroupSort
from lipjax.nn.layers import MaxMin as MaxMin
from lipjax.nn.layers import NormalizedHead as NormalizedHead
from lipjax.nn.layers import RescaledConv as RescaledConv
from lipjax.nn.layers import RescaledDense as RescaledDense
from lipjax.nn.layers import SLLConv as SLLConv
from lipjax.nn.layers import SLLDense as SLLDense
