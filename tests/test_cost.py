"""The cost model: against what XLA counts, against the model's own arrays, and by its own logic."""

import dataclasses
import functools
import itertools
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import cost as bench_cost
from benchmarks import energy
from benchmarks.chunk import CHUNK_SIZE, NUM_LEFT_CHUNKS
from benchmarks.copies import graph_copies
from configs import demo, digits, libri_mini, librispeech, paper, so762, tiny, words
from conformer.config import EXECUTIONS, Config
from conformer.cost import DEVICES, PRECISIONS, Workload, num_parameters, operations, predict, state_elements, total
from conformer.cost.training import INTERCONNECTS, Interconnect, training_step, training_table
from conformer.model import ConformerCTC

CONFIGS = {
    **{module.__name__: module.get_config for module in (demo, words, digits, so762, libri_mini, tiny)},
    **{f"librispeech:{size}": functools.partial(librispeech.get_config, size) for size in librispeech.SIZES},
    **{f"paper:{name}": functools.partial(paper.get_config, name) for name in paper.FRONT_ENDS},
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def make_config(name, execution="sequence", num_layers: int | None = 2):
    """Two blocks say as much as 27, and trace sooner."""
    config = CONFIGS[name]()
    sizes = {"num_layers": num_layers or config.model.num_layers, "vocab_size": config.model.vocab_size or 100}
    return config.replace({f"model.{key}": value for key, value in (sizes | {"execution": execution}).items()})


@functools.cache
def shapes(name, execution):
    return nnx.split(nnx.eval_shape(lambda: ConformerCTC(make_config(name, execution), rngs=nnx.Rngs(0))))


def lower(name, workload, execution="sequence"):
    """Lowers the workload, for the weights' shapes alone."""
    config = make_config(name, execution)
    graphdef, state = shapes(name, execution)
    features = jax.ShapeDtypeStruct(
        (workload.batch_size, workload.feature_frames, config.features.num_mel_bins), jnp.float32
    )
    lengths = jax.ShapeDtypeStruct((workload.batch_size,), jnp.int32)
    if not workload.streaming:

        def run(state, features, lengths):
            model = nnx.merge(graphdef, state)
            logits, lengths = model(features, lengths)
            return model.log_softmax(logits)

        return jax.jit(run).lower(state, features, lengths)
    chunk_size = workload.frames - workload.look_ahead
    left = workload.past // chunk_size
    if config.model.positions == "relative":  # a stream maps the distances once, before it begins

        def laid_out():
            model = ConformerCTC(config, rngs=nnx.Rngs(0))
            return model.encoder.layout.lay_out(model, workload.frames, workload.past + workload.frames)

        graphdef, state = nnx.split(nnx.eval_shape(laid_out))
    encoder = nnx.merge(graphdef, state).encoder
    cache = jax.eval_shape(lambda: encoder.initial_cache(workload.batch_size, chunk_size, left))

    def step(state, cache, features, num_frames):
        model = nnx.merge(graphdef, state)
        x, cache = model.encoder.step(cache, model.standardise(features), num_frames, workload.look_ahead)
        return model.log_softmax(model.head(x)), cache

    return jax.jit(step).lower(state, cache, features, lengths)


@pytest.mark.slow_but("configs.words", "librispeech:small")
@every_config
def test_operations_are_within_a_twentieth_of_what_xla_counts(name):
    """Chunks of streams, half of which look ahead, and whole utterances; one layout in turn with the other."""
    config, index = make_config(name), list(CONFIGS).index(name)
    chunk = Workload.chunk(config, 8, 4, 2, look_ahead=4 * (index % 2))
    for offset, workload in enumerate([chunk, Workload.utterance(config, 4.0)]):
        counted = lower(name, workload, EXECUTIONS[(index + offset) % 2]).cost_analysis() or {}
        found = operations(config, workload)
        assert sum(o.flops for o in found) == pytest.approx(counted["flops"], rel=0.05)
        assert sum(o.transcendental for o in found) == pytest.approx(counted["transcendentals"], rel=0.05)


@every_config
def test_parameters_are_those_of_the_model(name):
    _, state = shapes(name, "sequence")
    params = sum(leaf.size for leaf in jax.tree.leaves(nnx.filter_state(state, nnx.Param)))
    assert num_parameters(make_config(name)) == params


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_memory_is_what_xla_allocates(execution):
    """State and results exactly; the peak of activations within a factor of two, since XLA fuses and reuses."""
    config = make_config("configs.words", execution)
    workload = Workload.chunk(config, 16, 4)
    memory: Any = lower("configs.words", workload, execution).compile().memory_analysis()
    state = 4 * (state_elements(config, workload) + 1)
    features = 4 * (workload.feature_frames * config.features.num_mel_bins + 1)
    statistics = 2 * 4 * config.features.num_mel_bins
    assert memory.argument_size_in_bytes == 4 * num_parameters(config) + statistics + state + features
    log_probs = 4 * workload.frames * config.model.vocab_size
    assert memory.output_size_in_bytes == pytest.approx(state + log_probs, rel=0.01)
    peak = max(4 * operation.live for operation in operations(config, workload))
    assert 0.5 * peak < memory.temp_size_in_bytes < 2 * peak


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(1, 64), st.integers(0, 8), st.integers(1, 8), st.sampled_from(["watch", "phone", "h200"]))
def test_batches_and_weights_cost_what_they_must(chunk_size, left, batch_size, device):
    """A batch reads the weights once and computes for each; narrower weights never take longer or more energy."""
    config = make_config("configs.words")
    float16, narrower = PRECISIONS["float16"], PRECISIONS["float16_int8_weights"]
    one, many = (
        total(predict(config, Workload.chunk(config, chunk_size, left, n), DEVICES[device], float16).values())
        for n in (1, batch_size)
    )
    assert many.macs == batch_size * one.macs and many.weight_bytes == one.weight_bytes
    assert one.seconds <= many.seconds
    narrow = predict(config, Workload.chunk(config, chunk_size, left), DEVICES[device], narrower)
    narrow = total(narrow.values())
    assert narrow.seconds <= one.seconds and narrow.joules < one.joules


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_transposes_are_those_of_the_graph(execution):
    config = make_config("configs.words", execution)
    workload = Workload.chunk(config, CHUNK_SIZE, NUM_LEFT_CHUNKS)
    counted = sum(4 * o.outputs for o in operations(config, workload) if o.name == "transposes")
    assert counted == graph_copies(config)["transpose"][1]


def test_the_bound_is_named():
    config = make_config("configs.words")
    chunk, utterance = Workload.chunk(config, 4, 4), Workload.utterance(config, 20.0)
    watch = predict(config, chunk, DEVICES["watch"], PRECISIONS["float16"])
    assert watch["feed-forward"].bound == "bandwidth"  # weights are read for four frames
    watch = predict(config, utterance, DEVICES["watch"], PRECISIONS["float16"])
    assert watch["feed-forward"].bound == "compute"
    h200 = predict(config, chunk, DEVICES["h200"], PRECISIONS["bfloat16"])
    assert h200["feed-forward"].bound == "launch"
    free = dataclasses.replace(DEVICES["h200"], launch_seconds=0.0)
    assert predict(config, chunk, free, PRECISIONS["bfloat16"])["feed-forward"].bound == "bandwidth"


def test_a_format_that_a_device_lacks_is_named():
    config = make_config("configs.words")
    with pytest.raises(ValueError, match="multiplies int8 and not float16"):
        predict(config, Workload.chunk(config, 4, 4), DEVICES["ethos-u55"], PRECISIONS["float16"])


@pytest.mark.slow
def test_front_ends_cost_the_shares_of_the_paper():
    """Long utterances: 32.8 % and 4.0 % of all multiply-accumulates, 11.7 times fewer; then less than 2.5 %."""
    front, rest = {}, {}
    for name in paper.FRONT_ENDS:
        config = make_config(f"paper:{name}", num_layers=None)
        found = operations(config, Workload.utterance(config, paper.SECONDS))
        front[name] = sum(o.macs for o in found if o.module == "front end")
        rest[name] = sum(o.macs for o in found) - front[name]
    shares = {name: front[name] / (front[name] + rest[name]) for name in front}
    assert shares["vanilla"] == pytest.approx(0.328, rel=0.02)
    assert shares["depthwise_separable"] == pytest.approx(0.040, rel=0.02)
    assert front["vanilla"] / front["depthwise_separable"] == pytest.approx(11.7, rel=0.02)
    assert shares["small"] <= 0.025
    assert rest["small"] == rest["vanilla"]


@pytest.mark.slow_but("configs.words-4.0")
@pytest.mark.parametrize("name, seconds", [("configs.words", 4.0), ("librispeech:small", 8.0)])
def test_a_gradient_works_and_holds_what_xla_says(name, seconds):
    """Operations within a twentieth; what is kept for the backward pass within a half, since XLA fuses and reuses."""
    config = one_view(name, seconds)
    workload = Workload.utterance(config, seconds, 2)
    graphdef, state = shapes(name, "sequence")
    params, statistics = nnx.split_state(state, nnx.Param, ...)
    features = jax.ShapeDtypeStruct((2, workload.feature_frames, config.features.num_mel_bins), jnp.float32)

    def loss(params, statistics, features, lengths):
        model = nnx.merge(graphdef, params, statistics)
        return model.log_softmax(model(features, lengths)[0]).sum()

    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    gradient = jax.jit(jax.value_and_grad(loss)).lower(params, statistics, features, lengths)
    step = training_step(config, DEVICES["h200"], INTERCONNECTS["h200"], 1)
    assert step.rows == 2
    assert step.flops == pytest.approx((gradient.cost_analysis() or {})["flops"], rel=0.05)
    memory: Any = gradient.compile().memory_analysis()
    temporaries = memory.temp_size_in_bytes
    assert temporaries < step.activation_bytes < 1.5 * temporaries


def one_view(name: str, seconds: float) -> Config:
    """Batches of two utterances, each seen once, with CTC alone."""
    batch = {"data.bucket_seconds": (seconds,), "data.batch_seconds": 2 * seconds}
    losses = {"train.consistency_weight": 0.0, "train.intermediate_weight": 0.0, "train.accumulate": 1}
    return make_config(name).replace(batch | losses)


def test_views_and_losses_are_counted():
    """Two views have the work of twice the utterances; the middle block's head, that of another; parts, all of it."""
    plain = one_view("librispeech:small", 8.0)

    def step(config: Config, **changes: Any):
        changed = config.replace({f"train.{key}": value for key, value in changes.items()})
        return training_step(changed, DEVICES["h200"], INTERCONNECTS["h200"], 1)

    one, two = step(plain), step(plain, consistency_weight=0.2)
    doubled = step(plain.replace({"data.batch_seconds": 32.0}))
    assert (two.flops, two.activation_bytes) == (doubled.flops, doubled.activation_bytes)
    assert two.rows == one.rows and two.audio_seconds == one.audio_seconds
    frames, units = 2 * Workload.utterance(plain, 8.0).frames, plain.model.vocab_size
    products = 2 * 3 * frames * units * plain.model.encoder_dim
    assert products < step(plain, intermediate_weight=0.3).flops - one.flops < 1.2 * products
    products = 2 * 2 * frames * units**2
    assert products < step(plain, mmi_weight=0.5).flops - one.flops < 1.4 * products
    parts = step(plain, accumulate=2)
    assert parts.activation_bytes < 0.6 * one.activation_bytes and parts.flops == pytest.approx(one.flops, rel=0.1)
    assert step(plain, optimiser="adamw").compute_seconds < one.compute_seconds < two.compute_seconds
    assert step(plain, num_steps=300).hours == pytest.approx(300 * one.seconds / 3600)


def test_more_devices_hold_and_compute_less_each_and_talk_more():
    config = make_config("librispeech:large").replace({"train.accumulate": 1})
    steps = [training_step(config, DEVICES["h200"], INTERCONNECTS["h200"], n) for n in (1, 8, 64)]
    parameters = 4 * num_parameters(config)
    assert steps[0].communication_seconds == 0
    assert steps[0].sharded_bytes == steps[0].copied_bytes == 5 * parameters
    assert steps[1].sharded_bytes == parameters // 2 + 2 * parameters
    for fewer, more in itertools.pairwise(steps):
        assert more.rows < fewer.rows and more.activation_bytes < fewer.activation_bytes
        assert more.compute_seconds < fewer.compute_seconds
        assert more.communication_seconds > fewer.communication_seconds
        assert more.sharded_bytes < fewer.sharded_bytes and more.copied_bytes == fewer.copied_bytes
        assert more.audio_seconds == fewer.audio_seconds
    assert len(training_table(steps).splitlines()) == 4


def test_a_sum_crosses_the_link_of_a_node_and_the_network_with_an_eighth():
    joined = Interconnect(devices_in_node=8, node_bandwidth=8.0, network_bandwidth=2.0, latency=0.0)
    assert joined.all_reduce_seconds(64, 1) == 0
    assert joined.all_reduce_seconds(64, 8) == 2 * 7 / 8 * 64 / 8
    assert joined.all_reduce_seconds(64, 32) == 2 * 7 / 8 * 64 / 8 + 2 * 3 / 4 * 8 / 2


@pytest.mark.slow
def test_the_command_compares_and_draws(tmp_path):
    drawings = [tmp_path / "shares.svg", tmp_path / "waterfall.svg"]
    out = run_command(
        "--config=configs/paper.py:vanilla",
        "--compare=configs/paper.py:small",
        f"--plot={drawings[0]}",
        f"--waterfall={drawings[1]}",
    )
    assert out.returncode == 0, out.stderr
    assert "configs/paper.py:small" in out.stdout and "int8 weights" in out.stdout and "bandwidth" in out.stdout
    assert all("</svg>" in drawing.read_text() for drawing in drawings)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--device=ethos-u55", "--formats=float16"), "choose other --formats"),
        (("--training=8",), "nothing is known of how --device=watch is joined: use h200, rtx-4090"),
        (("--device=h200", "--training=8,0"), "--training=8,0 must be numbers of devices, such as 8,64,256"),
        (("--compare=nothing.py",), "nothing.py does not exist: name a file such as configs/demo.py"),
    ],
    ids=["formats", "device", "numbers", "file"],
)
@pytest.mark.slow_but("device")
def test_what_cannot_be_told_is_one_line(flags, message):
    out = run_command("--config=configs/words.py", *flags)
    assert out.returncode == 1 and out.stderr.count("\n") == 1 and message in out.stderr


def run_command(*arguments):
    root = pathlib.Path(__file__).parents[1]
    return subprocess.run([sys.executable, "cost.py", *arguments], cwd=root, capture_output=True, text=True)


def test_energy_is_counted_across_packages_and_the_end_of_a_counter(tmp_path):
    """Counts two packages and a part of one, as Linux lays them out; the first counter starts again on the way."""
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
        (tmp_path / name / "energy_uj").write_text("9000000\n")

    def work():
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000\n")
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("9500000\n")

    counter = energy.processor(tmp_path)
    assert counter is not None
    assert energy.joules(work, counter, rest_seconds=0.01) == pytest.approx(3.0 + 0.5)
    assert energy.processor(tmp_path / "nothing") is None and energy.joules(work, None) is None


def test_a_gpu_that_is_not_there_is_not_predicted():
    with pytest.raises(ValueError, match="finds none here: use --device=x86"):
        bench_cost.run(1, "h200")
