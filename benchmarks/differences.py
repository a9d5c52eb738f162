"""Measures what numerics policies change in the log-probabilities of models, imported ones beside our own.

An imported checkpoint may have random weights: then log-probabilities alone can be compared, and no error rate. Each
policy runs in both layouts; the device without stabilisers meets a residual stream 1024 times as large.
The largest values inside a norm and a softmax, computed as defined, are measured in float32: where they exceed the
format, the device without stabilisers must fail (docs/numerics.md).
"""

import concurrent.futures
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.config import Config
from conformer.model import ConformerCTC
from conformer.model.attention import Attention
from conformer.model.layouts import EXECUTIONS
from conformer.model.norm import LayerNorm
from conformer.numerics import apply_policy, scale_residual
from conformer.numerics.apply import replace_children
from conformer.training.checkpoint import load_model
from kernels.emulator import FLOAT16
from kernels.lut_softmax import softmax
from kernels.typing import Array, Bool, Float

# Policies, and what the residual stream is multiplied by; an emulated one takes a minute for each model and layout.
CASES = [(name, 1.0) for name in ("float32", "bfloat16", "float16", "int8", "edge_fp16")]
CASES += [("float32", 1024.0), ("edge_fp16_naive", 1024.0)]
FRAMES = 64  # of features
FAST_COMPILATION = {"xla_backend_optimization_level": 0}  # an emulated program compiles for longer than it runs


def run(workdirs: Sequence[str], names: Sequence[str] = ()) -> dict:
    """`measure` of the models in some work directories.

    Args:
        names: of policies; none = every one of CASES.
    """
    known = sorted({policy for policy, _ in CASES})
    if unknown := set(names) - set(known):
        raise ValueError(f"--policies={','.join(sorted(unknown))}: these are compared here: {', '.join(known)}")
    # Side by side: nearly all of the time goes to compilers, each of which keeps one core.
    with concurrent.futures.ThreadPoolExecutor(len(workdirs)) as pool:
        found = list(itertools.chain(*pool.map(lambda workdir: list(measure_one(workdir, names)), workdirs)))
    ranges, rows = ([row for row in found if ("policy" in row) == differs] for differs in (False, True))
    return {"frames": FRAMES, "ranges": ranges, "rows": rows}


def measure_one(workdir: str, names: Sequence[str]) -> Iterator[dict]:
    """The rows of the model in one work directory, printed as they come."""
    config, model, _, _ = load_model(pathlib.Path(workdir))
    for row in measure(config, model, [case for case in CASES if not names or case[0] in names]):
        labelled = {"model": pathlib.Path(workdir).name} | row
        print(line(labelled), flush=True)
        yield labelled


def measure(config: Config, model: ConformerCTC, cases: Sequence[tuple[str, float]]) -> Iterator[dict]:
    """`extent` of a model for each scale of the residual stream, then its differences from float32, one by one.

    Differences are the root mean square, its share of the standard deviation of the model's own log-probabilities, and
    the largest.

    Args:
        cases: as CASES.
    """
    features = inputs(config, model)
    exact = log_probs(config, model, features)
    for scale in sorted({scale for _, scale in cases}):
        yield {"residual_scale": scale} | extent(config, scale_residual(model, scale), features)
    for execution in EXECUTIONS:
        for policy, scale in cases:
            changed = nnx.clone(apply_policy(scale_residual(model, scale), policy))
            changed.encoder.layout = EXECUTIONS[execution]
            difference = np.abs(log_probs(config, changed, features) - exact)
            row = {"execution": execution, "policy": policy, "residual_scale": scale, "rms": None}
            if np.isfinite(difference).all():
                rms = float(np.sqrt(np.mean(difference**2)))
                row |= {"rms": rms, "relative": rms / float(exact.std()), "largest": float(difference.max())}
            yield row


def inputs(config: Config, model: ConformerCTC) -> np.ndarray:
    """Features (1, FRAMES, mel) that the model standardises to a normal distribution."""
    noise = np.random.default_rng(0).standard_normal((1, FRAMES, config.features.num_mel_bins), np.float32)
    return np.asarray(noise / model.feature_scale[...] + model.feature_mean[...])


def log_probs(config: Config, model: ConformerCTC, features: np.ndarray) -> np.ndarray:
    """Computes the log-probabilities of one whole utterance, under the first mask of chunks that the model knows."""
    chunk_size, left = config.train.chunk_sizes[0], config.train.num_left_chunks[0]
    graphdef, state = nnx.split(model)

    def forward(state: nnx.State, features: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        lengths = jnp.array([features.shape[1]], jnp.int32)
        logits, _ = model(features, lengths, chunk_size=chunk_size, num_left_chunks=left)
        return model.log_softmax(logits)

    return np.asarray(jax.jit(forward, compiler_options=FAST_COMPILATION)(state, features))


def extent(config: Config, model: ConformerCTC, features: np.ndarray) -> dict:
    """The largest numbers inside norms and softmaxes as they are defined, and whether float16 lacks them.

    Returns:
        the largest sum of squares of a centred row, the logarithm of the largest sum of exponentials of a row's scores,
        and `overflows`: those that float16 cannot hold.
    """
    squares, exponentials = [], []
    probed = nnx.clone(model)
    replace_children(probed, lambda _, child: _Probe(child, squares.append) if isinstance(child, LayerNorm) else child)
    for _, module in nnx.iter_modules(probed):
        if isinstance(module, Attention):
            module.softmax, module.implementation = _probed_softmax(exponentials.append), "xla"
    log_probs(config, probed, features)
    jax.effects_barrier()
    found = {"norm": float(max(squares)), "softmax": float(max(exponentials))}
    largest = {"norm": FLOAT16.largest, "softmax": math.log(FLOAT16.largest)}
    overflows = [name for name in found if found[name] > largest[name]]
    return {"sum_of_squares": found["norm"], "log_sum_exp": found["softmax"], "overflows": overflows}


class _Probe(nnx.Module):
    """A LayerNorm that tells the largest sum of squares of the centred rows that it is given."""

    def __init__(self, norm: LayerNorm, tell: Callable[[Array], None]):
        self.norm = norm
        self.tell = tell

    def __call__(self, x: Float[Array, "*shape"], *, axis: int = -1) -> Float[Array, "*shape"]:
        centred = x - jnp.mean(x, axis=axis, keepdims=True)
        jax.debug.callback(self.tell, jnp.max(jnp.sum(jnp.square(centred), axis=axis)))
        return self.norm(x, axis=axis)

    def of_sum(self, x: Float[Array, "*shape"], residual: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self(x + residual)


def _probed_softmax(tell: Callable[[Array], None]) -> Callable[..., Array]:
    def probed(scores: Float[Array, "*shape"], mask: Bool[Array, "*#shape"], *, axis: int = -1) -> Array:
        jax.debug.callback(tell, jnp.max(jax.nn.logsumexp(jnp.where(mask, scores, -jnp.inf), axis=axis)))
        return softmax(scores, mask, axis=axis)

    return probed


def line(row: dict) -> str:
    """One row of the table."""
    start, end = f"{row['model']:<16}", f"residual x {row['residual_scale']:<6.0f}"
    if "policy" not in row:
        overflows = f"overflow in float16: {' and '.join(row['overflows']) or 'none'}"
        sums = f"largest sum of squares {row['sum_of_squares']:.1e}, of exponentials e^{row['log_sum_exp']:.1f}"
        return f"{start}{end}{sums}; {overflows}"
    found = "not finite"
    if row["rms"] is not None:
        found = f"rms {row['rms']:.1e} ({row['relative']:.2%})  largest {row['largest']:.1e}"
    return f"{start}{row['execution']:<16}{row['policy']:<17}{end}{found}"
