"""Loads and stores of a GPU's global memory at any places, which Pallas has no words for (Mosaic GPU).

Threads name the place of each element. What lies outside is zero when it is loaded, and is not stored.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]
from jax._src.lib.mlir.dialects import arith, llvm, vector
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.device import is_interpreted
from kernels.typing import Array


def at(ref: Any, layout: Any, *places: Array, step: int = 0, checked: bool = False) -> Array:
    """The elements of a reference to global memory at these places, zero outside.

    Args:
        places: an index for each axis of the reference, in the layout.
        step: columns that the threads hold side by side, as vectors that are neighbours in memory; the next vector of
            a thread lies a step further. 0: places are any, and each element is loaded by itself.
        checked: some vectors may lie outside, each as a whole.
    """
    if is_interpreted():  # where the instructions of a device are unknown
        return ref[...].at[places].get(mode="fill", fill_value=0)
    truth = ref.dtype == jnp.bool_  # a byte each, as XLA stores it; Mosaic would read bits

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), *[layout] * len(places)),
        return_type=plgpu.ShapeDtypeStruct(places[0].shape, jnp.uint8 if truth else ref.dtype, layout=layout),
    )
    def load(_, ref, *places):
        kind, memory, registers = *_kinds(ref), np.empty_like(places[0].registers)
        address = _Addresses(ref, places, step, checked)
        for register, indices in np.ndenumerate(places[0].registers):
            length = ir.VectorType(indices.type).shape[0]
            at_once = _vector(length if step else 1, memory)
            found = []
            for position in range(1 if step else length):
                pointer, inside = address(register, position)
                value = llvm.load(at_once, pointer)
                if inside is not None:
                    value = arith.select(inside, value, vector.broadcast(at_once, mgpu.c(0, memory)))
                found.append(value)
            if not step:
                numbers = [vector.extract(value, [], [0]) for value in found]
                found = [vector.from_elements(_vector(length, memory), numbers)]
            registers[register] = found[0] if kind == memory else vector.bitcast(_vector(length, kind), found[0])
        return mgpu.FragmentedArray(_registers=registers, _layout=places[0].layout, _is_signed=False if truth else None)

    loaded = load(ref, *places)  # pyright: ignore[reportCallIssue]
    return loaded != 0 if truth else loaded


def put(ref: Any, value: Array, layout: Any, *places: Array, step: int, checked: bool = False) -> None:
    """Stores an array at these places of a reference to global memory, except outside. See `at`."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *[layout] * (1 + len(places))))
    def store(_, ref, value, *places):
        kind, memory = _kinds(ref)
        address = _Addresses(ref, places, step, checked)
        for register, vectors in np.ndenumerate(value.registers):
            pointer, inside = address(register, 0)
            if kind != memory:
                vectors = vector.bitcast(_vector(ir.VectorType(vectors.type).shape[0], memory), vectors)
            with contextlib.nullcontext() if inside is None else utils.when(inside):
                llvm.store(vectors, pointer)

    store(ref, value, *places)  # pyright: ignore[reportCallIssue]


def gather(ref: Any, layout: Any) -> Callable[[Any, Array], Array]:
    """A look-up in a table for each element of an array in a layout: each thread loads its own entries."""
    return lambda table, index: at(ref, layout, index)


class _Addresses:
    """Pointers to the places of registers. See `at` for the arguments."""

    def __init__(self, ref: Any, places: Sequence[Any], step: int, checked: bool):
        self._places, self._step, self._checked = places, step, checked
        self._sizes, self._memory = ir.MemRefType(ref.type).shape, _kinds(ref)[1]
        self._base = llvm.addrspacecast(llvm.PointerType.get(address_space=1), utils.memref_ptr(ref))

    def __call__(self, register: tuple[int, ...], position: int) -> tuple[Any, Any]:
        """A pointer, and whether it lies inside (None where it does). Outside it is that of the first element of all.

        Registers of a row share the address of the first one: what is left is a constant of the instruction.
        """
        axis = len(self._places) - 1  # of registers side by side, in an array of rows and columns or of columns
        ahead = register[axis] * self._step
        first = (*register[:axis], 0, *register[axis + 1 :]) if self._step else register
        word, inside = ir.IntegerType.get_signless(64), None
        offset: Any = None
        for place, size in zip(self._places, self._sizes, strict=True):
            number = arith.extui(word, vector.extract(place.registers[first], [], [position]))
            offset = number if offset is None else arith.addi(arith.muli(offset, mgpu.c(size, word)), number)
            if self._checked:
                size = size - ahead if place is self._places[-1] else size
                below = arith.cmpi(arith.CmpIPredicate.slt, number, mgpu.c(size, word))
                inside = below if inside is None else arith.andi(inside, below)
        pointer = utils.getelementptr(utils.getelementptr(self._base, [offset], self._memory), [ahead], self._memory)
        return (pointer if inside is None else arith.select(inside, pointer, self._base)), inside


def _kinds(ref: Any) -> tuple[Any, Any]:
    """The type of the elements in registers and in memory; LLVM loads no float8, and truth values are bytes."""
    element, byte = ir.MemRefType(ref.type).element_type, ir.IntegerType.get_signless(8)
    if mgpu.bitwidth(element) > 8:
        return element, element
    return (byte if mgpu.bitwidth(element) == 1 else element), byte


def _vector(length: int, kind: Any) -> Any:
    return ir.VectorType.get((length,), kind)
