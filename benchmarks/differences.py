"""What numerics policies change in the log-probabilities of models, imported ones beside our own.

An imported checkpoint may have random weights: then log-probabilities alone can be compared, and no error rate. Each
policy runs in both layouts, with the residual stream as it is, and on the device of float16 also 1024 times as large.
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.config import Config
from conformer.model import ConformerCTC
from conformer.model.layouts import EXECUTIONS
from conformer.numerics import apply_policy, scale_residual
from conformer.policy import get_policy
from conformer.training.checkpoint import load_model

CASES = [(name, 1.0) for name in ("float32", "bfloat16", "float16", "int8", "edge_fp16", "edge_fp16_naive")]
CASES += [(name, 1024.0) for name in ("float32", "edge_fp16", "edge_fp16_naive")]
FRAMES = 64  # of features


def run(workdirs: list[str], names: Sequence[str] = ()) -> dict:
    """Root mean square and largest difference from float32 of the models in some work directories.

    Args:
        names: of policies; none = every one of CASES.
    """
    cases = [(get_policy(name).name, scale) for name, scale in CASES if not names or name in names]
    rows = []
    for workdir in workdirs:
        config, model, _, _ = load_model(pathlib.Path(workdir))
        features = inputs(config, model)
        exact = log_probs(config, model, features)
        for execution in EXECUTIONS:
            for policy, scale in cases:
                changed = nnx.clone(apply_policy(scale_residual(model, scale), policy))
                changed.encoder.layout = EXECUTIONS[execution]
                difference = np.abs(log_probs(config, changed, features) - exact)
                finite = bool(np.isfinite(difference).all())
                row = {"model": pathlib.Path(workdir).name, "execution": execution, "policy": policy}
                row |= {"residual_scale": scale, "finite": finite}
                row |= {"rms": float(np.sqrt(np.mean(difference**2))) if finite else None}
                row |= {"largest": float(difference.max()) if finite else None}
                rows.append(row)
                print(line(row), flush=True)
    return {"frames": FRAMES, "rows": rows}


def inputs(config: Config, model: ConformerCTC) -> np.ndarray:
    """Features (1, FRAMES, mel) that the model standardises to a normal distribution."""
    noise = np.random.default_rng(0).standard_normal((1, FRAMES, config.features.num_mel_bins), np.float32)
    return np.asarray(noise / model.feature_scale[...] + model.feature_mean[...])


def log_probs(config: Config, model: ConformerCTC, features: np.ndarray) -> np.ndarray:
    """Of one whole utterance, under the first mask of chunks that the model knows."""
    chunk_size, left = config.train.chunk_sizes[0], config.train.num_left_chunks[0]
    graphdef, state = nnx.split(model)

    def forward(state: nnx.State, features: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        lengths = jnp.array([features.shape[1]], jnp.int32)
        logits, _ = model(features, lengths, chunk_size=chunk_size, num_left_chunks=left)
        return model.log_softmax(logits)

    return np.asarray(jax.jit(forward)(state, features))


def line(row: dict) -> str:
    """One row of the table."""
    found = f"rms {row['rms']:.1e}  largest {row['largest']:.1e}" if row["finite"] else "not finite"
    return f"{row['model']:<30}{row['execution']:<16}{row['policy']:<17}residual x {row['residual_scale']:<6.0f}{found}"
