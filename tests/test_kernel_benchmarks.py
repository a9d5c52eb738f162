"""`bench.py kernels`: its cases, its stopwatch, its figures, and the tuning, without an accelerator."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels import compile as kernel_compile
from benchmarks.kernels import figures, tuning
from benchmarks.kernels.cases import Case, SelectionError, select
from benchmarks.kernels.contestants import functions, measure
from benchmarks.kernels.timing import _repeated
from kernels import autotune
from kernels.autotune import preferred, tuned
from kernels.chunked_attention import mosaic_gpu as attention_gpu
from kernels.device import interpreted
from kernels.gpu_rows import Threads
from kernels.layer_norm import layer_norm

SMALL = Case("layer_norm", "", "stream_words", "bfloat16", "both")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder of its own for what is tuned."""
    monkeypatch.setattr(autotune, "FOLDER", tmp_path)
    for operation in ("layer_norm", "lut_softmax", "chunked_attention"):
        (tmp_path / operation).mkdir()
    autotune._read.cache_clear()
    yield tmp_path
    autotune._read.cache_clear()


def test_the_flags_choose_cases():
    chosen = select("layer_norm", "rows_512", "float16")
    assert {case.variant for case in chosen} == {"", "geometric"} and len(chosen) == 4
    with pytest.raises(SelectionError, match="--op=conv is not one of layer_norm"):
        select("conv", None, None)
    with pytest.raises(SelectionError, match="--shape=big is not one of rows_1024"):
        select("lut_softmax", "big", None)


def test_bytes_and_operations_are_those_that_cannot_be_spared():
    rows = 65_536 * 512
    assert Case("layer_norm", "", "rows_512", "bfloat16", "forward").bytes == 2 * 2 * rows
    assert Case("layer_norm", "", "rows_512", "bfloat16", "both").bytes == 5 * 2 * rows
    assert Case("lut_softmax", "", "rows_512", "bfloat16", "forward").bytes == 2 * 2 * rows + rows
    stream = Case("chunked_attention", "", "stream_words", "bfloat16", "forward")
    assert stream.operations == 4 * 16 * 80 * 4 * 36  # two products, of 16 queries with 80 keys each


def test_every_application_of_a_run_is_computed():
    """With results fed back, n applications to one input are the function applied n times."""
    x, ones, zeros = (
        jnp.asarray(np.random.default_rng(0).standard_normal((4, 8)), jnp.float32),
        jnp.ones(8),
        jnp.zeros(8),
    )
    function = functools.partial(layer_norm, eps=0.5)
    (result, *_), other = jax.jit(_repeated(function, 3))([(x, ones, zeros), (2 * x, ones, zeros)])
    once = function(x, ones, zeros)
    np.testing.assert_allclose(result, function(once, ones, zeros), atol=1e-6)
    np.testing.assert_allclose(other[0], function(2 * x, ones, zeros), atol=1e-6)


def test_contestants_without_their_device_are_skipped_with_a_reason():
    outcomes = {name: measure(SMALL, name, function) for name, function in functions(SMALL).items() if name != "xla"}
    for name in ("mosaic_gpu", "mosaic_tpu"):
        assert outcomes[name].seconds is None and "needs another device than cpu" in (outcomes[name].skipped or "")


def test_a_contestant_that_computes_something_else_is_not_timed():
    wrong = measure(SMALL, "ours", lambda *arguments: jax.tree.map(lambda a: a + 1, SMALL.function("xla")(*arguments)))
    assert wrong.seconds is None and "disagrees with xla" in (wrong.skipped or "")


def test_figures_compare_the_kernel_with_the_best_of_the_others():
    case = {"operation": "layer_norm", "variant": "", "shape": "rows_512", "format": "bfloat16", "direction": "forward"}
    rows = [
        case | {"bytes": 80, "operations": 0, "contestant": name, "seconds": seconds, "skipped": None}
        for name, seconds in {"mosaic_gpu": 1.0, "xla": 3.0, "torch compiled": 2.0, "tokamax": None}.items()
    ]
    (figure,) = figures.compute(rows, {"copy_bytes_per_second": 100.0, "operations_per_second": 1.0})
    assert (figure["share_of_copy"], figure["best_alternative"], figure["times_as_fast"]) == (
        0.8,
        "torch compiled",
        2.0,
    )
    assert "80% of the copy at least, goal 90%" in figures.table({"figures": [figure]})
    assert "left open" in figures.table({"figures": [], "training_step": {"text": "left open"}})


def test_tuning_keeps_the_fastest_choice_and_the_fastest_implementation(kept):
    """With a stopwatch that likes blocks of 8 rows, and the kernel less than XLA with all others."""

    def timer(function, draw):
        if function.args[0].keywords["implementation"] == "xla":
            return 1.0
        return 0.5 if autotune._tried.value.rows == 8 else 2.0

    with interpreted("mosaic_gpu"):
        assert preferred("layer_norm") == "xla"
        record = tuning.tune("layer_norm", "mosaic_gpu", timer)
        autotune.keep("layer_norm", record)
        chosen = tuned("layer_norm", "mosaic_gpu", Threads, width=512, format="bfloat16")
        assert chosen is not None and chosen.rows == 8
        assert tuned("layer_norm", "mosaic_gpu", Threads, width=512, format="float8_e5m2") is None
        assert preferred("layer_norm") == record["implementation"]
    assert preferred("layer_norm") == "xla"  # on this device nothing was measured
    (file,) = (kept / "layer_norm" / "tuned").iterdir()
    assert file.name == "nvidia_h200.json" and json.loads(file.read_text()) == record


def test_attention_is_tuned_for_all_shapes_of_a_head_together(kept):
    """With a stopwatch that likes one choice by far for the longest shapes, and another a little for the others."""

    def timer(function, draw):
        choice, long = autotune._tried.value, draw.__self__.shape.startswith("long_16384")
        if choice is None:
            return 1.0
        return 0.01 if long and choice.steps_ahead == 3 else 0.9 if not long and choice.splits == 8 else 1.0

    with interpreted("mosaic_gpu"):
        record = tuning.tune("chunked_attention", "mosaic_gpu", timer)
        autotune.keep("chunked_attention", record)
        chosen = tuned("chunked_attention", "mosaic_gpu", attention_gpu.Pipeline, width=64, format="bfloat16")
        assert chosen == attention_gpu.Pipeline(steps_ahead=3)
        chosen = tuned("chunked_attention", "mosaic_gpu", attention_gpu.Pipeline, width=36, format="bfloat16")
        assert chosen == attention_gpu.Pipeline(splits=8)


@pytest.mark.parametrize("kernel, chosen", [(0.5, "mosaic_gpu"), (2.0, "xla")])
def test_the_default_is_what_was_measured_to_be_faster(kept, kernel, chosen):
    def timer(function, draw):
        return 1.0 if function.args[0].keywords["implementation"] == "xla" else kernel

    with interpreted("mosaic_gpu"):
        autotune.keep("layer_norm", tuning.tune("layer_norm", "mosaic_gpu", timer))
        x, ones = jnp.zeros((8, 32)), jnp.ones(32)
        kernels = "mpmd_map" in str(jax.make_jaxpr(lambda x: layer_norm(x, ones, ones))(x))
        assert kernels == (chosen == "mosaic_gpu")


def test_tuning_without_an_accelerator_is_an_error():
    with pytest.raises(tuning.TuningError, match=r"no Pallas kernel runs on this device \(cpu\)"):
        tuning.run(None)


def test_spills_fail_the_compilation(capsys):
    fine = ["case: layer_norm\n", "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"]
    registers = "ptxas info    : Used 80 registers, used 2 barriers\n"
    assert kernel_compile.report([*fine, registers], lambda: 0) == 0
    spills = fine[1].replace("0 bytes spill", "8 bytes spill")
    assert kernel_compile.report([fine[0], spills, registers], lambda: 0) == 1
    assert "80 registers  SPILLS 16 bytes" in capsys.readouterr().out
    assert kernel_compile.report(["an error\n"], lambda: 0) == 1
    assert kernel_compile.report([*fine, registers], lambda: 1) == 1
