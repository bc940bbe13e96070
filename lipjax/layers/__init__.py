"""1-Lipschitz layers: ways to make a contraction, forms that use one, and the proof as a matrix.

Every layer is a module of pure functions: `init_*(key, ...) -> Params`,
`constrain_*(params) -> weights`, `apply_*(weights, x) -> y`, `freeze_*(params) -> weights` for
evaluation and `bound(weights) -> Bound`.
"""

from lipjax.layers import activations as activations
from lipjax.layers import aol as aol
from lipjax.layers import bjorck as bjorck
from lipjax.layers import block as block
from lipjax.layers import cayley as cayley
from lipjax.layers import cpl as cpl
from lipjax.layers import forms as forms
from lipjax.layers import head as head
from lipjax.layers import householder as householder
from lipjax.layers import lmi as lmi
from lipjax.layers import normalized as normalized
from lipjax.layers import pooling as pooling
from lipjax.layers import proof as proof
from lipjax.layers import reflector as reflector
from lipjax.layers import rescaled as rescaled
from lipjax.layers import sandwich as sandwich
from lipjax.layers import skew as skew
from lipjax.layers import sll as sll
from lipjax.layers import triangular as triangular
