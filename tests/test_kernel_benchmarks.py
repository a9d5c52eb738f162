"""`bench.py kernels`: its cases, its stopwatch, its figures, and the tuning, without an accelerator."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from benchmarks.kernels import compile as kernel_compile
from benchmarks.kernels import figures, processes, run, timing, tuning
from benchmarks.kernels.cases import Case, SelectionError, select
from benchmarks.kernels.contestants import COPY, measure, names
from kernels import autotune
from kernels.autotune import preferred, tuned
from kernels.chunked_attention import mosaic_gpu as attention_gpu
from kernels.device import interpreted
from kernels.gpu_rows import Threads
from kernels.layer_norm import layer_norm
from kernels.layer_norm import mosaic_gpu as gpu_norm
from kernels.lut_softmax import mosaic_gpu as gpu_softmax

ROOT = pathlib.Path(__file__).parents[1]
SMALL = Case("layer_norm", "", "stream_words", "bfloat16", "both")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders of its own for what is tuned: the package's and the user's."""
    monkeypatch.setattr(autotune, "FOLDER", tmp_path / "package")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    autotune._read.cache_clear()
    yield tmp_path / "package", tmp_path / "cache" / "edge-conformer" / "kernels"
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


def test_a_contestant_that_computes_something_else_is_not_timed():
    with pytest.raises(ValueError, match="disagrees with xla"):
        measure(SMALL, "ours", lambda *arguments: jax.tree.map(lambda a: a + 1, SMALL.function("xla")(*arguments)))


def test_the_time_on_a_gpu_is_that_of_all_kernels_of_a_call(monkeypatch):
    """The counter reports two kernels for each of eight calls, the second half slow."""
    times = [("norm", 1.0), ("scale", 2.0)] * 4 + [("norm", 3.0), ("scale", 4.0)] * 4
    counter = types.SimpleNamespace(_cupti_init=lambda: None, _cupti_get_timings=lambda finalize: times)
    monkeypatch.setitem(sys.modules, "jax._src.lib.mosaic_gpu", types.SimpleNamespace(_mosaic_gpu_ext=counter))
    inputs = [(jnp.ones(2) * seed,) for seed in range(8)]
    assert timing._kernel_seconds(jnp.negative, inputs) == pytest.approx(5.0e-3)
    times.pop()  # the kernels of calls cannot be told apart: the wall's clock is taken
    assert timing._kernel_seconds(jnp.negative, inputs) is None


def test_other_attention_computes_that_of_xla():
    case = Case("chunked_attention", "", "stream_words", "bfloat16", "forward")
    assert {"xla", "jax.nn xla"} < set(names(case))
    assert measure(case, "jax.nn xla").seconds > 0


def test_figures_compare_the_kernel_with_the_best_of_the_others():
    case = Case("chunked_attention", "", "long_1024_16", "bfloat16", "forward")
    times = {"mosaic_gpu": 1.0, "xla": 2.0, "torch flex": 3.0, "tokamax": None, COPY: 0.7}
    rows = [
        case._asdict() | {"bytes": 80, "operations": 0, "contestant": name, "seconds": seconds}
        for name, seconds in times.items()
    ]
    (figure,) = figures.compute(rows, {"copy_bytes_per_second": 100.0, "operations_per_second": 1.0})
    assert (figure["share_of_copy"], figure["share_of_equal_copy"]) == (0.8, 0.7)
    assert (figure["best_alternative"], figure["times_as_fast"]) == ("xla", 2.0)
    assert "2.00 times as fast as xla, goal 1.5" in figures.table({"figures": [figure]})
    norm = figure | {"operation": "layer_norm", "shape": "rows_512"}
    text = figures.table({"figures": [norm]})
    assert "80% of the rate of a copy of 1 GiB at least, goal 90%" in text and "70% of a copy of the same bytes" in text
    assert "left open" in figures.table({"figures": [], "training_step": {"text": "left open"}})


# ---------------------------------------------------------------------- processes

WORKER = """
import json, os, sys, time
for line in sys.stdin:
    match json.loads(line):
        case {"contestant": "dies"}:
            sys.exit("CUDA_ERROR_ILLEGAL_ADDRESS")
        case {"contestant": "hangs"}:
            time.sleep(1000)
        case {"contestant": "raises"}:
            print(json.dumps({"skipped": "TypeError: wrong", "broken": True}), flush=True)
        case _:
            print(json.dumps({"seconds": 1.0, "process": os.getpid()}), flush=True)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "worker_of_test.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return {"module": "worker_of_test"}


def test_what_fails_is_a_reply_and_its_process_is_replaced(worker):
    with processes.Processes() as contestants:
        first = contestants.ask("a", "time", contestant="works", **worker)["process"]
        assert contestants.ask("a", "time", contestant="works", **worker)["process"] == first
        assert contestants.ask("a", "time", contestant="raises", **worker) == {"skipped": "TypeError: wrong"}
        second = contestants.ask("a", "time", contestant="works", **worker)["process"]
        assert second != first
        died = contestants.ask("a", "time", contestant="dies", **worker)["skipped"]
        assert "ended with status 1" in died and "CUDA_ERROR_ILLEGAL_ADDRESS" in died
        assert contestants.ask("a", "time", contestant="works", **worker)["process"] not in (first, second)


def test_a_contestant_that_hangs_is_ended(worker):
    with processes.Processes(limit=0.1) as contestants:
        hung = contestants.ask("a", "time", contestant="hangs", **worker)
    assert "time limit of 0.1 s" in hung["skipped"]


class Answers:
    """Takes the place of the processes: answers, and keeps what it is asked."""

    def __init__(self, answer=lambda **request: {"seconds": 1.0, "clock": "wall", "cached": True}):
        self.answer, self.asked = answer, []

    def ask(self, name, command, **request):
        self.asked.append((name, command))
        if command == "rates":
            return {"copy_bytes_per_second": 1e9, "operations_per_second": 1e12}
        return self.answer(**request)

    def __call__(self, *limit):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_rows_are_kept_as_they_come_and_a_second_run_goes_on(tmp_path):
    file = tmp_path / "kernels.json"
    flags = "layer_norm", "stream_words", "bfloat16", None, str(file)

    def fails_once(contestant, **_):
        if contestant == "xla":
            raise KeyboardInterrupt
        return {"seconds": 1.0, "clock": "wall", "cached": True}

    with pytest.raises(KeyboardInterrupt):
        run.run(*flags, processes=Answers(fails_once))
    kept = json.loads(file.read_text())["rows"]
    assert [row["contestant"] for row in kept] == [COPY] * 4
    second = Answers(lambda contestant, **_: {"skipped": "it died"})
    rows = run.run(*flags, processes=second)["rows"]
    assert rows[:4] == kept and (COPY, "time") not in second.asked and (COPY, "rates") not in second.asked
    reasons = {row["contestant"]: row["skipped"] for row in rows[4:]}
    assert reasons["xla"] == reasons["torch compiled"] == "it died"
    assert reasons["mosaic_gpu"] == reasons["mosaic_tpu"] == "needs another device than cpu"
    file.write_text(file.read_text().replace('"kernels": "', '"kernels": "other'))
    assert (COPY, "time") in _asked(run.run, *flags)


def _asked(function, *flags):
    answers = Answers()
    function(*flags, processes=answers)
    return answers.asked


def test_a_training_step_that_cannot_run_is_a_line():
    result = run.run("training_step", None, None, None, processes=Answers(lambda **_: {"skipped": "no module grain"}))
    assert "no figure: no module grain" in run.table(result)


def _bare_environment(folder):
    """An environment with JAX, NumPy, absl and what these need, as links to the packages of this one."""
    packages, missing = {}, ["jax", "numpy", "absl-py"]
    while missing:
        distribution = importlib.metadata.distribution(missing.pop())
        if distribution.name not in packages:
            packages[distribution.name] = distribution
            needed = (line for line in distribution.requires or () if "extra ==" not in line)
            missing += [re.split(r"[^\w.-]", line)[0] for line in needed]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in packages.values():
        for name in {file.parts[0] for file in distribution.files} - {".."}:
            (site / name).symlink_to(distribution.locate_file(name))
    return folder / "bin" / "python"


@pytest.mark.slow
def test_it_runs_with_jax_numpy_and_absl_alone(tmp_path):
    """Starts, ends, and goes on with a record that was cut short; the training step says what it lacks."""
    python, file = _bare_environment(tmp_path / "bare"), tmp_path / "kernels.json"
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"JAX_PLATFORMS": "cpu"}

    def bench(*flags):
        command = [python, "bench.py", "kernels", *flags]
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout

    chosen = "--op=layer_norm", "--shape=stream_words", "--dtype=bfloat16", "--implementation=xla", f"--json={file}"
    bench(*chosen)
    record = json.loads(file.read_text())
    assert [(row["contestant"], row["skipped"]) for row in record["rows"]] == [(COPY, None)] * 4 + [("xla", None)] * 4
    assert "flax" not in record["versions"] and record["versions"]["jax"] == jax.__version__
    file.write_text(json.dumps(record | {"rows": record["rows"][:-1]}))
    bench(*chosen)
    again = json.loads(file.read_text())["rows"]
    assert again[:-1] == record["rows"][:-1] and again[-1]["seconds"] is not None
    assert "no figure: ModuleNotFoundError" in bench("--op=training_step")


# ------------------------------------------------------------------------- tuning


MODULES = {"layer_norm": gpu_norm, "lut_softmax": gpu_softmax, "chunked_attention": attention_gpu}


def _tune(seconds, *flags):
    """Tunes with the times of `seconds(case, choice)`, choice None for XLA. Returns how often it was asked."""
    asked = []

    def ask(name, command, implementation, case, candidate):
        module = {"layer_norm": gpu_norm, "lut_softmax": gpu_softmax, "chunked_attention": attention_gpu}[
            case.operation
        ]
        choice = None if candidate is None else module.candidates(case.width, case.format)[candidate]
        asked.append(case)
        return {"seconds": seconds(case, choice)}

    for case in tuning.cases(*flags):
        tuning.tune(case, "mosaic_gpu", ask)
    return len(asked)


def test_tuning_keeps_the_fastest_choice_and_the_fastest_implementation(folders):
    """The stopwatch favours blocks of 8 rows; with all others the kernel is slower than XLA."""
    flags = "layer_norm", "rows_512", "bfloat16"
    with interpreted("mosaic_gpu"):
        assert preferred("layer_norm") == "xla"
        count = _tune(lambda case, choice: 1.0 if choice is None else 0.5 if choice.rows == 8 else 2.0, *flags)
        chosen = tuned("layer_norm", "mosaic_gpu", Threads, width=512, format="bfloat16")
        assert chosen is not None and chosen.rows == 8 and count > 2
        assert tuned("layer_norm", "mosaic_gpu", Threads, width=512, format="float16") == chosen
        assert tuned("layer_norm", "mosaic_gpu", Threads, width=512, format="float8_e5m2") is None
        assert preferred("layer_norm") == "mosaic_gpu"
        assert _tune(lambda case, choice: None, *flags) == 0  # nothing is timed twice
    assert preferred("layer_norm") == "xla"  # on this device nothing was measured
    (file,) = (folders[1] / "layer_norm" / "tuned").iterdir()
    assert file.name == "nvidia_h200.json" and len(json.loads(file.read_text())["timings"]) == count


def test_what_the_package_brings_holds_until_the_user_measures(folders):
    shipped = {"implementation": "mosaic_gpu", "width": 512, "format": "bfloat16"}
    file = folders[0] / "layer_norm" / "tuned" / "nvidia_h200.json"
    file.parent.mkdir(parents=True)
    rows = [shipped | {"choice": {"lanes": 32, "vector": 8, "rows": 4}}]
    file.write_text(json.dumps({"implementation": "mosaic_gpu", "choices": rows}))
    with interpreted("mosaic_gpu"):
        assert preferred("layer_norm") == "mosaic_gpu"
        assert tuned("layer_norm", "mosaic_gpu", Threads, width=512, format="bfloat16") == Threads(32, 8, 4)
        autotune.keep("layer_norm", {"implementation": "xla", "choices": [shipped | {"choice": {"gone": 1}}]})
        assert preferred("layer_norm") == "xla"
        assert tuned("layer_norm", "mosaic_gpu", Threads, width=512, format="bfloat16") == Threads(32, 8, 4)


def test_attention_is_tuned_for_all_shapes_of_a_head_together(folders):
    """The stopwatch favours one choice by far for the longest shape, and another one a little for the others."""

    def seconds(case, choice):
        if choice is None:
            return 1.0
        long = case.shape.startswith("long_16384")
        return 0.01 if long and choice.steps_ahead == 3 else 0.9 if not long and choice.steps_ahead == 4 else 1.0

    with interpreted("mosaic_gpu"):
        _tune(seconds, "chunked_attention", None, None)
        chosen = tuned("chunked_attention", "mosaic_gpu", attention_gpu.Pipeline, width=64, format="bfloat16")
        assert chosen == attention_gpu.Pipeline(steps_ahead=3)
        chosen = tuned("chunked_attention", "mosaic_gpu", attention_gpu.Pipeline, width=36, format="bfloat16")
        assert chosen == attention_gpu.Pipeline(steps_ahead=4)


@pytest.mark.parametrize("kernel, chosen", [(0.5, "mosaic_gpu"), (2.0, "xla")])
def test_the_default_is_what_was_measured_to_be_faster(folders, kernel, chosen):
    with interpreted("mosaic_gpu"):
        _tune(lambda case, choice: 1.0 if choice is None else kernel, "layer_norm", "rows_256", "float32")
        x, ones = jnp.zeros((8, 32)), jnp.ones(32)
        kernels = "mpmd_map" in str(jax.make_jaxpr(lambda x: layer_norm(x, ones, ones))(x))
        assert kernels == (chosen == "mosaic_gpu")


def test_a_choice_that_fails_in_a_shape_is_not_chosen(folders):
    def seconds(case, choice):
        fails = choice is not None and choice.steps_ahead == 4 and case.shape == "train_medium"
        return None if fails else 0.1 if choice is not None and choice.steps_ahead == 4 else 1.0

    with interpreted("mosaic_gpu"):
        _tune(seconds, "chunked_attention", None, None)
        chosen = tuned("chunked_attention", "mosaic_gpu", attention_gpu.Pipeline, width=64, format="bfloat16")
        assert chosen is not None and chosen.steps_ahead != 4


def test_the_whole_search_is_few_compilations(folders):
    """At no more than 2.5 s for each, the search ends within 8 minutes."""
    with interpreted("mosaic_gpu"):
        assert _tune(lambda case, choice: 1.0, None, None, None) * 2.5 < 8 * 60


def test_tuning_without_an_accelerator_is_an_error():
    with pytest.raises(tuning.TuningError, match=r"no Pallas kernel runs on this device \(cpu\)"):
        tuning.run(None, None, None)


def test_ptxas_is_found_without_its_wheel(tmp_path, monkeypatch):
    ptxas = tmp_path / "bin" / "ptxas"
    ptxas.parent.mkdir()
    ptxas.touch(mode=0o755)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(ptxas.parent))
    assert processes.cuda_folder() in (str(tmp_path), "/usr/local/cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert processes.cuda_folder() == str(tmp_path)


def test_spills_fail_the_compilation(capsys):
    fine = ["case: layer_norm\n", "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"]
    registers = "ptxas info    : Used 80 registers, used 2 barriers\n"
    assert kernel_compile.report([*fine, registers], lambda: 0) == 0
    spills = fine[1].replace("0 bytes spill", "8 bytes spill")
    assert kernel_compile.report([fine[0], spills, registers], lambda: 0) == 1
    assert "80 registers  SPILLS 16 bytes" in capsys.readouterr().out
    assert kernel_compile.report(["an error\n"], lambda: 0) == 1
    assert kernel_compile.report([*fine, registers], lambda: 1) == 1
