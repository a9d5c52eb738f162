"""The cost model beside the machine: one core's rates from single operations, predictions from these, measurements.

The rates of a core come from products, loops and copies of several sizes, never from a model, so that the comparison
tests the model of cost and not a fit.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import energy, harness, machine
from benchmarks.chunk import CHUNK_SIZE, NUM_LEFT_CHUNKS, benchmark_config, chunk_seconds
from configs import demo, libri_mini, librispeech, words
from conformer import system
from conformer.config import Config
from conformer.cost import DEVICES, PRECISIONS, Device, Workload, predict, total
from kernels.depthwise_conv import depthwise_conv
from kernels.layer_norm import layer_norm

UNITS = 128  # of models whose tokenizer is not trained


def configs() -> dict[str, Config]:
    """The models that are predicted and measured: 1 to 26 M parameters, with learned positions."""
    named = {
        "demo": demo.get_config(),
        "words": words.get_config(),
        "libri_mini": libri_mini.get_config(),
        "librispeech:small": librispeech.get_config("small"),
        "20 M": benchmark_config(),
        "librispeech:medium": librispeech.get_config("medium"),
    }
    return {
        name: config.replace({"model.vocab_size": config.model.vocab_size or UNITS, "model.positions": "learned"})
        for name, config in named.items()
    }


def run(chunks: int, name: str = "x86") -> dict:
    """`bench.py cost`: "x86" on one core, "h200" on the GPU.

    The rates of a core are measured, those of the GPU are its data sheet's. Energy stands beside the prediction where
    the machine counts it.
    """
    on_gpu = name != "x86"
    if not on_gpu:
        system.use_one_core()
    elif jax.default_backend() != "gpu":
        raise ValueError(f"cost --device={name} measures on that GPU, and JAX finds none here: use --device=x86")
    counter, formats = (energy.gpu(), "bfloat16") if on_gpu else (energy.processor(), "float32")
    result = {"chunk_size": CHUNK_SIZE, "num_left_chunks": NUM_LEFT_CHUNKS, "formats": formats}
    result |= {"accelerator": jax.devices()[0].device_kind}
    devices, rows = {}, {}
    for model, config in configs().items():
        workload = Workload.chunk(config, CHUNK_SIZE, NUM_LEFT_CHUNKS)
        width = config.model.encoder_dim
        devices[width] = device = devices.get(width) or (DEVICES[name] if on_gpu else measure_device(width))
        costs = predict(config, workload, device, PRECISIONS[formats])
        clock = time.perf_counter if on_gpu else time.process_time
        seconds, joules = chunk_seconds(config, workload, chunks, formats, clock, counter)
        predicted = total(costs.values())
        rows[model] = {
            "measured_real_time_factor": seconds / workload.seconds,
            "predicted_real_time_factor": predicted.seconds / workload.seconds,
            "error": predicted.seconds / seconds - 1,
            "predicted_seconds": {module: cost.seconds for module, cost in costs.items()},
            "measured_joules_per_second_of_audio": joules and joules / workload.seconds,
            "predicted_joules_per_second_of_audio": predicted.joules / workload.seconds,
        }
    profiles = {width: dataclasses.asdict(device) for width, device in devices.items()}
    return result | {"device_profiles": profiles, "rows": rows}


def table(result: dict) -> str:
    """The record for a reader."""
    title = f"one chunk, {result['accelerator']}, {result['formats']}"
    headings = (title, "measured RTF", "predicted", "error", "mJ a second", "predicted")
    rows = []
    for name, row in result["rows"].items():
        joules = row["measured_joules_per_second_of_audio"]
        rows.append(
            (
                name,
                f"{row['measured_real_time_factor']:.5f}",
                f"{row['predicted_real_time_factor']:.5f}",
                f"{row['error']:.0%}",
                "not counted" if joules is None else f"{1e3 * joules:.1f}",
                f"{1e3 * row['predicted_joules_per_second_of_audio']:.1f}",
            )
        )
    lines = [harness.table(headings, rows)]
    for width, profile in result["device_profiles"].items():
        giga = {name: profile[name] / 1e9 for name in profile if name.endswith(("r_rate", "l_rate", "bandwidth"))}
        lines.append(
            f"width {width}: products {profile['matrix_rate'][result['formats']] / 1e9:.0f} G operations/s, reductions "
            f"{giga['vector_rate']:.1f}, exponentials {giga['transcendental_rate']:.2f} G/s; weights "
            f"{giga['memory_bandwidth']:.1f} GB/s from memory, {giga['cache_bandwidth']:.1f} from the cache, "
            f"transposes {giga['activation_bandwidth']:.0f} GB/s; {1e6 * profile['launch_seconds']:.2f} us an "
            f"operation, {1e6 * profile['call_seconds']:.0f} us a call"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------- the machine


def measure_device(width: int) -> Device:
    """The profile "x86" with this core's rates for products and loops of so many channels: widths that fill no whole
    vectors and tiles are slower.
    """
    rates = machine.rates()
    launch = _chain(lambda x: x @ jnp.eye(16), jnp.ones((1, 16)), 200)
    depthwise, vector, transcendental, moved = _loop_rates(width)
    rate = _product_rate(launch, width)
    return dataclasses.replace(
        DEVICES["x86"],
        matrix_rate={name: rates[name] / rates["float32"] * rate for name in ("float32", "bfloat16", "int8")},
        depthwise_rate=depthwise,
        vector_rate=vector,
        transcendental_rate=transcendental,
        memory_bandwidth=_weight_bandwidth(rate, launch, width, 64),
        cache_bandwidth=_weight_bandwidth(rate, launch, width, 8),
        activation_bandwidth=moved,
        launch_seconds=launch,
        call_seconds=_call_seconds(),
    )


ROWS = CHUNK_SIZE  # of products and loops like those of a chunk


def _product_rate(launch: float, width: int) -> float:
    """Operations a second of products with weights that are in the nearest caches."""
    weight = jnp.full((width, width), 1e-3)
    return 2 * ROWS * width**2 / (_chain(lambda x: x @ weight, jnp.ones((ROWS, width)), 50) - launch)


def _weight_bandwidth(rate: float, launch: float, width: int, megabytes: int) -> float:
    """Bytes a second at which weights are read and packed: products with so many of them, beyond the time that the
    arithmetic takes.
    """
    weights = [jnp.full((width, width), 1e-3) for _ in range(megabytes * 2**20 // (4 * width**2))]

    @jax.jit
    def run(x, weights):
        for weight in weights:
            x = x @ weight
        return x

    x = jnp.ones((ROWS, width))
    seconds = _quartile(lambda: run(x, weights), 20) / len(weights)
    arithmetic = 2 * ROWS * width**2 / rate + launch
    return 4 * width**2 / max(seconds - arithmetic, 0.02 * seconds)


def _loop_rates(width: int) -> tuple[float, float, float, float]:
    """Operations a second of a depthwise convolution, of a norm's reductions, and of exponentials (a swish has one);
    bytes a second, read and written, of a transpose of heads.
    """
    taps, heads = 15, 4
    size = ROWS * width
    x, kernel, scale = jnp.ones((1, ROWS, width)), jnp.ones((taps, width)), jnp.ones(width)
    padded = jnp.ones((1, ROWS + taps - 1, width))
    split = jnp.ones((1, ROWS, heads, width // heads))
    counts_and_seconds = (
        (
            2 * taps * size,
            _chain(lambda x: jnp.pad(depthwise_conv(x, kernel), ((0, 0), (taps - 1, 0), (0, 0))), padded, 50),
        ),
        (7 * size, _chain(lambda x: layer_norm(x, scale, scale), x, 50)),
        (size, _chain(jax.nn.swish, x, 50)),
        (8 * size, _chain(lambda x: x.swapaxes(1, 2).reshape(x.shape), split, 50)),
    )
    depthwise, vector, transcendental, moved = (count / seconds for count, seconds in counts_and_seconds)
    return depthwise, vector, transcendental, moved


def _chain(operation: Callable[[jax.Array], jax.Array], x: jax.Array, length: int) -> float:
    """Seconds of one of many operations in a row, kept apart."""

    @jax.jit
    def run(x):
        for _ in range(length):
            x = jax.lax.optimization_barrier(operation(x))
        return x

    @jax.jit
    def nothing(x):
        return x + 1.0

    whole = _quartile(lambda: run(x), 20)
    return (whole - _quartile(lambda: nothing(x), 20)) / length


def _call_seconds() -> float:
    """Measures the seconds of a call with as many arrays as a model of 5 blocks has, of which few are read."""
    weights = [jnp.ones(8) for _ in range(150)]
    state = [jnp.ones((1, 8, 8)) for _ in range(10)]

    @jax.jit
    def run(weights, state, window):
        return window.sum(), [leaf + 1.0 for leaf in state]

    window = np.ones((1, 67, 80), np.float32)
    return _quartile(lambda: np.asarray(run(weights, state, window)[0]), 50)


def _quartile(run: Callable[[], object], repeats: int) -> float:
    """The lower quartile of processor time."""
    return float(np.quantile(harness.core_seconds(run, repeats), 0.25))
