"""Flax modules (`flax.nnx`): thin wrappers of `lipjax.layers`.

They are pytrees: train them with `lipjax.training.make_step`, or with optax on the module itself.
`nnx.Optimizer` makes other containers of the parameters' named tuples and fails at its second step where
the optimizer has a state.
"""

from lipjax.nn.constrained import Constrained as Constrained
from lipjax.nn.constrained import Stack as Stack
from lipjax.nn.constrained import constrain as constrain
from lipjax.nn.constrained import freeze as freeze
from lipjax.nn.constrained import rounded as rounded
from lipjax.nn.contractions import BCOPConv as BCOPConv
from lipjax.nn.contractions import BjorckDense as BjorckDense
from lipjax.nn.contractions import CayleyDense as CayleyDense
from lipjax.nn.contractions import CholeskyDense as CholeskyDense
from lipjax.nn.contractions import HouseholderDense as HouseholderDense
from lipjax.nn.contractions import QRDense as QRDense
from lipjax.nn.contractions import ReflectorDense as ReflectorDense
from lipjax.nn.contractions import SandwichDense as SandwichDense
from lipjax.nn.contractions import SkewDense as SkewDense
from lipjax.nn.contractions import SOCConv as SOCConv
from lipjax.nn.contractions import SpectralConv as SpectralConv
from lipjax.nn.contractions import SpectralDense as SpectralDense
from lipjax.nn.forms import Chain as Chain
from lipjax.nn.forms import ConvexMix as ConvexMix
from lipjax.nn.forms import Residual as Residual
from lipjax.nn.frequency import CayleyConv as CayleyConv
from lipjax.nn.frequency import ReflectorConv as ReflectorConv
from lipjax.nn.frequency import SandwichConv as SandwichConv
from lipjax.nn.layers import AOLConv as AOLConv
from lipjax.nn.layers import AOLDense as AOLDense
from lipjax.nn.layers import CPLConv as CPLConv
from lipjax.nn.layers import CPLDense as CPLDense
from lipjax.nn.layers import FullSort as FullSort
from lipjax.nn.layers import GroupSort as GroupSort
from lipjax.nn.layers import Householder as Householder
from lipjax.nn.layers import MaxMin as MaxMin
from lipjax.nn.layers import NormalizedHead as NormalizedHead
from lipjax.nn.layers import RescaledConv as RescaledConv
from lipjax.nn.layers import RescaledDense as RescaledDense
from lipjax.nn.layers import SLLConv as SLLConv
from lipjax.nn.layers import SLLDense as SLLDense
from lipjax.nn.monitor import orthogonality as orthogonality
from lipjax.nn.storage import load_safetensors as load_safetensors
from lipjax.nn.storage import save_safetensors as save_safetensors
