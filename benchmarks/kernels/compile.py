"""Compiles every GPU kernel to machine code on a machine without a GPU, and fails where one spills registers.

    python -m benchmarks.kernels.compile --target-config=h200.txtpb [--cuda=FOLDER]

Needs, beside JAX and of its version, `pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc
nvidia-nvvm` (250 MB; where CUDA's own nvcc is installed, the first two), best in an environment of its own, and a
description of the device: XLA's source has one for each GPU (xla/backends/gpu/target_config/specs/h200.txtpb).
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable

from benchmarks.kernels.processes import cuda_folder

SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target-config", required=True, help="description of the device, XLA's GpuTargetConfigProto")
    parser.add_argument("--cuda", default=None, help="folder with bin/ptxas; by default the wheel's or CUDA's own")
    parser.add_argument("--op", default=None, help="one operation alone")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _compile_all(arguments.target_config, arguments.op)
        return 0
    cuda = arguments.cuda or cuda_folder()
    if not pathlib.Path(arguments.target_config).is_file() or cuda is None:
        missing = "found no ptxas" if cuda is None else f"{arguments.target_config} does not exist"
        sys.exit(f"benchmarks.kernels.compile: {missing}: see --help for what this needs")
    # ptxas reports from inside the compiler: its lines are read from a process of their own.
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={cuda}",
        "PATH": f"{cuda}/bin{os.pathsep}{os.environ['PATH']}",
        "MOSAIC_GPU_DUMP_PTXAS": "1",
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kernels.compile", *sys.argv[1:], "--child"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    return report(child.stdout, child.wait)


def report(lines: Iterable[str], wait: Callable[[], int]) -> int:
    """Prints a line a kernel; 1 where one spills, where nothing was compiled, or where `wait` says that it failed."""
    case, spills, kernels, stored, other = "", 0, 0, 0, []
    for line in lines:
        if line.startswith("case: "):
            case = line.removeprefix("case: ").strip()
        elif match := SPILL.search(line):
            stored = int(match[1]) + int(match[2])
        elif match := REGISTERS.search(line):
            kernels, spills = kernels + 1, spills + bool(stored)
            print(f"{case:<70}{match[1]:>4} registers" + (f"  SPILLS {stored} bytes" if stored else ""), flush=True)
        elif not line.startswith("ptxas"):
            other.append(line)
    if wait() or not kernels:
        print("".join(other[-20:]), file=sys.stderr)
        return 1
    print(f"{kernels} kernels, {spills} of them spill registers")
    return 1 if spills else 0


def _compile_all(target_config: str, operation: str | None) -> None:
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from benchmarks.kernels.cases import select
    from kernels.implementation import Unsupported

    text = pathlib.Path(target_config).read_text()
    topology = topologies.get_topology_desc(platform="cuda", target_config=text, topology="1x1x1")
    mesh = Mesh(np.array(topology.devices[:1]), ("_",), axis_types=(AxisType.Explicit,))
    placed = NamedSharding(mesh, PartitionSpec())
    for case in select(operation, None, None):
        print(f"case: {' '.join(filter(None, case))}", flush=True)
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed) for a in jax.eval_shape(case.draw, 0)]
        try:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                function = jax.jit(case.function("mosaic_gpu"))
                function.trace(*shapes).lower(lowering_platforms=("cuda",)).compile()
        except Unsupported as error:
            print(f"not supported: {error}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
