"""Eight float64 side by side, for kernels that run eight windows abreast, and rows of 64 bytes of other numbers.

A recurrence waits for its own last step, so one window at a time leaves the vector unit nearly idle. LLVM does not find
the eight windows by itself (a loop over lanes took four times as long), so kernels name them: ``load`` eight values,
use + - * as on one number, ``store``. Each lane gets exactly the operations of the plain loop, on any machine: LLVM
splits the vector where registers are narrower, and neither contracts nor reorders.
"""

import operator

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model, types

from anyecg.kernels._jit import kernel

LANES = 8
_ROW_BITS = 512
_ELEMENTS = {types.float64: ir.DoubleType(), types.float32: ir.FloatType(), types.int16: ir.IntType(16)}


class _LanesType(types.Type):
    def __init__(self, dtype):
        self.vector = ir.VectorType(_ELEMENTS[dtype], _ROW_BITS // dtype.bitwidth)
        super().__init__(name=f"Lanes({dtype})")


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.vector)


_lanes = _LanesType(types.float64)
_VECTOR = _lanes.vector


def _is_flat(array):
    return isinstance(array, types.Array) and array.layout == "C" and array.dtype in _ELEMENTS


def _place(context, builder, array_type, array, start, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())


def _load(builder, address):
    value = builder.load(address)
    value.align = 2  # rows need not start at a vector's boundary
    return value


def _store(builder, value, address):
    builder.store(value, address).align = 2


def _load_eight(context, builder, array_type, array, start):
    element = _ELEMENTS[array_type.dtype]
    value = _load(builder, _place(context, builder, array_type, array, start, ir.VectorType(element, LANES)))
    if element == _VECTOR.element:
        return value
    return (builder.sitofp if isinstance(element, ir.IntType) else builder.fpext)(value, _VECTOR)


def _store_eight(context, builder, array_type, array, start, value):
    element = _ELEMENTS[array_type.dtype]
    vector = ir.VectorType(element, LANES)
    if element != _VECTOR.element:
        value = (builder.fptosi if isinstance(element, ir.IntType) else builder.fptrunc)(value, vector)
    _store(builder, value, _place(context, builder, array_type, array, start, vector))


@intrinsic
def load(typing_context, array, start):
    """Return the 8 numbers from flat position ``start`` of a C-contiguous array as float64; no bounds are checked."""

    def code(context, builder, signature, arguments):
        return _load_eight(context, builder, signature.args[0], *arguments)

    return (_lanes(array, types.int64), code) if _is_flat(array) else None


@intrinsic
def store(typing_context, array, start, lanes):
    """Write 8 float64 at flat position ``start`` of a C-contiguous array of any numbers; no bounds are checked."""

    def code(context, builder, signature, arguments):
        _store_eight(context, builder, signature.args[0], *arguments)
        return context.get_dummy_value()

    return (types.void(array, types.int64, _lanes), code) if _is_flat(array) and lanes == _lanes else None


@intrinsic
def load_each(typing_context, array, starts, t):
    """Return ``load(array, start + t)`` of each start as a tuple."""

    def code(context, builder, signature, arguments):
        array, starts, t = arguments
        places = [builder.add(start, t) for start in cgutils.unpack_tuple(builder, starts)]
        values = [_load_eight(context, builder, signature.args[0], array, place) for place in places]
        return context.make_tuple(builder, signature.return_type, values)

    vectors = types.UniTuple(_lanes, starts.count)
    return (vectors(array, starts, types.int64), code) if _is_flat(array) else None


@intrinsic
def store_each(typing_context, array, starts, t, vectors):
    """Do ``store(array, start + t, vector)`` for each start and vector."""

    def code(context, builder, signature, arguments):
        array, starts, t, vectors = arguments
        places = [builder.add(start, t) for start in cgutils.unpack_tuple(builder, starts)]
        for place, value in zip(places, cgutils.unpack_tuple(builder, vectors), strict=True):
            _store_eight(context, builder, signature.args[0], array, place, value)
        return context.get_dummy_value()

    return (types.void(array, starts, types.int64, vectors), code) if _is_flat(array) else None


def _row_place(context, builder, array_type, array, first, step, i):
    vector = _LanesType(array_type.dtype).vector
    row = builder.add(first, builder.mul(step, ir.Constant(step.type, i)))
    start = builder.mul(row, ir.Constant(row.type, vector.count))
    return _place(context, builder, array_type, array, start, vector)


@intrinsic(prefer_literal=True)
def rows(typing_context, array, first, step, n):
    """Return ``n`` rows of 64 bytes of a C-contiguous array as a tuple of vectors; ``n`` is a literal number."""

    def code(context, builder, signature, arguments):
        array, first, step, _ = arguments
        values = []
        for i in range(signature.return_type.count):
            values.append(_load(builder, _row_place(context, builder, signature.args[0], array, first, step, i)))
        return context.make_tuple(builder, signature.return_type, values)

    vectors = types.UniTuple(_LanesType(array.dtype), n.literal_value)
    return (vectors(array, types.int64, types.int64, n), code) if _is_flat(array) else None


@intrinsic
def put(typing_context, array, first, step, vectors):
    """Write a tuple of vectors into rows of 64 bytes of a C-contiguous array."""

    def code(context, builder, signature, arguments):
        array, first, step, vectors = arguments
        for i, value in enumerate(cgutils.unpack_tuple(builder, vectors)):
            _store(builder, value, _row_place(context, builder, signature.args[0], array, first, step, i))
        return context.get_dummy_value()

    return (types.void(array, types.int64, types.int64, vectors), code) if _is_flat(array) else None


def tuple_intrinsic(n_arguments, compute):
    """Make an intrinsic that gives a tuple like its arguments: ``compute`` takes a builder and lists of vectors."""

    def code(context, builder, signature, arguments):
        lists = [cgutils.unpack_tuple(builder, argument) for argument in arguments]
        return context.make_tuple(builder, signature.return_type, compute(builder, *lists))

    def of_one(typing_context, vectors):
        return vectors(vectors), code

    def of_two(typing_context, left, right):
        return left(left, right), code

    return intrinsic(of_one if n_arguments == 1 else of_two)


def _transpose(builder, values):
    """Exchange squares off the diagonal, of one number, then two, then four."""
    values, picks = list(values), ir.VectorType(ir.IntType(32), LANES)
    for size in (1, 2, 4):
        upper = ir.Constant(picks, [j + LANES - size if j & size else j for j in range(LANES)])
        lower = ir.Constant(picks, [j + LANES if j & size else j + size for j in range(LANES)])
        for i in range(LANES):
            if not i & size:
                pair = values[i], values[i + size]
                values[i], values[i + size] = (builder.shuffle_vector(*pair, picked) for picked in (upper, lower))
    return values


# Eight vectors of eight: the first of each becomes the first vector.
transpose = tuple_intrinsic(1, _transpose)


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


@intrinsic
def larger_size(typing_context, size, lanes):
    """Return the larger of ``size`` and the absolute value, lane by lane."""

    def code(context, builder, signature, arguments):
        size, value = arguments
        absolute = ir.FunctionType(_VECTOR, [_VECTOR])
        absolute = cgutils.get_or_insert_function(builder.module, absolute, f"llvm.fabs.v{LANES}f64")
        value = builder.call(absolute, [value])
        return builder.select(builder.fcmp_ordered("<", size, value), value, size)

    return (_lanes(_lanes, _lanes), code) if size == lanes == _lanes else None


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


@kernel
def aligned_rows(n):
    """Return float64 (n, LANES), each row within one line of the cache: a vector across two takes twice as long."""
    raw = np.empty(64 * n + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + 64 * n].view(np.float64).reshape(n, LANES)


@kernel
def _starts(first, last, n):
    """Return the flat positions of eight windows of ``n`` samples; past the last one its own again."""
    return (
        min(first, last) * n,
        min(first + 1, last) * n,
        min(first + 2, last) * n,
        min(first + 3, last) * n,
        min(first + 4, last) * n,
        min(first + 5, last) * n,
        min(first + 6, last) * n,
        min(first + 7, last) * n,
    )


@kernel
def _zeros(x, zero):
    """Return 0 in each lane, NaN where a vector is not finite."""
    sums0 = (zero * x[0] + zero * x[1]) + (zero * x[2] + zero * x[3])
    return sums0 + ((zero * x[4] + zero * x[5]) + (zero * x[6] + zero * x[7]))


@kernel
def to_lanes(x_WT, first, x_TL, edge):
    """Put eight windows side by side, from row ``edge`` on; tell whether all of their samples are finite.

    Beyond the last window its own copy fills the lanes.
    """
    n = x_WT.shape[1]
    starts = _starts(first, x_WT.shape[0] - 1, n)
    zero = sums = splat(0.0)
    for t in range(0, n - LANES + 1, LANES):
        x = load_each(x_WT, starts, t)
        sums = sums + _zeros(x, zero)
        put(x_TL, edge + t, 1, transpose(x))
    rest = 0.0
    for t in range(n - n % LANES, n):
        for lane in range(LANES):
            x_TL[edge + t, lane] = x_WT[min(first + lane, x_WT.shape[0] - 1), t]
            rest += 0.0 * x_TL[edge + t, lane]
    return total(sums) + rest == 0.0


@kernel
def from_lanes(x_TL, edge, middle_L, scale_L, first, out_WT):
    """Write (x - middle) * scale of each lane to its window; ``edge`` rows on both sides are left out.

    Lanes beyond the last window write its values once more.
    """
    n = out_WT.shape[1]
    starts = _starts(first, out_WT.shape[0] - 1, n)
    middle, scale = load(middle_L, 0), load(scale_L, 0)
    for t in range(0, n - LANES + 1, LANES):
        x0, x1, x2, x3, x4, x5, x6, x7 = rows(x_TL, edge + t, 1, 8)
        x0, x1, x2, x3 = x0 - middle, x1 - middle, x2 - middle, x3 - middle
        x4, x5, x6, x7 = x4 - middle, x5 - middle, x6 - middle, x7 - middle
        x0, x1, x2, x3, x4, x5, x6, x7 = (
            x0 * scale, x1 * scale, x2 * scale, x3 * scale, x4 * scale, x5 * scale, x6 * scale, x7 * scale
        )  # fmt: skip
        store_each(out_WT, starts, t, transpose((x0, x1, x2, x3, x4, x5, x6, x7)))
    for t in range(n - n % LANES, n):
        for lane in range(min(LANES, out_WT.shape[0] - first)):
            out_WT[first + lane, t] = (x_TL[edge + t, lane] - middle_L[lane]) * scale_L[lane]
