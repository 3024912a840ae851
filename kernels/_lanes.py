"""Eight float64 side by side, for kernels that run eight windows abreast.

A recurrence waits for its own last step, so one window at a time leaves the vector unit nearly idle. LLVM does not find
the eight windows by itself (a loop over lanes took four times as long), so kernels name them: ``load`` eight values,
use + - * as on one number, ``store``. Each lane gets exactly the operations of the plain loop, on any machine: LLVM
splits the vector where registers are narrower, and neither contracts nor reorders.
"""

import operator

from llvmlite import ir
from numba.extending import intrinsic, models, overload, register_model, types

LANES = 8
_VECTOR = ir.VectorType(ir.DoubleType(), LANES)


class _LanesType(types.Type):
    def __init__(self):
        super().__init__(name="Lanes")


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VECTOR)


_lanes = _LanesType()


def _place(context, builder, array_type, array, start):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [start]), _VECTOR.as_pointer())


def _is_flat(array):
    return isinstance(array, types.Array) and array.layout == "C" and array.dtype == types.float64


@intrinsic
def load(typing_context, array, start):
    """Return the 8 values from flat position ``start`` of a C-contiguous float64 array; no bounds are checked."""

    def code(context, builder, signature, arguments):
        value = builder.load(_place(context, builder, signature.args[0], *arguments))
        value.align = 8  # of one float64: rows need not start at a vector's boundary
        return value

    return (_lanes(array, types.int64), code) if _is_flat(array) else None


@intrinsic
def store(typing_context, array, start, lanes):
    """Write 8 values at flat position ``start`` of a C-contiguous float64 array; no bounds are checked."""

    def code(context, builder, signature, arguments):
        written = builder.store(arguments[2], _place(context, builder, signature.args[0], *arguments[:2]))
        written.align = 8
        return context.get_dummy_value()

    return (types.void(array, types.int64, _lanes), code) if _is_flat(array) else None


@intrinsic
def splat(typing_context, value):
    """Return one float64 in all 8 lanes."""

    def code(context, builder, signature, arguments):
        none = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(none, arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    return _lanes(types.float64), code


@intrinsic
def total(typing_context, lanes):
    """Return the sum of the 8 lanes, in one fixed order: halves onto each other, thrice."""

    def code(context, builder, signature, arguments):
        value = arguments[0]
        for half in (4, 2, 1):
            none = ir.Constant(value.type, ir.Undefined)
            picks = ir.VectorType(ir.IntType(32), half)
            low = builder.shuffle_vector(value, none, ir.Constant(picks, list(range(half))))
            high = builder.shuffle_vector(value, none, ir.Constant(picks, list(range(half, 2 * half))))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return (types.float64(_lanes), code) if lanes == _lanes else None


def _add_operator(python_operator, instruction):
    @intrinsic
    def lane_by_lane(typing_context, left, right):
        def code(context, builder, signature, arguments):
            return getattr(builder, instruction)(*arguments)

        return _lanes(_lanes, _lanes), code

    @overload(python_operator)
    def choose(left, right):
        if left == _lanes and right == _lanes:
            return lambda left, right: lane_by_lane(left, right)
        return None


_add_operator(operator.add, "fadd")
_add_operator(operator.sub, "fsub")
_add_operator(operator.mul, "fmul")
