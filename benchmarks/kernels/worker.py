"""The process that measures for `bench.py kernels`: requests and replies are lines of JSON.

What fails is a reply too: {"skipped": the reason, "broken": whether the process can be trusted no more}.
"""

import importlib
import json
import os
import sys
from typing import Any

import jax

from benchmarks.kernels import contestants, timing
from benchmarks.kernels.cases import Case
from kernels import autotune


def main() -> None:
    """Answers requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    jax.config.update("jax_enable_compilation_cache", False)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = COMMANDS[request.pop("command")](**request)
        except Exception as error:  # whatever a library raises is that contestant's row
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            reply = {"skipped": reason[:300], "broken": not isinstance(error, NotImplementedError)}
        print(json.dumps(reply), file=replies, flush=True)


def time(contestant: str, case: list[str]) -> dict[str, Any]:
    """Of one contestant in one case."""
    return contestants.measure(Case(*case), contestant)._asdict()


def tune(implementation: str, case: list[str], candidate: int | None) -> dict[str, Any]:
    """Of one of an implementation's choices, or of one that has none."""
    chosen = Case(*case)
    if candidate is None:
        return timing.device_seconds(chosen.function(implementation), chosen.draw)._asdict()
    module = importlib.import_module(f"kernels.{chosen.operation}.{implementation}")
    with autotune.trying(module.candidates(chosen.width, chosen.format)[candidate]):
        return timing.device_seconds(chosen.function(implementation), chosen.draw)._asdict()


def memory(contestant: str, case: list[str]) -> dict[str, Any]:
    """Bytes that a contestant needs beside arguments and results."""
    chosen = Case(*case)
    compiled = jax.jit(chosen.function(contestant)).lower(*jax.eval_shape(chosen.draw, 0)).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return {"bytes": analysis.temp_size_in_bytes}


def training_step() -> dict[str, Any]:
    """See `benchmarks.kernels.step`; needs what training needs."""
    from benchmarks.kernels import step

    return step.compare()


COMMANDS = {"time": time, "tune": tune, "memory": memory, "rates": timing.rates, "training_step": training_step}

if __name__ == "__main__":
    main()
