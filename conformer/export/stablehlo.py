"""JAX's own artefact (`jax.export`, StableHLO): the reference that the others are compared with.

It loads in the version of JAX that wrote it and newer ones, without this project's code; for devices, the others are.
"""

import jax

from conformer.export.formats import Interface, Task
from conformer.export.step import describe, flat_step, specifications


def export(task: Task) -> Interface:
    """Writes the step, ending in log-probabilities."""
    run = jax.jit(flat_step(task.model, task.geometry))
    exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(*specifications(task.geometry))
    task.path.write_bytes(exported.serialize())
    return describe(task.geometry, "log_probs")
