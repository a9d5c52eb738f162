"""What stands between XLA and a kernel: errors where XLA would have to look inside, and the axes of `jax.shard_map`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kernels.implementation import Unsupported
from kernels.typing import Array

_guarded = Primitive("guarded")
_guarded.multiple_results = True


def called(operation: str, kernel: Callable[..., Any], *arrays: Array | None) -> Any:
    """`kernel(*arrays)`, whose results vary over the axes of `jax.shard_map` that the arrays vary over.

    Raises:
        Unsupported: when a gradient that the kernel computes is differentiated; and when the program is compiled,
            where it is for several devices and no `jax.shard_map` says what each has of the arrays.
    """
    present = iter(_guarded.bind(*(a for a in arrays if a is not None), operation=operation))
    arrays = tuple(None if a is None else next(present) for a in arrays)
    results, tree = jax.tree.flatten(kernel(*arrays))
    return tree.unflatten(varying(*results, *arrays)[: len(results)])


def differentiable(
    operation: str, forward: Callable[..., Any], kept: Callable[..., tuple], backward: Callable[..., tuple]
) -> Callable[..., Any]:
    """A function of arrays, of which any may be None, that a kernel computes, and another one its gradient.

    Args:
        forward: (*arrays) -> a tuple of results.
        kept: (arrays, results) -> what the backward pass needs.
        backward: (*kept, *cotangents of the results) -> gradients of the arrays, None where there is none.
    """
    function = jax.custom_vjp(lambda *arrays: called(operation, forward, *arrays))

    def forward_rule(*arrays):
        results = called(operation, forward, *arrays)
        return results, kept(arrays, results)

    function.defvjp(forward_rule, lambda saved, cotangents: called(operation, backward, *saved, *cotangents))
    return lambda *arrays: function(*varying(*arrays))


def varying(*arrays: Array | None) -> tuple[Any, ...]:
    """The same arrays, which all vary over the axes of `jax.shard_map` that any of them varies over.

    What a kernel makes of them then does too, and the gradient of one that did not vary is summed over the axes.
    """
    axes = functools.reduce(frozenset.union, (_axes(a) for a in arrays if a is not None), frozenset())
    return tuple(a if a is None else jax.lax.pcast(a, tuple(axes - _axes(a)), to="varying") for a in arrays)


def shaped(shape: tuple[int, ...], format: Any, like: Array) -> jax.ShapeDtypeStruct:
    """Of a kernel's result that varies as one of its arrays does."""
    return jax.ShapeDtypeStruct(shape, format, manual_axis_type=jax.typeof(like).manual_axis_type)


def _axes(array: Array) -> frozenset:
    return frozenset(jax.typeof(array).manual_axis_type.varying)


@_guarded.def_impl
def _(*arrays, operation):
    return arrays


@_guarded.def_abstract_eval
def _(*avals, operation):
    return avals


def _differentiated(primals, tangents, *, operation):
    raise Unsupported(
        f"{operation}: kernels have a first derivative and no second: use implementation='xla' where a gradient is "
        "differentiated"
    )


def _lowered(context, *arrays, operation):
    axes = context.module_context.axis_context
    mesh = getattr(axes, "mesh", None)
    manual = mesh is not None and frozenset(mesh.axis_names) == axes.manual_axes | set(mesh.manual_axes)
    if not manual and getattr(axes, "num_devices", mesh and mesh.size) not in (None, 1):
        raise Unsupported(
            f"{operation}: XLA cannot divide a kernel among devices: call it inside jax.shard_map over all axes of the "
            "mesh, or use implementation='xla'"
        )
    return arrays


ad.primitive_jvps[_guarded] = _differentiated
batching.primitive_batchers[_guarded] = lambda arrays, axes, **options: (_guarded.bind(*arrays, **options), axes)
mlir.register_lowering(_guarded, _lowered)
