"""Hostile files of weights and models: made, then each tried in a process of its own, whose memory is watched.

python -m tests.train.hostile_models make|try FOLDER
"""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from anyecg.loaders.errors import ModelError, UpgradeNeeded
from anyecg.train import onnx_file
from anyecg.train.export import export_model
from anyecg.train.model import open_model
from anyecg.train.scoring import open_scorer
from anyecg.train.weights import load_ecgfounder

from ..conftest import REPOSITORY
from .models import TARGETS, make_model


class Hostile:
    """Touches the canary beside the file in whoever unpickles it."""

    def __init__(self, home):
        self.canary = home / "canary-fired"

    def __reduce__(self):
        return Path.touch, (self.canary,)


def pickled(suffix):
    def make(home):
        path = home / f"pickle{suffix}"
        path.write_bytes(pickle.dumps({"state_dict": Hostile(home)}))
        return path

    return make


def saved(suffix):
    def make(home):
        path = home / f"torch{suffix}"
        torch.save({"state_dict": {"dense.weight": Hostile(home)}}, path)
        return path

    return make


def object_array(home):
    path = home / "objects.npy"
    np.save(path, np.array([Hostile(home)], dtype=object), allow_pickle=True)
    return path


def bomb(home):
    """Write an archive of 2 MB that unpacks to 1.5 GB."""
    path = home / "bomb.pth"
    torch.save({"state_dict": {"dense.weight": torch.zeros(3)}}, home / "small.pth")
    with (
        zipfile.ZipFile(home / "small.pth") as small,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name in small.namelist():
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(1500 if name.endswith("data/0") else 0):
                    file.write(bytes(1 << 20))
                if not name.endswith("data/0"):
                    file.write(small.read(name))
    return path


def state_of(**entries):
    def make(home):
        path = home / f"state-{len(list(home.iterdir()))}.pth"
        torch.save({"state_dict": {key.replace("__", "."): value for key, value in entries.items()}}, path)
        return path

    return make


def header(n_bytes, text=b""):
    def make(home):
        path = home / f"header-{len(list(home.iterdir()))}.safetensors"
        path.write_bytes(struct.pack("<Q", n_bytes) + text)
        return path

    return make


def tensors(changes, keep=True):
    """Write a safetensors file whose header says something else."""

    def make(home):
        whole = (home / "model.safetensors").read_bytes()
        n_header = struct.unpack("<Q", whole[:8])[0]
        head = json.loads(whole[8 : 8 + n_header])
        head = {**(head if keep else {}), **changes(head)}
        text = json.dumps(head).encode()
        path = home / f"tensors-{len(list(home.iterdir()))}.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + n_header :])
        return path

    return make


def said(**changes):
    """Change what the document of a safetensors file says."""

    def change(head):
        document = json.loads(head["__metadata__"]["anyecg"])
        return {"__metadata__": {"anyecg": json.dumps({**document, **changes})}}

    return tensors(change)


def entry(shape, start):
    return {"x": {"dtype": "F32", "shape": shape, "data_offsets": [start, start + 4]}}


def metadata(text):
    return tensors(lambda head: {"__metadata__": {"anyecg": text}})


def graph(change, **card):
    """Change a model of ours, and seal it anew as who makes such a file would."""

    def make(home):
        model = onnx.load_from_string((home / "model.onnx").read_bytes())
        document = {**json.loads(model.metadata_props[0].value), **card}
        change(model, home)
        path = home / f"graph-{len(list(home.iterdir()))}.onnx"
        onnx_file.write_onnx(path, model, document)
        return path

    return make


def external(model, home):
    (home / "weights.bin").write_bytes(bytes(1 << 20))
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 1000)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def external_constant(model, home):
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[100], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=str(home / "weights.bin"))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def before(*nodes):
    """Put nodes in front; the last makes what the network takes for its signal."""

    def change(model, _):
        for node in reversed(nodes):
            model.graph.node.insert(0, node)
        for node in model.graph.node[len(nodes) :]:
            node.input[:] = ["made" if name == "signal" else name for name in node.input]

    return change


def number(name, *values):
    return helper.make_node(
        "Constant",
        [],
        [name],
        value=helper.make_tensor(name, TensorProto.INT64, [len(values)], np.array(values, "<i8").tobytes(), raw=True),
    )


def many(n_nodes):
    return passed_on(*(helper.make_node("Identity", ["signal"], [f"{k}"]) for k in range(n_nodes)))


def zeros(n_numbers):
    return passed_on(number("n", n_numbers), helper.make_node("ConstantOfShape", ["n"], ["z"]))


def passed_on(*nodes):
    """Put nodes in front whose results nobody takes."""
    return before(*nodes, helper.make_node("Identity", ["signal"], ["made"]))


def doubling(n_times):
    nodes = [helper.make_node("Concat", [f"d{k}"] * 2, [f"d{k + 1}"], axis=2) for k in range(n_times)]
    first = helper.make_node("Identity", ["signal"], ["d0"])
    pick = helper.make_node("Slice", [f"d{n_times}", "from", "to", "axis"], ["made"])
    return before(number("from", 0), number("to", 5000), number("axis", 2), first, *nodes, pick)


def branch(model, _):
    body = helper.make_graph(
        [helper.make_node("Identity", ["signal"], ["o"])], "b", [], [helper.make_empty_tensor_value_info("o")]
    )
    model.graph.node.insert(0, helper.make_node("If", ["c"], ["x"], then_branch=body, else_branch=body))


def function(model, _):
    model.functions.append(
        helper.make_function(
            "f", "g", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [helper.make_opsetid("", 18)]
        )
    )


def rewrite(change):
    """Change the bytes of a model of ours."""

    def make(home):
        path = home / f"bytes-{len(list(home.iterdir()))}.onnx"
        path.write_bytes(change((home / "model.onnx").read_bytes()))
        return path

    return make


def huge(home):
    path = home / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    return path


def first_tensor(**fields):
    def change(model, _):
        tensor = model.graph.initializer[0]
        for key, value in fields.items():
            if key == "dims":
                tensor.dims[:] = value
            else:
                setattr(tensor, key, value)

    return change


def nothing(model, home):
    pass


def flip(data):
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


STORAGE = torch.zeros(1)
CASES = {
    **{f"pickle {suffix}": pickled(suffix) for suffix in (".pt", ".pth", ".npy", ".safetensors", ".onnx")},
    **{f"torch.save {suffix}": saved(suffix) for suffix in (".pt", ".pth", ".safetensors", ".onnx")},
    "npy of objects": object_array,
    "zip bomb": bomb,
    "a head of a billion outputs": state_of(dense__weight=STORAGE.expand(10**9, 1024)),
    "a stem of a billion leads": state_of(first_conv__conv__weight=STORAGE.expand(64, 10**9, 16)),
    "a tensor of no dimension": state_of(dense__weight=torch.zeros(())),
    "sparse": state_of(dense__weight=torch.zeros(150, 1024).to_sparse()),
    "meta": state_of(dense__weight=torch.zeros(150, 1024, device="meta")),
    "header of 2^63": header(1 << 63),
    "header of 2^63 - 1": header((1 << 63) - 1),
    "header of 90 MB": header(90 << 20, b"{}"),
    "header of nothing": header(0),
    "header of brackets": header(1 << 20, b"[" * (1 << 20)),
    "header is a list": header(2, b"[]"),
    "header is no text": header(2, b"\xff\xfe"),
    "document of brackets": metadata("[" * 100_000),
    "document is a number": metadata("3"),
    "document is empty": metadata("{}"),
    "document of the other format": said(format="anyecg-weights"),
    "document of another version": said(version=99),
    "document of other data": said(data_sha256="0" * 64),
    "card without targets": said(targets=None),
    "card of a million targets": said(targets=["x"] * 1_000_000),
    "card of doubled targets": said(targets=["x", "x", "y"]),
    "card of a target record": said(targets=["record", "x", "y"]),
    "card of a target of two lines": said(targets=["a\nb", "x", "y"]),
    "card of other targets": said(targets=["a"]),
    "card of an unknown network": said(model="os.system"),
    "card of another network": said(model="net1d"),
    "card of 64 leads": said(leads=["I"] * 64),
    "card of 65 leads": said(leads=["I"] * 65),
    "card of an absurd rate": said(fs=10**12, samples=10**13),
    "card of other samples": said(samples=7),
    "card of an unknown head": said(head="eval"),
    "card of a regression without values": said(head="regression"),
    "card of a regression with NaN": said(head="regression", value_mean=[0.0] * 3, value_sd=[float("nan")] * 3),
    "a tensor of absurd shape": tensors(lambda _: entry([1 << 62, 4], 0)),
    "a tensor beyond the end": tensors(lambda _: entry([1], 1 << 40)),
    "two tensors in one place": tensors(lambda h: {"x": h["dense.bias"]}),
    "external data": graph(external),
    "external constant": graph(external_constant),
    "a subgraph": graph(branch),
    "a function": graph(function),
    "a foreign operator": graph(before(helper.make_node("Gelu", ["signal"], ["made"], domain="com.microsoft"))),
    "an unknown operator": graph(before(helper.make_node("Execute", ["signal"], ["made"]))),
    "a doubling": graph(doubling(40)),
    "a tile": graph(before(number("n", 1, 1, 10**9), helper.make_node("Tile", ["signal", "n"], ["made"]))),
    "an expand": graph(before(number("n", 1, 10**6, 5000), helper.make_node("Expand", ["signal", "n"], ["made"]))),
    "a padding": graph(before(number("n", *[0] * 5, 10**12), helper.make_node("Pad", ["signal", "n"], ["made"]))),
    "a constant of a terabyte": graph(zeros(10**12)),
    "a size of the data": graph(passed_on(helper.make_node("NonZero", ["signal"], ["z"]))),
    "a large graph of nothing": graph(many(21_000)),
    "dimensions beyond the data": graph(first_tensor(dims=[1 << 40])),
    "dimensions below zero": graph(first_tensor(dims=[-1, 5])),
    "dimensions that overflow": graph(first_tensor(dims=[1 << 32, 1 << 32])),
    "numbers of text": graph(first_tensor(data_type=TensorProto.STRING)),
    "another input": graph(lambda model, _: model.graph.input.add(name="path")),
    "no output": graph(lambda model, _: model.graph.ClearField("output")),
    "no node": graph(lambda model, _: model.graph.ClearField("node")),
    "other targets": graph(nothing, targets=[*TARGETS, "more"]),
    "other samples": graph(nothing, fs=1000, samples=10_000),
    "other leads": graph(nothing, leads=["I", "II"]),
    "another version": graph(nothing, version=2),
    "a join it has not": graph(nothing, join="features"),
    "no metadata": rewrite(lambda data: data[: data.rindex(b"\x72", 0, data.rindex(b"anyecg\x12"))]),
    "changed": rewrite(flip),
    "cut short": rewrite(lambda data: data[: len(data) // 3]),
    "empty": rewrite(lambda data: b""),
    "many empty nodes": rewrite(lambda data: b"\x3a" + varint(40 << 20) + b"\x0a\x00" * (20 << 20)),
    "deep": rewrite(lambda data: nested(3000)),
    "1 TB of nothing": huge,
}  # fmt: skip


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def nested(n_levels):
    """Return a graph in a node's attribute in a graph, and so on."""
    data = b""
    for _ in range(n_levels):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            data = tag + varint(len(data)) + data
    return b"\x3a" + varint(len(data)) + data


def make(home):
    """Lay each case into a folder of its own."""
    whole = make_model(home / "whole")
    for form in ("safetensors", "onnx"):
        export_model(whole, form, home / f"model.{form}")
    for name, case in CASES.items():
        folder = home / name.replace("/", " ")
        folder.mkdir()
        for form in ("safetensors", "onnx"):
            os.link(home / f"model.{form}", folder / f"model.{form}")
        (folder / "path").write_text(str(case(folder)))


def refusal(action, path):
    """Return what an action said, its seconds and how many MB it took at most."""
    Path("/proc/self/clear_refs").write_text("5")
    at_first, start = memory("VmRSS"), time.perf_counter()
    try:
        action(path)
        said = "NOT REFUSED"
    except (ModelError, UpgradeNeeded) as cause:
        said = f"{type(cause).__name__}: {cause}"
    except Exception as cause:
        said = f"UNTYPED {cause!r}"
    return said, time.perf_counter() - start, memory("VmHWM") - at_first


def memory(what):
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3


def try_all(home):
    """Try every case; what any of them needs is imported and used once before."""
    for path in (home / "whole", home / "model.safetensors", home / "model.onnx"):
        open_scorer(path)
    open_model(home / "whole")
    found = {}
    for name in CASES:
        folder = home / name.replace("/", " ")
        path = Path((folder / "path").read_text())
        actions = [open_scorer] if path.suffix == ".onnx" else [open_scorer, load_ecgfounder]
        for action in actions:
            found[f"{name}: {action.__name__}"] = refusal(action, path)
    return found


def run_all(home):
    """Make all, then try them in a process of its own."""
    command = [sys.executable, "-m", "tests.train.hostile_models"]
    subprocess.run([*command, "make", str(home)], check=True, cwd=REPOSITORY, timeout=300, stderr=subprocess.DEVNULL)
    done = subprocess.run(
        [*command, "try", str(home)], stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY, timeout=300
    )  # fmt: skip
    return json.loads(done.stdout)


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        make(where)
    else:
        print(json.dumps(try_all(where), indent=1))
