"""What is measured: operations at named shapes, with the bytes and the operations that they cannot do without."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.chunked_attention import chunked_attention
from kernels.chunked_attention.shapes import SHAPES as ATTENTION_SHAPES
from kernels.layer_norm import GEOMETRIC, NONE, layer_norm
from kernels.layer_norm.shapes import SHAPES as NORM_SHAPES
from kernels.lut_softmax import SoftmaxTables, softmax
from kernels.lut_softmax.shapes import SHAPES as SOFTMAX_SHAPES

SHAPES = {"layer_norm": NORM_SHAPES, "chunked_attention": ATTENTION_SHAPES, "lut_softmax": SOFTMAX_SHAPES}
MEASURED_FORMATS = {
    "layer_norm": ("bfloat16", "float16"),
    "chunked_attention": ("bfloat16",),
    "lut_softmax": ("bfloat16", "float16"),
}
# What most peers do not have: a pre-normaliser, the term of positions in Transformer-XL, and the softmax from tables,
# which simulates a device.
VARIANTS = {
    "layer_norm": ("", "geometric"),
    "chunked_attention": ("", "relative", "tables"),
    "lut_softmax": ("", "tables"),
}
DIRECTIONS = ("forward", "both")  # both: forward and backward


class Case(NamedTuple):
    """One line of the table, measured with every contestant."""

    operation: str
    variant: str
    shape: str
    format: str
    direction: str

    @property
    def sizes(self) -> Any:
        return SHAPES[self.operation][self.shape]

    @property
    def width(self) -> int:
        """Of a row or a head: what an implementation's choice depends on, beside the format."""
        return self.sizes.head_dim if self.operation == "chunked_attention" else self.sizes[1]

    def draw(self, seed: int) -> tuple[jax.Array, ...]:
        """Random arguments, and the cotangent of the result where there is a backward pass."""
        key, cotangent_key = jax.random.split(jax.random.key(seed))
        arguments = self.sizes.arguments(key, self.format)
        if self.variant == "relative":  # in the place of the bias
            positions = self.sizes.position_arguments(key, self.format)
            arguments = (*arguments[:3], *positions.values(), *arguments[4:])
        if self.direction == "forward":
            return arguments
        return *arguments, jax.random.normal(cotangent_key, arguments[0].shape).astype(self.format)

    def function(self, implementation: str) -> Callable[..., Any]:
        """Of what `draw` gives, with one of our implementations."""
        match self.operation, self.variant:
            case "layer_norm", variant:
                norm = GEOMETRIC if variant else NONE
                function = functools.partial(layer_norm, pre_normaliser=norm, implementation=implementation)
            case "lut_softmax", variant:
                tables = SoftmaxTables() if variant else None
                function = functools.partial(softmax, tables=tables, implementation=implementation)
            case _, variant:
                row_softmax = SoftmaxTables() if variant == "tables" else softmax
                function = functools.partial(
                    relative_attention if variant == "relative" else chunked_attention,
                    softmax=row_softmax,
                    chunks=self.sizes.chunks,
                    implementation=implementation,
                )
        return self.completed(function)

    def completed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """With its backward pass, where the case has one."""
        return function if self.direction == "forward" else functools.partial(_both, function)

    @property
    def bytes(self) -> int:
        """Read and written when everything that goes in is read once, and everything that comes out written once."""
        shapes = jax.eval_shape(self.draw, 0)
        item, tensor = jnp.dtype(self.format).itemsize, shapes[0].size
        if self.operation == "chunked_attention":  # query, key, value, output; their gradients, and the four again
            tensors = 2 * tensor + 2 * shapes[1].size + (tensor if self.variant == "relative" else 0)
            return item * tensors * (1 if self.direction == "forward" else 3)
        mask = shapes[1].size if self.operation == "lut_softmax" else 0
        return item * tensor * (2 if self.direction == "forward" else 5) + mask

    @property
    def operations(self) -> int:
        """Multiplications and additions in products of matrices, of the pairs that are attended alone."""
        if self.operation != "chunked_attention":
            return 0
        products = 2 if self.direction == "forward" else 7  # forward 2; backward the scores again and four more
        if self.variant == "relative":
            products += 1 if self.direction == "forward" else 3
        return 2 * products * _pairs(self.sizes) * self.sizes.heads * self.sizes.head_dim


def relative_attention(query, key, value, position_query, position_key, start, end, **options) -> jax.Array:
    """Attention with positions as Transformer-XL has them."""
    options |= {"position_query": position_query, "position_key": position_key}
    return chunked_attention(query, key, value, None, start, end, **options)


@functools.cache
def _pairs(sizes: Any) -> int:
    """Of a query and a key that it attends to."""
    rows = jax.jit(lambda: sizes.arguments(jax.random.key(0))[-2:])()  # jit: nothing else is drawn
    start, end = map(np.asarray, rows)
    return int(np.sum(end - start))


def _both(function: Callable[..., Any], *arguments: jax.Array) -> Any:
    *inputs, cotangent = arguments
    floats = [i for i, a in enumerate(inputs) if jnp.issubdtype(a.dtype, jnp.floating)]

    def of_floats(*values: jax.Array) -> Any:
        merged = dict(zip(floats, values, strict=True))
        return function(*(merged.get(i, a) for i, a in enumerate(inputs)))

    result, transpose = jax.vjp(of_floats, *(inputs[i] for i in floats))
    return result, transpose(cotangent)


class SelectionError(ValueError):
    """The flags leave nothing to measure."""


def select(operation: str | None, shape: str | None, format: str | None) -> list[Case]:
    """The cases that the flags leave. Raises SelectionError where there are none."""
    cases = [
        Case(name, variant, shape_name, format_name, direction)
        for name, shapes in SHAPES.items()
        if operation in (None, name)
        for variant in VARIANTS[name]
        for shape_name in shapes
        if shape in (None, shape_name)
        for format_name in ([format] if format else MEASURED_FORMATS[name])
        for direction in DIRECTIONS
        if direction == "forward" or variant != "tables"  # which are for inference alone
    ]
    if not cases:
        if operation not in (None, *SHAPES):
            raise SelectionError(f"--op={operation} is not one of {', '.join(SHAPES)}, training_step")
        names = {name for op, shapes in SHAPES.items() if operation in (None, op) for name in shapes}
        raise SelectionError(f"--shape={shape} is not one of {', '.join(sorted(names))}")
    return cases
