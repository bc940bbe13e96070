"""What a log lacks is sampled, and what it has too much of is refused first."""

import numpy as np
import pytest

from experiments import draws
from lipjax.smoothing.log import ESTIMATION, CountLog


def test_too_many_samples_are_refused_before_any_is_drawn(tmp_path):
    path = tmp_path / "counts.log"
    with CountLog(path, header={}, width=2) as log:
        log.add(3, ESTIMATION, 0, 10, [6, 4])
        size = path.stat().st_size
        with pytest.raises(
            ValueError, match="5 samples are asked for and the log has 10 of example 3"
        ):
            draws.sample_missing(
                log, np.array([0, 3]), None, [(ESTIMATION, 5)], batch_size=5, draw=None
            )
    assert path.stat().st_size == size
