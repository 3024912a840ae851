"""Eight rows of sixteen float32 in registers, for kernels that sum eight outputs of sixteen stretches at once.

Named by hand as in ``_lanes``: LLVM would neither keep eight sums nor pass rows on from step to step in registers.
``fma`` rounds once, by definition and on every processor, so each number gets the same bits on any machine.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model, types

ROWS, LANES = 8, 16
_ROW = ir.VectorType(ir.FloatType(), LANES)
_BLOCK = ir.ArrayType(_ROW, ROWS)
_PICKS = ir.VectorType(ir.IntType(32), LANES)


class _RowsType(types.Type):
    def __init__(self):
        super().__init__(name="Rows")


@register_model(_RowsType)
class _RowsModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _BLOCK)


_rows = _RowsType()


def _is_flat(array):
    return isinstance(array, types.Array) and array.layout == "C" and array.dtype == types.float32


def _places(context, builder, array_type, array, start, stride, *, n):
    """Return where ``n`` rows begin that lie ``stride`` float32 apart."""
    data = context.make_array(array_type)(context, builder, array).data
    at = [builder.add(start, builder.mul(stride, ir.Constant(stride.type, i))) for i in range(n)]
    return [builder.bitcast(builder.gep(data, [position]), _ROW.as_pointer()) for position in at]


def _load(builder, places):
    loaded = [builder.load(place) for place in places]
    for row in loaded:
        row.align = 4  # of one float32: rows need not start at a vector's boundary
    return loaded


def _store(builder, rows, places):
    for row, place in zip(rows, places, strict=True):
        builder.store(row, place).align = 4


def _pack(builder, rows):
    block = ir.Constant(_BLOCK, ir.Undefined)
    for i, row in enumerate(rows):
        block = builder.insert_value(block, row, i)
    return block


def _unpack(builder, block):
    return [builder.extract_value(block, i) for i in range(ROWS)]


@intrinsic
def zeros(typing_context):
    """Return rows of zeros."""

    def code(context, builder, signature, arguments):
        return ir.Constant(_BLOCK, None)

    return _rows(), code


@intrinsic
def load(typing_context, array, start, stride):
    """Return 8 rows from flat position ``start`` of a C-contiguous float32 array, each ``stride`` after the last.

    Bounds are checked nowhere in this file.
    """

    def code(context, builder, signature, arguments):
        return _pack(builder, _load(builder, _places(context, builder, signature.args[0], *arguments, n=ROWS)))

    return (_rows(array, types.int64, types.int64), code) if _is_flat(array) else None


@intrinsic
def store(typing_context, array, start, stride, rows):
    """Write 8 rows where ``load`` would find them."""

    def code(context, builder, signature, arguments):
        *where, rows = arguments
        _store(builder, _unpack(builder, rows), _places(context, builder, signature.args[0], *where, n=ROWS))
        return context.get_dummy_value()

    return (types.void(array, types.int64, types.int64, _rows), code) if _is_flat(array) else None


def _push(at_end):
    @intrinsic
    def push(typing_context, rows, array, start):
        def code(context, builder, signature, arguments):
            rows, array, start = arguments
            places = _places(context, builder, signature.args[1], array, start, ir.Constant(start.type, 0), n=1)
            kept, new = _unpack(builder, rows), _load(builder, places)
            return _pack(builder, kept[1:] + new if at_end else new + kept[:-1])

        return (_rows(_rows, array, types.int64), code) if _is_flat(array) else None

    return push


# Put one more row, from a flat position of an array, before or after the others, and drop the one at the other end.
push_first, push_last = _push(False), _push(True)


@intrinsic
def add(typing_context, left, right):
    """Return left + right."""

    def code(context, builder, signature, arguments):
        pairs = zip(*(_unpack(builder, block) for block in arguments), strict=True)
        return _pack(builder, [builder.fadd(a, b) for a, b in pairs])

    return _rows(_rows, _rows), code


@intrinsic
def fma(typing_context, factor, rows, sums):
    """Return factor x rows + sums, rounded once; ``factor`` is one float32."""

    def code(context, builder, signature, arguments):
        factor, rows, sums = arguments
        none = ir.Constant(_ROW, ir.Undefined)
        first = builder.insert_element(none, factor, ir.Constant(ir.IntType(32), 0))
        splat = builder.shuffle_vector(first, none, ir.Constant(_PICKS, [0] * LANES))
        # llvmlite's own builder.fma takes single numbers only.
        function = ir.FunctionType(_ROW, [_ROW] * 3)
        function = cgutils.get_or_insert_function(builder.module, function, f"llvm.fma.v{LANES}f32")
        pairs = zip(_unpack(builder, rows), _unpack(builder, sums), strict=True)
        return _pack(builder, [builder.call(function, [splat, row, total]) for row, total in pairs])

    return _rows(types.float32, _rows, _rows), code


@intrinsic
def transpose(typing_context, source, start, stride, target, target_start, target_stride):
    """Write a tile of 16 x 16 float32 transposed; rows lie ``stride`` apart in flat, C-contiguous arrays."""

    def code(context, builder, signature, arguments):
        rows = _load(builder, _places(context, builder, signature.args[0], *arguments[:3], n=LANES))
        # Each round interleaves rows half a tile apart; after four every value lies at its transposed place.
        half = LANES // 2
        low = ir.Constant(_PICKS, [n for i in range(half) for n in (i, LANES + i)])
        high = ir.Constant(_PICKS, [n for i in range(half, LANES) for n in (i, LANES + i)])
        for _ in range(4):
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [builder.shuffle_vector(a, b, part) for a, b in pairs for part in (low, high)]
        _store(builder, rows, _places(context, builder, signature.args[3], *arguments[3:], n=LANES))
        return context.get_dummy_value()

    if not (_is_flat(source) and _is_flat(target)):
        return None
    return types.void(source, types.int64, types.int64, target, types.int64, types.int64), code
