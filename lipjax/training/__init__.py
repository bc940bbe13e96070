"""Training: losses, a schedule, the jitted step, checkpoints and metrics.

The step takes a `loss_fn` and any pytree of parameters; it knows nothing of layers or models.
`lipjax.training.checkpoint` is imported by those who use it, because it brings Orbax along.
"""

from lipjax.training.interrupt import watch_signals as watch_signals
from lipjax.training.losses import SLL_OFFSET as SLL_OFFSET
from lipjax.training.losses import SLL_TEMPERATURE as SLL_TEMPERATURE
from lipjax.training.losses import binary_hkr as binary_hkr
from lipjax.training.losses import certificate_regularized as certificate_regularized
from lipjax.training.losses import cross_entropy as cross_entropy
from lipjax.training.losses import emma as emma
from lipjax.training.losses import emma_logits as emma_logits
from lipjax.training.losses import hkr as hkr
from lipjax.training.losses import logit_annealing as logit_annealing
from lipjax.training.losses import margin_loss as margin_loss
from lipjax.training.metrics import JsonLines as JsonLines
from lipjax.training.metrics import progress as progress
from lipjax.training.metrics import read_json_lines as read_json_lines
from lipjax.training.schedules import triangular as triangular
from lipjax.training.state import TrainState as TrainState
from lipjax.training.state import init_state as init_state
from lipjax.training.step import make_step as make_step
from lipjax.training.step import make_update as make_update
