"""ONNX files that say themselves what they are: sealed, and checked before anything is done with what they hold."""

import hashlib
import json
import math
import os
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, shape_inference

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import FORMATS, check_format, code_version, remove, replacing
from anyecg.train.card import check_card

FORM, KEY = "anyecg-export", "anyecg"
SIGNAL, BEFORE = "signal", "features_before"
_REMEDY = "give a file that 'anyecg export --format onnx' made"
_MOST_BYTES, _MOST_TEXT, _MOST_PARTS = 1 << 28, 1 << 21, 20_000
# Of any tensor: numbers with two windows, and with as many as are scored together.
_MOST_NUMBERS, _MOST_TOGETHER = 1 << 24, 1 << 26
_BYTES = {TensorProto.FLOAT: 4, TensorProto.INT64: 8, TensorProto.INT32: 4, TensorProto.BOOL: 1}
_PLAIN = (AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.FLOATS, AttributeProto.INTS)


def read_name(head):
    """Return the name of the outputs that a user reads."""
    return "values" if head == "regression" else "probabilities"


def output_names(card):
    """Return the outputs of a model with that card, in order."""
    scores = read_name(card["head"])
    return ["logits", scores] + (
        ["features", "record_logits", f"record_{scores}"] if card["join"] == "features" else []
    )


def card_path(path):
    """Return where the card of an ONNX file stands as JSON."""
    return path.with_name(f"{path.name}.json")


def card_bytes(card):
    """Return the card of an ONNX file as the JSON that stands beside it."""
    return (json.dumps(card, indent=1) + "\n").encode()


def is_card(path, card):
    """Say whether a file is the card that was written beside a model; it is compared with it, and never parsed."""
    wanted = card_bytes(card)
    return path.is_file() and path.stat().st_size == len(wanted) and path.read_bytes() == wanted


def write_onnx(path, model, document):
    """Write an ONNX model, whole or absent, with a document in its metadata and in that the hash of everything else.

    The document stands beside it, too, as readable JSON.
    Names of source files and their lines, which exporters leave on every node, are taken out.
    """
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    body = model.SerializeToString()
    head = {"format": FORM, "version": FORMATS[FORM], "code_version": code_version()}
    card = {**head, **document, "graph_sha256": hashlib.sha256(body).hexdigest()}
    # A model alone is whole; with the card of another one it would be refused.
    remove(card_path(path))
    with replacing(path) as temporary:
        # A protobuf message may come in pieces, so that what is hashed stands alone in front.
        temporary.write_bytes(body + _metadata(json.dumps(card)))
    with replacing(card_path(path)) as temporary:
        temporary.write_bytes(card_bytes(card))


def _metadata(text):
    piece = ModelProto()
    piece.metadata_props.add(key=KEY, value=text)
    return piece.SerializeToString()


def read_onnx(path):
    """Read an ONNX file of ours; everything it says is checked, and nothing it holds is run.

    A card beside it must be just the one that was written there.

    Returns
    -------
    (bytes, dict, int)
        The model, its card, and how many windows may be scored together.

    Raises
    ------
    ModelError, UpgradeNeeded
        Missing, damaged, changed, without our metadata, or with anything in it that our exports have not: other files,
        subgraphs, functions, foreign operators, tensors beyond the limits.
    """
    path = Path(path)
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path}: wanted an ONNX file of at most {_MOST_BYTES >> 20} MB; {_REMEDY}")
        data = path.read_bytes()
        _check_size(memoryview(data))
        model = ModelProto.FromString(data)
        card = _document(path, data, model)
        _check_parts(model)
        largest = _check_shapes(model, card)
    except (OSError, ValueError, IndexError, RecursionError, DecodeError, shape_inference.InferenceError) as cause:
        said = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
        raise ModelError(f"{path}: not a model of ours, or damaged ({said}); {_REMEDY}") from None
    beside = card_path(path)
    if os.path.lexists(beside) and not is_card(beside, card):
        raise ModelError(
            f"{beside}: not the card that was written beside {path.name}; take it away, as the model holds its own, or "
            "export both again"
        )
    return data, card, max(1, _MOST_TOGETHER // largest)


def _document(path, data, model):
    """Return the card in the metadata of a model that is as it was written."""
    texts = [entry.value for entry in model.metadata_props if entry.key == KEY]
    if not texts:
        raise ModelError(f"{path}: its metadata hold no {KEY!r} with targets, leads, rate and preset; {_REMEDY}")
    card = json.loads(texts[0])
    if not isinstance(card, dict):
        raise ValueError(f"its metadata {KEY!r} is no JSON object")
    check_format(path, FORM, card.get("format"), card.get("version"), ModelError)
    tail = _metadata(texts[0])
    if not data.endswith(tail) or hashlib.sha256(data[: -len(tail)]).hexdigest() != card.get("graph_sha256"):
        raise ValueError("changed since it was written")
    check_card(path, card)
    return card


def _varint(data, place):
    value = shift = 0
    while shift < 64:
        byte = data[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 64 bits")


def _fields(data):
    """Yield (number, content) of the fields of a protobuf message, without content where that is one number."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind, n_bytes = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
        if kind not in (0, 1, 2, 5):
            raise ValueError(f"a field of kind {kind}")
        if kind in (0, 2):
            n_bytes, place = _varint(data, place)
        start, place = place, place + (n_bytes if kind else 0)
        if place > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[start:place] if kind == 2 else data[:0]


def _check_size(data):
    """Refuse a file that would take far more memory than its bytes: what are no weights must be little."""
    graph, initializer, raw = (
        message.DESCRIPTOR.fields_by_name[name].number
        for message, name in ((ModelProto, "graph"), (GraphProto, "initializer"), (TensorProto, "raw_data"))
    )
    n_bytes = n_parts = 0
    for number, part in _fields(data):
        for number_2, part_2 in _fields(part) if number == graph else [(0, part)]:
            for number_3, part_3 in _fields(part_2) if (number, number_2) == (graph, initializer) else [(0, part_2)]:
                n_parts += 1
                n_bytes += 0 if (number, number_2, number_3) == (graph, initializer, raw) else len(part_3)
                if n_parts > _MOST_PARTS or n_bytes > _MOST_TEXT:
                    raise ValueError(f"more than {_MOST_PARTS} parts, or {_MOST_TEXT >> 20} MB beside its weights")


def _check_tensor(tensor):
    """Refuse a tensor that is not all there, as plain numbers in the file itself."""
    if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError(f"tensor {tensor.name[:80]!r} lies in another file")
    if tensor.data_type not in _BYTES or len(tensor.dims) > 8 or min(tensor.dims, default=1) < 0:
        raise ValueError(f"tensor {tensor.name[:80]!r} of type {tensor.data_type}, dimensions {list(tensor.dims)[:9]}")
    wanted = math.prod(tensor.dims) * _BYTES[tensor.data_type]
    if len(tensor.raw_data) != wanted:
        raise ValueError(f"tensor {tensor.name[:80]!r} has {len(tensor.raw_data)} bytes, wanted {wanted}")


def _check_parts(model):
    """Refuse whatever our exports do not have."""
    graph = model.graph
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in graph.node}
    if domains - {""}:
        raise ValueError(f"operators of {', '.join(sorted(domains - {''}))[:80]}")
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        raise ValueError("functions, training, sparse or quantised tensors")
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _check_tensor(attribute.t)
            elif attribute.type not in _PLAIN or attribute.HasField("g") or attribute.graphs or attribute.tensors:
                raise ValueError(f"operator {node.op_type[:80]} with a part that is no number")


def _check_shapes(model, card):
    """Refuse other inputs or outputs than the card's, and too large tensors; return the largest size for a window."""
    n_targets, names = len(card["targets"]), output_names(card)
    inputs = {value.name: value for value in model.graph.input}
    wanted = [SIGNAL, BEFORE] if card["join"] == "features" else [SIGNAL]
    if list(inputs) != wanted or [value.name for value in model.graph.output] != names:
        raise ValueError(f"inputs or outputs other than {', '.join([*wanted, *names])}")
    lead_sample = [len(card["leads"]), card["samples"]]
    if _shape(inputs[SIGNAL]) != [None, *lead_sample]:
        raise ValueError(f"input {SIGNAL} of shape {_shape(inputs[SIGNAL])[:9]}; the card has (windows, {lead_sample})")
    sketch = _sketch(model, inputs, lead_sample)
    found = shape_inference.infer_shapes(sketch, check_type=True, strict_mode=True, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*found.value_info, *found.output)}
    made = [name for node in model.graph.node for name in node.output if name]
    sizes = [math.prod(shapes[name]) if None not in shapes.get(name, [None]) else math.inf for name in made]
    if not sizes or max(sizes) > _MOST_NUMBERS:
        raise ValueError(f"a tensor of unknown size, or of more than {_MOST_NUMBERS} numbers")
    for name in names:
        if name != "features" and shapes[name] != [1 if name.startswith("record") else 2, n_targets]:
            raise ValueError(f"output {name} of shape {shapes[name]}; the card has {n_targets} targets")
    return max(sizes) // 2


def _sketch(model, inputs, lead_sample):
    """Return the model for two windows, its large weights as inputs, so that shapes follow without any numbers."""
    sketch = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    sketch.graph.name = "sketch"
    sketch.graph.node.extend(model.graph.node)
    sketch.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64 and len(tensor.raw_data) <= 1024:
            sketch.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            sketch.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    sketch.graph.input.append(helper.make_tensor_value_info(SIGNAL, TensorProto.FLOAT, [2, *lead_sample]))
    if BEFORE in inputs:
        n_features = _shape(inputs[BEFORE])[1:]
        sketch.graph.input.append(helper.make_tensor_value_info(BEFORE, TensorProto.FLOAT, [2, *n_features]))
    for value in sketch.graph.output:
        value.type.tensor_type.ClearField("shape")
    return sketch


def _shape(value):
    """Return the dimensions of a value, None where one is open."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
