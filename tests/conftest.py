"""The test platform: 8 emulated devices, strict promotion, one fixed key."""

import collections
import gc
import os
import zlib
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if version("jaxlib") == "0.10.2":  # this build crashes on some fusions; others refuse the flag
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_experimental_ynn_fusion_type="
    )

from pathlib import Path

import jax
import pytest

from tests.marks import slow

# Most of the time goes into compiling, and most of that into small programs that return in every
# module: they are kept on disk, keyed by the program, the flags and the version of the compiler.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


# Tracing makes many objects and few cycles: looking for cycles rarely saves a seventh of the time.
gc.freeze()
gc.set_threshold(200_000, 100, 100)


FEW = 1
"""How many cases of a parametrized test always run, unless it is marked `few` or `every`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """All but a few cases of a test are its long form: they are marked slow.

    Which few, of those that were collected, depends on their names alone: tests over the same families
    take different ones, and the same in every run.
    """
    cases = collections.defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and not any(item.iter_markers("slow")):
            cases[item.nodeid.split("[")[0]].append(item)
    for group in cases.values():
        marks = (mark for mark in group[0].iter_markers() if mark.name in ("few", "every"))
        nearest = next(marks, pytest.mark.few(FEW).mark)
        if nearest.name == "few":
            group.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
            for item in group[nearest.args[0] :]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def fresh_caches():
    """Compiled programs of a finished module go: thousands of them exhaust the memory maps."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def key():
    """A typed key, the same in every run."""
    return jax.random.key(0)


@pytest.fixture(params=[1, slow(2), slow(3)], ids=lambda seed: f"seed{seed}")
def seeded_key(request):
    """Three keys, for what is random; the others in the slow form."""
    return jax.random.key(request.param)
