"""Low-rank adapters (LoRA; Hu et al., 2021): a linear map learns as W + (alpha / rank) A B, and W stays as it was.

They are a part of the training state alone. The network is given W with the product added, and so is the average, so
that evaluation, weights.npz, exports and policies meet an ordinary model.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import Config, ConfigError, TrainConfig
from conformer.training.names import HEAD, matching

A, B = "lora_a", "lora_b"  # [inputs, rank] and [rank, outputs], beside the kernel [inputs, outputs]


def make_adapters(config: Config, model: nnx.Module) -> nnx.State:
    """A and B of each linear map that `train.lora_maps` names; B is zero, so that nothing changes at first.

    Raises ConfigError for a pattern that names no linear map before the head, and for a rank that one cannot have.
    """
    rank = config.train.lora_rank
    maps = {
        ".".join(map(str, path)): (path, module.kernel.shape)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear) and f"{path[0]}." != HEAD
    }
    chosen = sorted(matching(config.train.lora_maps, sorted(maps), "train.lora_maps", "linear map of the encoder"))
    keys = jax.random.split(jax.random.key(config.seed), len(chosen))
    # As nn.Linear of PyTorch begins, and so A of peft: uniform up to inputs^-1/2.
    uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    adapters = {}
    for name, key in zip(chosen, keys, strict=True):
        path, (inputs, outputs) = maps[name]
        if rank > min(inputs, outputs):
            raise ConfigError(f"train.lora_rank={rank} is larger than {name}, {inputs} to {outputs}: lower it")
        adapters[*path, A] = nnx.Param(uniform(key, (inputs, rank)))
        adapters[*path, B] = nnx.Param(jnp.zeros((rank, outputs)))
    return nnx.from_flat_state(adapters)


def merged(config: TrainConfig, params: nnx.State, frozen: nnx.State) -> nnx.State:
    """The parameters of the network itself, with the adapters in their maps."""
    flat = dict(nnx.to_flat_state(nnx.merge_state(params, frozen)))
    for *path, last in list(flat):
        if last == A:
            kernel, a, b = flat[*path, "kernel"], flat.pop((*path, A)), flat.pop((*path, B))
            product = config.lora_alpha / config.lora_rank * (a[...] @ b[...])
            flat[*path, "kernel"] = kernel.replace(kernel[...] + product)
    return nnx.from_flat_state(flat)
