"""One function that applies a policy to any Flax NNX model."""

import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core.primitives import exp_p, logistic_p

from conformer.model import ConformerCTC
from conformer.model.attention import Attention
from conformer.model.linear import low_precision_dot
from conformer.model.norm import LayerNorm
from conformer.numerics.device import arithmetic, norm_numerics, softmax_tables
from conformer.numerics.modules import Norm, Softmax, attention, raw_softmax
from conformer.numerics.quantised import QuantisedLinear
from conformer.policy import Policy, get_policy
from kernels.emulator.emulate import emulate
from kernels.lut_softmax import SoftmaxTables, log_softmax
from kernels.typing import Array, Float


def apply_policy[M: nnx.Module](model: M, policy: Policy | str) -> M:
    """A copy of a trained model that computes under a policy; nothing is trained again, and `model` is unchanged.

    It has the same methods, and is split, merged and jitted as any model. What changes:

    - float32: nothing; it is `model` itself.
    - a policy with float32 storage: every nnx.Linear and nnx.LinearGeneral (those of nnx.MultiHeadAttention too) but
      one called `head`, which decides between symbols.
    - an emulated one: parameters are rounded; every call of a method with arrays runs in the device's arithmetic,
      operation by operation (`kernels.emulator.emulate`), exp and sigmoid from tables. Stabilisers replace our
      LayerNorm, nnx.LayerNorm and nnx.RMSNorm, and the softmax of our attention and of nnx.MultiHeadAttention. A model
      that calls `jax.nn.softmax` itself keeps that, which shifts every row by its maximum. For inference: no dropout.

    Raises:
        ValueError: for an unknown policy, parameters beyond the range of its format, or a layer that cannot follow it.
    """
    policy = get_policy(policy) if isinstance(policy, str) else policy
    if policy.parameters == "float32" and not policy.emulated:
        return model
    model = nnx.clone(model)
    if policy.emulated:
        _round_parameters(model, policy)
        _emulate(model, policy)
    else:
        replace_children(model, functools.partial(_narrow, policy=policy))
    return model


# ----------------------------------------------------------- linear maps alone


def _narrow(name: str, child: Any, *, policy: Policy) -> Any:
    if not isinstance(child, nnx.Linear | nnx.LinearGeneral) or name == "head":
        return child
    if policy.parameters not in ("bfloat16", "float16"):
        return QuantisedLinear(child, policy.parameters)
    child.kernel = nnx.Param(child.kernel[...].astype(policy.parameters))
    child.dot_general = functools.partial(low_precision_dot, policy.compute)
    return child


# ---------------------------------------------------------------- every operation


def _round_parameters(model: nnx.Module, policy: Policy) -> None:
    device = arithmetic(policy)

    def rounded(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        if not jnp.issubdtype(variable[...].dtype, jnp.floating):
            return variable
        value = device.round(variable[...])
        if not np.isfinite(value).all():
            raise ValueError(
                f"{'.'.join(map(str, path))} exceeds {device.format.largest}, the largest {policy.storage}: "
                "scale it into the layers around it"
            )
        return variable.replace(value)

    state = nnx.state(model)
    nnx.update(model, nnx.map_state(rounded, state))


def _emulate(model: nnx.Module, policy: Policy) -> None:
    tables = softmax_tables(policy)
    row_softmax = tables if policy.stabilised_softmax else raw_softmax
    if policy.stabilised_norm:
        replace_children(model, functools.partial(_stabilise, policy=policy))
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, Attention):
            module.softmax = row_softmax
            # A kernel adds up in float32: none is taken for its speed, only where the model names it.
            module.implementation = module.implementation or "xla"
        elif isinstance(module, ConformerCTC) and policy.stabilised_softmax:
            module.log_softmax = emulate(functools.partial(log_softmax, tables=tables), arithmetic(policy))
        elif isinstance(module, nnx.MultiHeadAttention):
            module.attention_fn = attention_fn(module.attention_fn, row_softmax)
        object.__setattr__(module, "__class__", _emulated_class(type(module), policy))


def _stabilise(_: str, child: Any, *, policy: Policy) -> Any:
    norm = isinstance(child, LayerNorm | nnx.LayerNorm | nnx.RMSNorm)
    return Norm(child, norm_numerics(policy)) if norm else child


def attention_fn(own: Callable, row_softmax: Softmax) -> Callable:
    if own is nnx.dot_product_attention:
        return functools.partial(attention, softmax=row_softmax)
    if isinstance(own, functools.partial) and own.func is nnx.dot_product_attention_with_rope:
        return functools.partial(attention, softmax=row_softmax, **own.keywords)
    raise ValueError(
        f"attention_fn={own!r} holds a softmax that no policy can reach: use nnx.dot_product_attention or "
        "functools.partial(nnx.dot_product_attention_with_rope, rope=...)"
    )


@functools.cache
def _emulated_class(cls: type, policy: Policy) -> type:
    """A subclass whose methods run emulated where they are called with arrays."""
    methods = {
        name: _emulated_method(method, policy)
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if name == "__call__" or not (name.startswith("_") or hasattr(nnx.Module, name))
    }
    return type(cls)(cls.__name__, (cls,), methods | {"__module__": cls.__module__, "__doc__": cls.__doc__})


def _emulated_method(method: Callable, policy: Policy) -> Callable:
    tables, device = softmax_tables(policy), arithmetic(policy)
    functions = {exp_p: tables.exp, logistic_p: functools.partial(sigmoid, tables)}

    @functools.wraps(method)
    def emulated(self, *args: Any, **kwargs: Any):
        arrays = any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves((args, kwargs)))
        if _inside.get() or not arrays:  # the outermost call emulates all of it
            return method(self, *args, **kwargs)
        token = _inside.set(True)
        try:
            return emulate(functools.partial(method, self), device, functions)(*args, **kwargs)
        finally:
            _inside.reset(token)

    return emulated


_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("inside", default=False)


def sigmoid(tables: SoftmaxTables, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / (1 + exp(-x)) from the tables of the softmax; with t = exp(-|x|), 1 / (1 + t) or t / (1 + t): no overflow."""
    t = tables.exp(-jnp.abs(x))
    return tables.reciprocal.times(jnp.where(x >= 0, 1.0, t), 1.0 + t)


def replace_children(model: nnx.Module, replacement: Callable[[str, Any], Any]) -> None:
    """Puts `replacement(name, child)` in the place of each child module."""
    for _, module in list(nnx.iter_modules(model)):
        for name, child in list(vars(module).items()):
            if isinstance(child, nnx.Module) and (new := replacement(name, child)) is not child:
                setattr(module, name, new)
