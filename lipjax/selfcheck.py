"""Differential checks of the platform at hand: `python -m lipjax.selfcheck`.

A certificate is worth what the arithmetic under it is worth, and released builds have been wrong.
Each check computes something three ways, eagerly, under `jax.jit` and in NumPy's float64, and
compares; the report is stored with every certificate that is written to disk. Programs that are
known to crash a build are never run here: the build is looked up in `KNOWN_BUILDS` instead.

`u` is the unit roundoff of float32, `2**-24`.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax._numerics import HIGHEST, on_host_float64, unit_roundoff

_U = unit_roundoff(jnp.float32)
_NO_FUSION = "--xla_cpu_experimental_ynn_fusion_type="
_JAX_ISSUE = "https://github.com/jax-ml/jax/issues/"


class Check(NamedTuple):
    """One differential check: its name, whether it passed, and what was measured."""

    name: str
    ok: bool
    detail: str


class Note(NamedTuple):
    """What the reader should know and what fails nothing; `level`: `"information"`, `"warning"`."""

    name: str
    level: str
    detail: str


class Report(NamedTuple):
    """The result of `run`.

    Attributes:
        ok: Whether every check passed.
        checks: The checks, in the order in which they ran.
        notes: Known bad builds, the default precision of products, denormals.
        platform: Versions, backend, kind and number of devices.
    """

    ok: bool
    checks: list[Check]
    notes: list[Note]
    platform: dict

    def to_dict(self) -> dict:
        """The report as dicts, lists, strings, numbers and bools: ready for `json.dump`."""
        return {
            "ok": self.ok,
            "checks": [check._asdict() for check in self.checks],
            "notes": [note._asdict() for note in self.notes],
            "platform": dict(self.platform),
        }

    def __str__(self) -> str:
        where = "  ".join(f"{name} {value}" for name, value in self.platform.items())
        lines = [f"{'ok  ' if c.ok else 'FAIL'}  {c.name:24} {c.detail}" for c in self.checks]
        lines += [f"{_MARK[n.level]}  {n.name:24} {n.detail}" for n in self.notes]
        failed = [check.name for check in self.checks if not check.ok]
        verdict = f"failed: {', '.join(failed)}" if failed else "all checks passed"
        return "\n".join([where, *lines, f"{len(self.checks)} checks, {verdict}"])


_MARK = {"information": "info", "warning": "warn"}


class Build(NamedTuple):
    """A fault of released builds: versions of jaxlib, backend, what happens, and the source."""

    versions: tuple[str, ...]
    backend: str
    fault: str
    link: str
    workaround: str = ""


KNOWN_BUILDS = (
    Build(
        ("0.10.0", "0.10.1"),
        "cpu",
        "jit of value_and_grad aborts for some models",
        _JAX_ISSUE + "39264",
    ),
    Build(
        ("0.10.2", "0.11.0"),
        "cpu",
        "fused multiply and reduce crashes or hangs for arrays with 7 axes or more",
        _JAX_ISSUE + "39257",
        _NO_FUSION,
    ),
    Build(
        ("0.10.2",),
        "cpu",
        "arctan reported wrong on some processors (checked here)",
        _JAX_ISSUE + "39352",
    ),
    Build(
        ("0.10.2",),
        "tpu",
        "the eager derivative of x[:, idx, :] loses rows; under jit it is right",
        _JAX_ISSUE + "39025",
    ),
    Build(
        ("0.11.0", "0.11.1"),
        "gpu",
        "eager kernels return wrong values on some GPUs and drivers",
        _JAX_ISSUE + "40633",
    ),
    Build(
        ("0.11.1",),
        "cpu",
        "a small update of a large array in a loop costs as much as the array",
        _JAX_ISSUE + "40101",
    ),
)
"""Faults that were reported for released builds; lipjax's metadata refuses 0.11.0 and 0.11.1."""


def run() -> Report:
    """Runs every check on the default backend; about 5 seconds on a CPU.

    Returns:
        A `Report`. A check that raises has failed, and its detail is the error.

    Guarantee: none about what is not checked. A report that is not ok means that this build on this
    device computes something wrong, and that no certificate should be written with it.

    >>> report = run()
    >>> report.ok
    True
    """
    checks = [_guarded(name, check) for name, check in CHECKS.items()]
    notes = [_product_note(), _denormal_note(), *_build_notes()]
    return Report(all(check.ok for check in checks), checks, notes, describe_platform())


def describe_platform() -> dict:
    """Versions, backend, kind and number of devices, as strings and integers."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jax", "jaxlib", "numpy", "scipy")},
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def known_faults(jaxlib: str, backend: str) -> list[Build]:
    """The entries of `KNOWN_BUILDS` for a jaxlib version and a backend.

    >>> [build.link for build in known_faults("0.11.1", "cpu")]
    ['https://github.com/jax-ml/jax/issues/40101']
    """
    return [b for b in KNOWN_BUILDS if jaxlib in b.versions and backend == b.backend]


def _elementwise(name: str, low: float, high: float, tolerance: float) -> Callable:
    """Checks `jnp.<name>` against `np.<name>` on 257 points, by relative error in `u`."""

    def check():
        x = np.linspace(low, high, 257, dtype=np.float32)
        exact = getattr(np, name)(x.astype(np.float64))
        function = getattr(jnp, name)
        return _agree(lambda x: function(x), (x,), exact, tolerance, np.abs(exact) + _U)

    return check


def _small_eager():
    """The two smallest programs that a broken eager kernel got wrong."""
    root, two = np.float64(jnp.sqrt(jnp.float32(512))), np.asarray(jnp.ones(4, jnp.float32) + 1)
    ok = abs(root / 512**0.5 - 1) <= 4 * _U and np.all(two == 2)
    return ok, f"sqrt(512) = {root:.6f}, ones(4) + 1 = {two.tolist()}"


def _multiply_reduce():
    worst = (True, 0.0)
    for shape, axis in [((257,), 0), ((33, 65), 1), ((5, 16, 17), 1), ((2, 3, 8, 9, 4), 2)]:
        a, b = _normal(1, shape), _normal(2, shape)
        exact, size = (a64(a) * a64(b)).sum(axis), np.abs(a64(a) * a64(b)).sum(axis)
        ok, error = _errors(
            lambda a, b, axis=axis: (a * b).sum(axis), (a, b), exact, shape[axis] + 2, size
        )
        worst = (worst[0] and ok, max(worst[1], error))
    return worst[0], f"error {worst[1]:.1f} u of the sum of moduli"


def _matmul_highest():
    """Float32 products stay float32: half precision or TF32 would err by thousands of `u`."""
    details, passed = [], True
    for name, (a, b) in _matrices().items():
        exact, size = a64(a) @ a64(b), np.abs(a64(a)) @ np.abs(a64(b))
        ok, error = _errors(
            lambda a, b: jnp.matmul(a, b, precision=HIGHEST), (a, b), exact, a.shape[1] + 2, size
        )
        passed &= ok
        details.append(f"{name} {error:.1f} u")
    return passed, f"error {', '.join(details)} of |A||B|"


def _convolution():
    x, kernel = _normal(3, (2, 7, 6, 3)), _normal(4, (3, 3, 3, 4))
    patches = np.lib.stride_tricks.sliding_window_view(np.pad(a64(x), _PAD), (3, 3), axis=(1, 2))
    exact = np.einsum("nhwcij,ijco->nhwo", patches, a64(kernel))
    size = np.einsum("nhwcij,ijco->nhwo", np.abs(patches), np.abs(a64(kernel)))
    return _agree(_conv, (x, kernel), exact, 3 * 3 * 3 + 2, size)


def _convolution_adjoint():
    """`<K x, y> = <x, K^T y>`, with the transpose that JAX derives."""
    x, kernel, y = _normal(5, (2, 7, 6, 3)), _normal(6, (3, 3, 3, 4)), _normal(7, (2, 7, 6, 4))

    def adjoint(kernel, y):
        return jax.linear_transpose(lambda x: _conv(x, kernel), jnp.asarray(x))(y)[0]

    worst = 0.0
    for transform in (lambda f: f, jax.jit):
        forward, backward = transform(_conv)(x, kernel), transform(adjoint)(kernel, y)
        left, right = (a64(forward) * a64(y)).sum(), (a64(x) * a64(backward)).sum()
        size = np.linalg.norm(a64(forward)) * np.linalg.norm(a64(y))
        worst = max(worst, abs(left - right) / size / _U)
    return worst <= 40, f"identity holds up to {worst:.2f} u of |Kx||y|"


def _gather_gradient():
    x, weights = _normal(8, (3, 6, 4)), _normal(9, (3, 5, 4))
    index = np.array([4, 0, 4, 5, 2])
    exact = np.zeros(x.shape)
    np.add.at(exact, (slice(None), index), a64(weights))
    gradient = jax.grad(lambda x, weights: (x[:, index, :] * weights).sum())
    return _agree(gradient, (x, weights), exact, 4, np.abs(exact) + 1)


def _scan_accumulation():
    """A buffer written by `dynamic_update_slice` in a scan, and the sum that it carries."""
    values = _normal(10, (300,))

    def accumulate(values):
        def step(state, index):
            buffer, total = state
            value = lax.dynamic_slice(values, (index,), (1,))
            total = total + value
            return (lax.dynamic_update_slice(buffer, total, (index,)), total), value

        start = jnp.zeros(300, jnp.float32), jnp.zeros(1, jnp.float32)
        (buffer, _), copied = lax.scan(step, start, jnp.arange(300, dtype=jnp.int32))
        return jnp.stack([buffer, copied[:, 0]])

    exact = np.stack([np.cumsum(a64(values)), a64(values)])
    return _agree(accumulate, (values,), exact, 300, np.cumsum(np.abs(a64(values)))[None])


def _random_normal():
    """Moments 1 to 4 of a fixed sample within 5 standard errors; eager and jit draw the same."""

    def draw():
        return jax.random.normal(jax.random.key(0), (20000,), jnp.float32)

    eager, jitted = a64(draw()), a64(jax.jit(draw)())
    same = np.abs(eager - jitted).max() <= 64 * _U * np.abs(eager).max()
    wanted, spread = np.array([0, 1, 0, 3]), np.sqrt([1, 2, 15, 96])
    moments = np.array([(eager**power).mean() for power in (1, 2, 3, 4)])
    errors = (moments - wanted) / spread * len(eager) ** 0.5
    detail = ", ".join(f"{error:+.1f}" for error in errors)
    return bool(same and np.abs(errors).max() < 5), f"moments off by {detail} standard errors"


def _host_statistics():
    """Quantiles in float64 on the host, where every probability bound is computed."""
    from scipy import special

    worst = 0.0
    for trials in (10, 10**3, 10**6):  # all successes: the quantile is alpha**(1 / trials)
        root = special.betaincinv(trials, 1, 0.001)
        worst = max(worst, abs(root / 0.001 ** (1 / trials) - 1))
        inner = special.betaincinv(0.9 * trials, 0.1 * trials + 1, 0.001)
        worst = max(worst, abs(special.betainc(0.9 * trials, 0.1 * trials + 1, inner) / 1e-3 - 1))
    for p, quantile in _QUANTILES.items():
        worst = max(worst, abs(special.ndtri(p) / quantile - 1))
    return worst <= 1e-9, f"betaincinv and ndtri right up to {worst:.1e}"


def _host_float64():
    """JAX's own special functions in float64 on the CPU, against SciPy's."""
    from scipy import special

    p = np.array(list(_QUANTILES))
    normal = on_host_float64(jax.scipy.special.ndtri, p)
    a, b, x = np.array([2.0, 900.0, 5e4]), np.array([3.0, 101.0, 5e4]), np.array([0.3, 0.88, 0.501])
    beta = on_host_float64(jax.scipy.special.betainc, a, b, x)
    wide = normal.dtype == beta.dtype == np.float64
    worst = np.abs(normal / special.ndtri(p) - 1).max()
    worst = max(worst, np.abs(beta / special.betainc(a, b, x) - 1).max())
    return bool(wide and worst <= 1e-8), f"ndtri and betainc right up to {worst:.1e}"


_LOOSE = 256  # some accelerators approximate; a miscompiled function is wrong by far more
_PAD = [(0, 0), (1, 1), (1, 1), (0, 0)]
_QUANTILES = {0.975: 1.959963984540054, 0.999: 3.090232306167813, 1e-9: -5.997807015008182}

CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "eager kernels": _small_eager,
    "sqrt": _elementwise("sqrt", 0.0, 512.0, 4),
    "exp": _elementwise("exp", -20.0, 20.0, _LOOSE),
    "log": _elementwise("log", 0.01, 100.0, _LOOSE),
    "log1p": _elementwise("log1p", -0.9, 9.0, _LOOSE),
    "tanh": _elementwise("tanh", -4.0, 4.0, _LOOSE),
    "arctan": _elementwise("arctan", -10.0, 10.0, _LOOSE),
    "multiply and reduce": _multiply_reduce,
    "matmul at HIGHEST": _matmul_highest,
    "convolution": _convolution,
    "convolution transpose": _convolution_adjoint,
    "gather gradient": _gather_gradient,
    "scan accumulation": _scan_accumulation,
    "random normal": _random_normal,
    "statistics on the host": _host_statistics,
    "float64 on the host": _host_float64,
}
"""Name of every check and the function that returns `(ok, detail)`."""


def a64(x) -> np.ndarray:
    """`x` as a float64 NumPy array."""
    return np.asarray(x).astype(np.float64)


def _conv(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers, precision=HIGHEST
    )


def _normal(seed: int, shape) -> np.ndarray:
    """NumPy's numbers, so that JAX's generator is no part of the other checks."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _matrices() -> dict:
    """Random matrices, and thirds: all of one sign, so that rounded inputs cannot cancel."""
    third = np.full((48, 48), 1 / 3, np.float32)
    return {"random": (_normal(11, (40, 48)), _normal(12, (48, 56))), "thirds": (third, third)}


def _errors(fn, args, exact, tolerance, size) -> tuple[bool, float]:
    """Whether eager and jitted `fn` are within `tolerance u size` of `exact`; the worst in u."""
    args = tuple(jnp.asarray(arg) for arg in args)
    worst = 0.0
    for result in (fn(*args), jax.jit(fn)(*args)):
        error = np.abs(a64(result) - exact) / size / _U
        worst = float(np.maximum(worst, error.max()))  # keeps NaN
    return bool(worst <= tolerance), worst


def _agree(fn, args, exact, tolerance, size) -> tuple[bool, str]:
    ok, error = _errors(fn, args, exact, tolerance, size)
    return ok, f"eager and jit within {error:.1f} u of float64 (allowed {tolerance})"


def _guarded(name: str, check: Callable) -> Check:
    try:
        ok, detail = check()
    except Exception as error:  # a broken platform may fail in any way, and must be reported
        ok, detail = False, f"{type(error).__name__}: {error}".splitlines()[0]
    return Check(name, bool(ok), detail)


def _product_note() -> Note:
    a, b = _matrices()["thirds"]
    exact = a64(a) @ a64(b)
    error = np.abs(a64(jnp.matmul(jnp.asarray(a), jnp.asarray(b))) / exact - 1).max() / _U
    kind = "float32" if error < 100 else "TF32 or similar" if error < 3e4 else "bfloat16 or similar"
    detail = f"error {error:.0f} u ({kind}); lipjax asks for HIGHEST in every bound itself"
    return Note("matmul by default", "information", detail)


def _denormal_note() -> Note:
    tiny = jax.jit(lambda x: x * jnp.float32(0.5))(jnp.float32(2.0**-126))
    kept = bool(np.asarray(tiny) == np.float32(2.0**-127))
    return Note("denormals", "information", "kept" if kept else "flushed to zero")


def _build_notes() -> list[Note]:
    jaxlib, backend = _version("jaxlib"), jax.default_backend()
    backend = "gpu" if backend in ("cuda", "rocm") else backend
    notes = []
    for build in known_faults(jaxlib, backend):
        level, detail = "warning", f"{build.fault}: {build.link}"
        if build.workaround:
            active = build.workaround in os.environ.get("XLA_FLAGS", "").split()
            level = "information" if active else "warning"
            state = "is set" if active else "is not set; set it before Python starts"
            detail += f"; the workaround XLA_FLAGS={build.workaround} {state}"
        notes.append(Note(f"jaxlib {jaxlib}", level, detail))
    return notes


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; the exit status is 1 when a check fails."""
    parser = argparse.ArgumentParser("python -m lipjax.selfcheck", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    as_json = parser.parse_args(arguments).json
    report = run()
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
