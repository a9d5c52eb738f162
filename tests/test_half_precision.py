"""The emulator against compiled half precision: `half.c`, whose every operation is one on `_Float16`, bit for bit."""

import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conformer.numerics.device import arithmetic, norm_numerics, softmax_tables
from conformer.policy import get_policy
from kernels.emulator.emulate import emulate
from kernels.layer_norm import layer_norm, rms_norm

SOURCE = pathlib.Path(__file__).parent / "half.c"
ROWS, EPS = 10_000, 1e-5
EDGE, NAIVE = get_policy("edge_fp16"), get_policy("edge_fp16_naive")
FLAGS = ["-O2", "-std=c11", "-Wall", "-Werror", "-ffp-contract=off"]
# A compiler, and what runs its programs.
X86 = ["gcc", "-fexcess-precision=16"], []
ARM = ["aarch64-linux-gnu-gcc", "-march=armv8.2-a+fp16", "-static"], ["qemu-aarch64", "-cpu", "max"]
MACHINES = [pytest.param(X86, id="x86"), pytest.param(ARM, id="arm", marks=pytest.mark.slow)]

# Operation in half.c, and the emulator's.
OPERATIONS = {
    "layer_norm": (0, lambda x, a, b: layer_norm(x, a, b, eps=EPS, numerics=norm_numerics(EDGE))),
    "layer_norm_definition": (1, lambda x, a, b: layer_norm(x, a, b, eps=EPS, numerics=norm_numerics(NAIVE))),
    "rms_norm": (2, lambda x, a, b: rms_norm(x, a, eps=EPS, numerics=norm_numerics(EDGE)) + b),
    "softmax": (3, lambda x: emulate(lambda x: softmax_tables(EDGE)(x, jnp.ones_like(x, bool)), arithmetic(EDGE))(x)),
    "linear": (4, emulate(lambda x, a, b: x @ a + b, arithmetic(EDGE))),
}


@pytest.fixture(scope="module", params=MACHINES)
def program(request, tmp_path_factory) -> list[str]:
    """The command that runs half.c."""
    compiler, runner = request.param
    for tool in (compiler[0], *runner[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    path = tmp_path_factory.mktemp("half") / "half"
    result = subprocess.run([*compiler, *FLAGS, SOURCE, "-o", path, "-lm"], capture_output=True, text=True)
    if "unknown type name ‘_Float16’" in result.stderr or "excess-precision=16" in result.stderr:
        pytest.skip(f"{compiler[0]} has no _Float16 here, or does not round it: version 12 or later does")
    assert result.returncode == 0, result.stderr
    return [*runner, str(path)]


def compiled(command: list[str], operation: int, x: np.ndarray, *parameters: np.ndarray) -> np.ndarray:
    columns = len(parameters[-1]) if parameters else x.shape[1]
    header = np.array([operation, *x.shape, columns], np.int32).tobytes() + np.float32(EPS).tobytes()
    data = b"".join(a.astype(np.float32).tobytes() for a in (x, *parameters))
    result = subprocess.run(command, input=header + data, capture_output=True, check=True)
    return np.frombuffer(result.stdout, np.float32).reshape(len(x), columns)


def halves(rng: np.random.Generator, width: int) -> np.ndarray:
    """Rows of nine decades, some with an outlier, an offset, or nothing but one value."""
    x = rng.normal(size=(ROWS, width)) * 10.0 ** rng.uniform(-5, 4, (ROWS, 1))
    x[::5, 0] *= 100
    x[1::5] += 30 * np.abs(x[1::5]).max(axis=1, keepdims=True)
    x[2::50] = x[2::50, :1]
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("width", [144, 80])
def test_the_emulator_is_compiled_half_precision(program, name, width):
    rng = np.random.default_rng(width)
    operation, emulated = OPERATIONS[name]
    x = halves(rng, width)
    if name == "softmax":
        x, parameters = x / 100, ()
    elif name == "linear":
        parameters = 0.1 * rng.normal(size=(width, 12)), 10 * rng.normal(size=12)
    else:
        parameters = rng.uniform(0.5, 2, width), rng.normal(size=width)
    x, *parameters = (a.astype(np.float16).astype(np.float32) for a in (x, *parameters))

    expected = np.asarray(jax.jit(emulated)(x, *parameters)).astype(np.float16)
    found = compiled(program, operation, x, *parameters).astype(np.float16)
    same = (expected.view(np.uint16) == found.view(np.uint16)) | (np.isnan(expected) & np.isnan(found))
    assert same.all(), f"{(~same.all(axis=1)).sum()} rows of {ROWS} differ"
    if name in ("layer_norm", "rms_norm", "softmax"):
        assert np.isfinite(found).all()
