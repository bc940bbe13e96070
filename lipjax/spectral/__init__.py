"""Spectral norms of matrices and convolutions: proved bounds, exact references, rescaling."""

from lipjax.spectral.conv import conv_enclosure as conv_enclosure
from lipjax.spectral.conv import conv_gram_iteration as conv_gram_iteration
from lipjax.spectral.conv import conv_inflation as conv_inflation
from lipjax.spectral.conv import padding_norm as padding_norm
from lipjax.spectral.exact import conv_spectral_norm as conv_spectral_norm
from lipjax.spectral.exact import spectral_norm as spectral_norm
from lipjax.spectral.gram import Enclosure as Enclosure
from lipjax.spectral.gram import enclosure as enclosure
from lipjax.spectral.gram import gram_iteration as gram_iteration
from lipjax.spectral.gram import inflation as inflation
from lipjax.spectral.kernel import conv_kernel_bound as conv_kernel_bound
from lipjax.spectral.network import NetworkBound as NetworkBound
from lipjax.spectral.network import network_bound as network_bound
from lipjax.spectral.network import penalty as penalty
from lipjax.spectral.power import power_iteration as power_iteration
from lipjax.spectral.proved import proved_norm as proved_norm
from lipjax.spectral.rescaling import conv_dominating_diagonal as conv_dominating_diagonal
from lipjax.spectral.rescaling import conv_rescale as conv_rescale
from lipjax.spectral.rescaling import dominating_diagonal as dominating_diagonal
from lipjax.spectral.rescaling import rescale as rescale
