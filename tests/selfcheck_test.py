"""The self-check passes here, and each of its checks can fail."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import scipy.special
from jax import lax

from lipjax import selfcheck


@pytest.fixture(scope="module")
def report():
    return selfcheck.run()


def failing(names):
    """The checks among `names` that fail now."""
    return [name for name in names if not selfcheck._guarded(name, selfcheck.CHECKS[name]).ok]


def test_this_platform_passes(report):
    assert report.ok and all(check.ok for check in report.checks), str(report)
    assert len(report.checks) == len(selfcheck.CHECKS) >= 15
    assert all(check.detail for check in report.checks)
    assert {"matmul by default", "denormals"} <= {note.name for note in report.notes}


def test_report_is_ready_for_json_and_for_reading(report):
    restored = json.loads(json.dumps(report.to_dict()))
    assert restored == report.to_dict()
    assert restored["ok"] is True and restored["checks"][0]["name"] == "eager kernels"
    assert restored["platform"]["jax"] == jax.__version__
    assert restored["platform"]["devices"] == jax.device_count()
    assert set(restored["platform"]) >= {"python", "jaxlib", "numpy", "scipy", "backend", "device"}
    lines = str(report).splitlines()
    assert len(lines) == 2 + len(report.checks) + len(report.notes)
    assert lines[-1] == f"{len(report.checks)} checks, all checks passed"


def test_wrong_function_is_named_and_fails_the_command(monkeypatch, capsys):
    sqrt = jnp.sqrt
    monkeypatch.setattr(jnp, "sqrt", lambda x: sqrt(x) * (x < 300))
    wanted = {name: selfcheck.CHECKS[name] for name in ("eager kernels", "sqrt", "exp")}
    monkeypatch.setattr(selfcheck, "CHECKS", wanted)
    assert selfcheck.main([]) == 1
    out = capsys.readouterr().out
    assert "FAIL  sqrt" in out and "ok    exp" in out
    assert out.splitlines()[-1] == "3 checks, failed: eager kernels, sqrt"
    assert selfcheck.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def _rounded(dtype):
    matmul = jnp.matmul
    return lambda a, b, **options: matmul(
        lax.reduce_precision(a, 8, dtype), lax.reduce_precision(b, 8, dtype), **options
    )


@pytest.mark.parametrize(
    "target, name, wrong, check",
    [
        (jnp, "exp", lambda x: 1 + x, "exp"),
        (jnp, "log", lambda x: x * jnp.nan, "log"),
        (jnp, "arctan", lambda x: jnp.clip(x, -1, 1), "arctan"),
        (jnp, "matmul", _rounded(7), "matmul at HIGHEST"),
        (jnp, "matmul", _rounded(10), "matmul at HIGHEST"),
        (lax, "dynamic_update_slice", lambda buffer, *_: buffer, "scan accumulation"),
        (jax.random, "normal", lambda *_: jnp.linspace(-2.0, 2.0, 20000), "random normal"),
        (scipy.special, "ndtri", lambda p: 2.0, "statistics on the host"),
        (scipy.special, "betaincinv", lambda a, b, p: p, "statistics on the host"),
        (selfcheck, "on_host_float64", lambda fn, *args: fn(*args), "float64 on the host"),
        (jax, "grad", lambda fn: lambda x, _: x, "gather gradient"),
        (jax, "linear_transpose", lambda fn, x: lambda y: (x,), "convolution transpose"),
    ],
)
def test_each_check_can_fail(monkeypatch, target, name, wrong, check):
    assert failing([check]) == []
    monkeypatch.setattr(target, name, wrong)
    assert failing([check]) == [check]


def test_wrong_compiler_is_found_although_eager_is_right(monkeypatch):
    names = ["multiply and reduce", "convolution", "sqrt", "gather gradient", "random normal"]
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda fn: lambda *args: 1.001 * jit(fn)(*args))
    assert failing(names) == names


def test_exception_is_a_failure_with_its_message(monkeypatch):
    def broken(x):
        raise RuntimeError("kernel not found\nmore")

    monkeypatch.setattr(jnp, "tanh", broken)
    check = selfcheck._guarded("tanh", selfcheck.CHECKS["tanh"])
    assert not check.ok and check.detail == "RuntimeError: kernel not found"


def test_double_precision_mode_passes_too():
    with jax.enable_x64(True):
        assert failing(["eager kernels", "sqrt", "multiply and reduce", "scan accumulation"]) == []
        assert failing(["gather gradient", "random normal", "float64 on the host"]) == []


def test_known_faults_are_notes_with_links(monkeypatch):
    assert selfcheck.known_faults("0.12.0.1", "cpu") == []
    assert not selfcheck.known_faults("0.10.2", "gpu")
    assert all(build.link.startswith("https://") for build in selfcheck.KNOWN_BUILDS)
    monkeypatch.setattr(selfcheck, "_version", lambda package: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=all")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    crash = selfcheck._build_notes()[0]
    assert crash.level == "warning" and "is not set" in crash.detail and "39257" in crash.detail
    monkeypatch.setenv("XLA_FLAGS", "--other --xla_cpu_experimental_ynn_fusion_type=")
    assert selfcheck._build_notes()[0].level == "information"
    assert "is set" in selfcheck._build_notes()[0].detail


@pytest.mark.process
def test_command_runs():
    command = [sys.executable, "-m", "lipjax.selfcheck", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
