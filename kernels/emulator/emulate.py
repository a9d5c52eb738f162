"""Runs any JAX function in the arithmetic of a device: the result of every operation in its trace is rounded."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, Literal, Primitive
from jax.extend.core import primitives as p

from kernels.emulator.arithmetic import Arithmetic
from kernels.typing import Array

Rules = Mapping[Primitive, Callable]
_EXACTLY = "exactly"  # the name of traced functions that `exactly` made


def emulate(function: Callable, arithmetic: Arithmetic, functions: Rules | None = None) -> Callable:
    """Returns the same function in another arithmetic. It takes any pytrees, and may be jitted.

        half = emulate(jax.nn.softmax, Arithmetic(FLOAT16))

    The function is traced. Each operation of the trace is computed in float32 and rounded to the format; sums, matrix
    products and convolutions are computed by `arithmetic`, in its order. Inputs and constants are rounded too. Formats
    that the function names (`x.astype(jnp.float32)`) change no value: the device has one format. What `exactly` wraps
    is left as it is, and attention in a Pallas kernel is one operation.

    Args:
        arithmetic: formats and order of summation.
        functions: replacements of elementwise operations, such as {exp_p: table}. They are emulated too.

    Raises:
        NotImplementedError: when called, if an operation sums and no rule emulates it.
    """
    interpreter = _Interpreter(arithmetic, functions or {})

    @functools.wraps(function)
    def emulated(*args: Any, **kwargs: Any):
        leaves, tree = jax.tree.flatten((args, kwargs))
        traced = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
        arrays = list(itertools.compress(leaves, traced))

        def flat(*arrays: Array):
            remaining = iter(arrays)
            args, kwargs = jax.tree.unflatten(
                tree, [next(remaining) if array else leaf for leaf, array in zip(leaves, traced, strict=True)]
            )
            return function(*args, **kwargs)

        jaxpr, shapes = jax.make_jaxpr(flat, return_shape=True)(*arrays)
        return jax.tree.unflatten(jax.tree.structure(shapes), interpreter.run(jaxpr, arrays))

    return emulated


def exactly(function: Callable) -> Callable:
    """Marks a function of arrays that rounds by itself: `emulate` leaves its operations as they are."""

    def marked(*args: Array):
        return function(*args)

    marked.__name__ = _EXACTLY
    return jax.jit(marked)


class _Interpreter:
    """Evaluates a trace, one equation after another. `rules` emulate what rounding alone does not."""

    def __init__(self, arithmetic: Arithmetic, functions: Rules):
        self.arithmetic = arithmetic
        self.rules: Rules = {
            p.dot_general_p: self._dot_general,
            p.conv_general_dilated_p: self._convolution,
            p.reduce_sum_p: self._reduce_sum,
            p.integer_pow_p: self._integer_pow,
            p.scan_p: self._scan,
            p.while_p: self._while,
            p.cond_p: self._cond,
            **{primitive: self._replacement(function) for primitive, function in functions.items()},
        }

    def _replacement(self, function: Callable) -> Callable:
        emulated = emulate(function, self.arithmetic)
        return lambda x, **_: emulated(x)

    def run(self, jaxpr: Jaxpr, inputs) -> list:
        """Returns the results of a trace. Rounds its inputs first."""
        return self._evaluate(jaxpr, [self._round(x) for x in inputs])

    def _evaluate(self, jaxpr: Jaxpr, inputs) -> list:
        values: dict = dict(zip(jaxpr.invars, inputs, strict=True))
        values.update(zip(jaxpr.constvars, map(self._round, jaxpr.consts), strict=True))

        def read(variable):
            return self._round(variable.val) if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            results = self._apply(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _apply(self, equation, inputs: list) -> list:
        primitive, params = equation.primitive, equation.params
        if not any(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in (*equation.invars, *equation.outvars)):
            return _bind(primitive, inputs, params)
        if primitive in self.rules:
            results = self.rules[primitive](*inputs, **params)
            return list(results) if isinstance(results, (list, tuple)) else [results]
        if (inner := _inner(params)) is not None:
            if params.get("name") == _EXACTLY:
                return _bind(primitive, inputs, params)
            return self._evaluate(inner, inputs)
        if primitive in _SUMS:
            raise NotImplementedError(f"no rule to emulate {primitive}, which sums: write it with sums and products")
        results = _bind(primitive, inputs, params)
        # The barriers keep XLA from fusing long chains of rounded operations, which LLVM would compile for minutes.
        return results if primitive in _EXACT else [lax.optimization_barrier(self._round(x)) for x in results]

    def _round(self, x):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            return x
        return self.arithmetic.round(jnp.asarray(x, jnp.float32)).astype(jnp.result_type(x))

    # ------------------------------------------------------------------ sums

    def _reduce_sum(self, x: Array, *, axes, **_) -> Array:
        rest = [axis for axis in range(x.ndim) if axis not in axes]
        flat = jnp.transpose(x, (*rest, *axes)).reshape(*(x.shape[axis] for axis in rest), -1)
        return self.arithmetic.sum(flat.astype(jnp.float32)).astype(x.dtype)

    def _dot_general(self, a: Array, b: Array, *, dimension_numbers, preferred_element_type, **_) -> Array:
        (a_inner, b_inner), (a_batch, b_batch) = dimension_numbers
        a_rows = [axis for axis in range(a.ndim) if axis not in (*a_inner, *a_batch)]
        b_columns = [axis for axis in range(b.ndim) if axis not in (*b_inner, *b_batch)]
        batch, rows = ([a.shape[axis] for axis in axes] for axes in (a_batch, a_rows))
        columns, inner = [b.shape[axis] for axis in b_columns], math.prod(a.shape[axis] for axis in a_inner)
        left = jnp.transpose(a, (*a_batch, *a_rows, *a_inner)).reshape(*batch, math.prod(rows), inner)
        right = jnp.transpose(b, (*b_batch, *b_inner, *b_columns)).reshape(*batch, inner, math.prod(columns))
        product = self.arithmetic.matmul(left.astype(jnp.float32), right.astype(jnp.float32))
        dtype = preferred_element_type or jnp.result_type(a, b)
        return product.astype(dtype).reshape(*batch, *rows, *columns)

    def _convolution(
        self, x: Array, kernel: Array, *, dimension_numbers, feature_group_count, preferred_element_type, **params
    ) -> Array:
        """Computes a matrix product of patches: a row for each place, with the taps of a channel side by side."""
        if params["batch_group_count"] != 1:
            raise NotImplementedError("no rule to emulate a convolution with batch_group_count > 1")
        x, kernel = jnp.transpose(x, dimension_numbers.lhs_spec), jnp.transpose(kernel, dimension_numbers.rhs_spec)
        padding = zip(params["padding"], params["lhs_dilation"], strict=True)
        interior = [(low, high, dilation - 1) for (low, high), dilation in padding]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *interior])
        strides, dilations = params["window_strides"], params["rhs_dilation"]
        space = [
            (size - (width - 1) * dilation - 1) // stride + 1
            for size, width, dilation, stride in zip(x.shape[2:], kernel.shape[2:], dilations, strides, strict=True)
        ]
        patches = []
        for tap in itertools.product(*map(range, kernel.shape[2:])):
            windows = [
                slice(i * dilation, i * dilation + (n - 1) * stride + 1, stride)
                for i, n, dilation, stride in zip(tap, space, dilations, strides, strict=True)
            ]
            patches.append(x[(slice(None), slice(None), *windows)])
        groups, batch = feature_group_count, x.shape[0]
        left = jnp.stack(patches, axis=2).reshape(batch, groups, -1, math.prod(space))
        left = jnp.transpose(left, (1, 0, 3, 2)).reshape(groups, batch * math.prod(space), -1)
        right = jnp.swapaxes(kernel.reshape(groups, kernel.shape[0] // groups, -1), 1, 2)
        y = self.arithmetic.matmul(left.astype(jnp.float32), right.astype(jnp.float32))
        y = y.astype(preferred_element_type or x.dtype)
        y = jnp.moveaxis(y, 0, 1).reshape(batch, *space, kernel.shape[0])
        return jnp.transpose(jnp.moveaxis(y, -1, 1), np.argsort(dimension_numbers.out_spec).tolist())

    def _integer_pow(self, x: Array, *, y: int) -> Array:
        power = x
        for _ in range(abs(y) - 1):
            power = self._round(power * x)
        return power if y > 0 else self._round(1.0 / power) if y else jnp.ones_like(x)

    # --------------------------------------------------------------- control flow

    def _scan(self, *inputs, jaxpr, ft_in, length, reverse, **_):
        consts, carry, xs = map(list, ft_in.update(inputs).unpack())

        def body(carry, x):
            results = self._evaluate(jaxpr, [*consts, *carry, *x])
            return results[: len(carry)], results[len(carry) :]

        carry, ys = lax.scan(body, carry, xs, length=length, reverse=reverse)
        return [*carry, *ys]

    def _while(self, *inputs, cond_jaxpr, cond_nconsts, body_jaxpr, body_nconsts):
        cond_consts, inputs = inputs[:cond_nconsts], inputs[cond_nconsts:]
        body_consts, carry = inputs[:body_nconsts], inputs[body_nconsts:]
        return lax.while_loop(
            lambda carry: self._evaluate(cond_jaxpr, [*cond_consts, *carry])[0],
            lambda carry: self._evaluate(body_jaxpr, [*body_consts, *carry]),
            list(carry),
        )

    def _cond(self, index, *inputs, branches, **_):
        def branch(jaxpr):
            return lambda *inputs: self._evaluate(jaxpr, inputs)

        return lax.switch(index, [branch(jaxpr) for jaxpr in branches], *inputs)


def _inner(params: dict) -> Jaxpr | None:
    """Returns the trace that an operation such as `jit` or `custom_jvp_call` calls; None for other operations."""
    return next((params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params), None)


def _bind(primitive: Primitive, inputs, params: dict) -> list:
    results = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return list(results) if primitive.multiple_results else [results]


# Operations that add up or multiply many values, in an order that XLA chooses.
_SUMS = frozenset(
    {
        p.cumsum_p,
        p.cumprod_p,
        p.cumlogsumexp_p,
        p.reduce_prod_p,
        p.reduce_window_sum_p,
        p.scatter_add_p,
        p.scatter_mul_p,
        p.fft_p,
    }
)
# Operations whose results the format holds already: inputs, their negatives, or inputs made whole.
_EXACT = frozenset(
    {
        p.abs_p,
        p.argmax_p,
        p.argmin_p,
        p.broadcast_in_dim_p,
        p.ceil_p,
        p.clamp_p,
        p.concatenate_p,
        p.copy_p,
        p.dynamic_slice_p,
        p.dynamic_update_slice_p,
        p.floor_p,
        p.gather_p,
        p.max_p,
        p.min_p,
        p.neg_p,
        p.pad_p,
        p.reduce_max_p,
        p.reduce_min_p,
        p.reshape_p,
        p.rev_p,
        p.round_p,
        p.select_n_p,
        p.sign_p,
        p.slice_p,
        p.sort_p,
        p.squeeze_p,
        p.stop_gradient_p,
        p.transpose_p,
    }
)
