"""Whole networks: those that know a bound on their Lipschitz constant, and ordinary ones to bound."""

from lipjax.models import pytorch as pytorch
from lipjax.models import resnet as resnet
from lipjax.models.convnet import SIZES as SIZES
from lipjax.models.convnet import ConvNetConfig as ConvNetConfig
from lipjax.models.convnet import LipschitzConvNet as LipschitzConvNet
from lipjax.models.convnet import num_parameters as num_parameters
from lipjax.models.lipconvnet import LipConvNet as LipConvNet
from lipjax.models.lipconvnet import LipConvNetConfig as LipConvNetConfig
from lipjax.models.liresnet import LiResNet as LiResNet
from lipjax.models.liresnet import LiResNetConfig as LiResNetConfig
from lipjax.models.studynet import StudyNet as StudyNet
from lipjax.models.studynet import StudyNetConfig as StudyNetConfig
