"""What the page's server says with models: the same as the command line, and nothing by a file that is not one."""

import asyncio
import csv
import http.client
import json
import re
import shutil
import time

import numpy as np
import pytest

from anyecg.app.server_models import Models, occluded
from anyecg.app.server_progress import Ended, Watch, lines
from anyecg.app.server_records import NotThere, Place
from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.train.export import export_model
from anyecg.train.predict_files import predict_files

from ..conftest import DEMO, REPOSITORY
from .test_server import Running

SHIPPED = REPOSITORY / "app/cinc2017/model"
NAMES = ("A00015", "A00022")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Return a folder of two recordings."""
    folder = tmp_path_factory.mktemp("records")
    for name in NAMES:
        for end in (".hea", ".mat"):
            shutil.copy(DEMO / "records" / f"{name}{end}", folder)
    return folder


@pytest.fixture(scope="module")
def wanted(records, tmp_path_factory):
    """Return the bytes of the CSV that the command line writes."""
    out = tmp_path_factory.mktemp("wanted") / "scores.csv"
    predict_files(SHIPPED, records, out)
    return out.read_bytes()


@pytest.fixture(scope="module")
def server(records, small_run, tmp_path_factory):
    """Return a running server with the two recordings and the models of a real run."""
    running = Running(
        tmp_path_factory.mktemp("serve") / "tmp", "--folder", records, "--runs", small_run.parent, "--upload-mb", 64
    )
    yield running
    assert running.stop() == 0


def left_csvs(server):
    """Return the CSVs that the server still holds when it has had time to remove them."""
    deadline = time.monotonic() + 15
    while (left := [*server.temporary.rglob("*.csv*")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_scores_are_those_of_the_command_line(server, wanted):
    model = server.json("/api/models")[0]["id"]
    rows = list(csv.DictReader(wanted.decode().splitlines()))
    for record in server.json("/api/records"):
        found = server.result(f"/api/records/{record['id']}/scores", {"model": model, "lead": 0})
        own, *windows = [row for row in rows if row["record"] == record["name"]]
        assert found["own"] == pytest.approx([float(own[target]) for target in found["targets"]], abs=2e-6)
        assert found["start_s"] == [float(row["start_s"]) for row in windows]
        assert found["scores"][0] == pytest.approx([float(windows[0][target]) for target in found["targets"]], abs=2e-6)


def test_a_whole_folder_is_the_same_csv(server, wanted):
    model = server.json("/api/models")[0]["id"]
    made = server.result(f"/api/models/{model}/folder", {})
    status, headers, data = server.ask(f"/api/made/{made}")
    assert (status, data) == (200, wanted)
    assert headers["content-type"].startswith("text/csv")
    assert server.ask(f"/api/made/{made}")[0] == 404
    assert left_csvs(server) == []


def test_results_with_cis_stand_beside_a_model_whose_run_was_evaluated(server, small_run):
    shipped, run = server.json("/api/models")
    found = server.json(f"/api/models/{shipped['id']}")["results"]
    with (SHIPPED.parent / "results.csv").open(newline="") as file:
        # Its windows are read together, so these are the results of what the page shows.
        rows = {row["target"]: row for row in csv.DictReader(file) if row["level"] == "draw-head"}
    assert {target: kept["level"] for target, kept in found.items()} == dict.fromkeys("NAO~", "draw-head")
    assert all(found[name][key] == rows[name][key] for name in "NAO~" for key in ("auroc", "auroc_low", "auroc_high"))
    assert {kept["n"] for kept in found.values()} == {"1361"}
    found = server.json(f"/api/models/{run['id']}")
    with (small_run / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["level"] == "draw" and row["horizon_min"] == "60"]
    assert set(found["results"]) == {row["target"] for row in rows} == set(found["targets"])
    for row in rows:
        kept = found["results"][row["target"]]
        assert [kept[name] for name in ("auroc", "auroc_low", "auroc_high", "n")] == [
            row[name] for name in ("auroc", "auroc_low", "auroc_high", "n")
        ]


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_an_exported_model_is_imported_and_scores_the_same(server, form):
    shipped = server.json("/api/models")[0]["id"]
    status, _, data = server.ask(f"/api/models/{shipped}/export?format={form}")
    assert status == 200
    batch = server.json("/api/batches", "POST")["batch"]
    assert server.send(batch, f"model.{form}", data) == 200
    (model,) = server.json(f"/api/batches/{batch}/models", "POST")
    record = server.json("/api/records")[0]["id"]
    first, second = (
        server.result(f"/api/records/{record}/scores", {"model": key, "lead": 0})["own"] for key in (shipped, model)
    )
    assert first == pytest.approx(second, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "data"),
    [("x.onnx", b""), ("x.onnx", b"\x08\x01" * 1000), ("x.safetensors", b"\xff" * 100), ("x.pth", b"\x80\x04."),
     ("x.onnx", None)],
)  # fmt: skip
def test_a_model_that_does_not_validate_is_refused_and_not_listed(server, tmp_path, name, data):
    if data is None:
        export_model(SHIPPED, "onnx", tmp_path / "x.onnx")
        data = bytearray((tmp_path / "x.onnx").read_bytes())
        data[len(data) // 2] ^= 1
    before = server.json("/api/models")
    batch = server.json("/api/batches", "POST")["batch"]
    assert server.send(batch, name, bytes(data)) == 200
    status, _, said = server.ask(f"/api/batches/{batch}/models", "POST")
    assert status == 422
    assert str(server.temporary) not in json.loads(said)["error"]
    assert server.json("/api/models") == before


@pytest.fixture(scope="module")
def onnx_and_card(server):
    """Return the shipped model as ONNX, and its card as JSON."""
    shipped = server.json("/api/models")[0]["id"]
    return [server.ask(f"/api/models/{shipped}/export?format={form}")[2] for form in ("onnx", "card")]


@pytest.mark.parametrize("name", ["x.onnx.json", "x.onnx (1).json"])
def test_a_model_comes_in_with_its_card_under_any_name(server, onnx_and_card, name):
    model, card = onnx_and_card
    assert json.loads(card)["targets"] == ["N", "A", "O", "~"]
    batch = server.json("/api/batches", "POST")["batch"]
    assert (server.send(batch, "x.onnx", model), server.send(batch, name, card)) == (200, 200)
    assert len(server.json(f"/api/batches/{batch}/models", "POST")) == 1


SCRIPT = "<script>document.title = 1</script>"
HOSTILE_CARDS = {
    "empty": lambda card: b"",
    "no JSON": lambda card: card[:-20],
    "not a number": lambda card: re.sub(rb'"val_loss": [\d.]+', b'"val_loss": NaN', card),
    "another rate": lambda card: card.replace(b'"fs": 250', b'"fs": 500'),
    "wrong types": lambda card: card.replace(b'"fs": 250', b'"fs": true'),
    "targets of text": lambda card: json.dumps({**json.loads(card), "targets": "NAO~"}, indent=1).encode(),
    "a script in a name": lambda card: card.replace(b'"~"', json.dumps(SCRIPT).encode()),
    "one key twice": lambda card: card.replace(b'"fs": 250,', b'"fs": 250,\n "fs": 250,'),
    "a key more": lambda card: card.replace(b"{", b'{\n "__class__": "os.system",', 1),
    "deep": lambda card: b"[" * 2_000_000,
    "deep and as long": lambda card: b"[" * len(card),
    "huge": lambda card: card + b" " * (20 << 20),
    "a pickle": lambda card: b"\x80\x04cposix\nsystem\n.",
    "a list": lambda card: b"[" + card + b"]",
}


@pytest.mark.parametrize("what", HOSTILE_CARDS)
@pytest.mark.parametrize("name", ["x.onnx.json", "other.json"])
def test_a_card_that_is_not_the_models_own_is_refused(onnx_and_card, tmp_path, what, name):
    model, card = onnx_and_card
    hostile = HOSTILE_CARDS[what](card)
    assert hostile != card
    models, folder = Models(tmp_path), tmp_path / "batch"
    folder.mkdir()
    (folder / name).write_bytes(hostile)
    with pytest.raises(ModelError, match="no model among these files"):
        models.take_in(folder)
    (folder / "x.onnx").write_bytes(model)
    with pytest.raises(ModelError, match=f"^{name}: not the card") as refused:
        models.take_in(folder)
    assert SCRIPT not in str(refused.value)
    assert len(models.listed()) == 1


@pytest.mark.parametrize(
    "wish",
    [b"", b"[]", b"{", b'{"model": 1, "lead": 0}', b'{"model": "x", "lead": -1}', b'{"model": "x", "lead": true}',
     b"[" * 60_000],
)  # fmt: skip
def test_a_wish_that_makes_no_sense_is_refused(server, wish):
    record = server.json("/api/records")[0]["id"]
    assert server.ask(f"/api/records/{record}/scores", "POST", wish)[0] == 400


def test_a_model_or_target_that_is_not_there_is_not_found(server):
    record, model = server.json("/api/records")[0]["id"], server.json("/api/models")[0]["id"]
    for wish in ({"model": "none", "start_s": 0, "target": 0}, {"model": model, "start_s": 0, "target": 9}):
        status = server.ask(f"/api/records/{record}/saliency", "POST", json.dumps({"lead": 0, **wish}))[0]
        assert status == 404


def test_what_goes_wrong_in_a_long_computation_is_its_last_line(server):
    model, record = server.json("/api/models")[0]["id"], server.json("/api/records")[0]["id"]
    body = json.dumps({"model": model, "lead": 7})
    status, _, data = server.ask(f"/api/records/{record}/scores", "POST", body)
    assert status == 200
    assert "lead number 7" in json.loads(data.splitlines()[-1])["error"]
    assert server.ask(f"/api/records/{record}/scores", "POST", body.replace(model, "none"))[0] == 404


def test_a_computation_ends_when_the_browser_goes_away_and_leaves_no_file(server, tmp_path):
    model, batch = server.json("/api/models")[0]["id"], server.json("/api/batches", "POST")["batch"]
    count_T = np.tile(np.arange(-250, 250), 3600 * 2).astype("<i2")
    header = f"hours 1 500 {len(count_T)}\nhours.dat 16 200 16 0 -250 0 0 II\n"
    for name in ("one", "two", "six"):
        assert server.send(batch, f"{name}/hours.hea", header.encode()) == 200
        assert server.send(batch, f"{name}/hours.dat", count_T.tobytes()) == 200
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", f"/api/models/{model}/folder", json.dumps({"batch": batch}),
                       {"X-Anyecg-Token": server.token})  # fmt: skip
    assert set(json.loads(connection.getresponse().readline())) == {"share", "seconds_left"}
    connection.close()
    assert left_csvs(server) == []
    record = server.json("/api/records")[0]["id"]
    assert server.result(f"/api/records/{record}/scores", {"model": model, "lead": 0})["start_s"]


def test_a_computation_that_nobody_waits_for_ends_at_its_next_step(records, tmp_path):
    watch = Watch()

    def end_after(share):
        watch(share)
        watch.is_wanted = share < 0.4

    models = Models(tmp_path)
    with pytest.raises(Ended):
        models.score_folder(models.listed()[0]["id"], records, {}, watch=end_after)
    assert watch.share == 0.5
    assert [*tmp_path.iterdir()] == []


def test_the_lines_tell_how_far_it_is_and_a_fault_without_its_message(caplog):
    async def told(work):
        watch = Watch()
        return [json.loads(line) async for line in lines(lambda: work(watch), watch)]

    async def slow(watch):
        watch(0.25)
        await asyncio.sleep(0.5)
        return 7

    async def faulty(watch):
        raise ValueError("Jane Doe")

    first, *_, last = asyncio.run(told(slow))
    assert first["share"] == 0.25
    assert first["seconds_left"] > 0
    assert last == {"result": 7}
    assert Watch().told() == {"share": 0.0, "seconds_left": None}
    assert asyncio.run(told(faulty)) == [{"error": "a fault of the server (ValueError)"}]
    assert "Jane" not in caplog.text


def test_a_patch_is_taken_out_of_each_copy_and_all_patches_cover_the_window():
    window_T = np.random.default_rng(0).standard_normal(2510).astype(np.float32)
    copy_PT = occluded(window_T, 250)
    changed_PT = copy_PT != window_T
    assert changed_PT.sum(axis=0).max() == 1
    assert changed_PT.sum() >= 2510 - 2 * len(copy_PT) - 1
    for number, patch_T in enumerate(copy_PT[:-1]):
        np.testing.assert_allclose(np.diff(patch_T[number * 50 : number * 50 + 50], 2), 0, atol=1e-6)


def test_saliency_is_what_each_patch_takes_from_the_log_odds(records, tmp_path):
    models = Models(tmp_path)
    (model,) = models.listed()
    found = models.saliency(model["id"], Place(records, "A00015", {}), 0, 3, 1)
    assert (found["start_s"], found["patch_s"], len(found["fall"])) == (3, 0.2, 50)
    assert np.ptp(found["fall"]) > 0.1
    with pytest.raises(NotThere):
        models.saliency("none", Place(records, "A00015", {}), 0, 0, 0)
    with pytest.raises(AnyECGError):
        models.take_in(records)
    with pytest.raises(ModelError):
        models.export(model["id"], "pickle")
