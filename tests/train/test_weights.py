import csv
import io
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from anyecg.app.config import load_config
from anyecg.app.stages import STAGES
from anyecg.loaders.errors import ConfigError, ModelError
from anyecg.loaders.files import file_hash
from anyecg.train.model import open_model
from anyecg.train.net1d import Net1D
from anyecg.train.predict_files import predict_files
from anyecg.train.tensor_file import document_of, write_tensor_file
from anyecg.train.weights import import_weights, load_ecgfounder, published_state_dict

from ..conftest import DEMO, SHARED, anyecg, write_small_config
from .test_net1d import check_golden, golden_state, needs_shared


def published_document(state):
    """Return what a published file holds, its optimiser that of the head alone to save 250 MB."""
    head = torch.nn.Linear(1024, 150)
    optimiser = torch.optim.Adam(head.parameters(), 1e-4, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "max", 0.1, 10)
    head(torch.ones(1, 1024)).sum().backward()
    optimiser.step()
    schedule.step(np.float64(0.9))
    return {
        "epoch": 3, "step": 1000, "state_dict": state, "optimizer": optimiser.state_dict(),
        "scheduler": schedule.state_dict(), "val_auroc": np.float64(0.9),
    }  # fmt: skip


def light_state(n_leads=1):
    """Return zeros of every published shape that take one number each in a file."""
    with torch.device("meta"):
        state = published_state_dict(Net1D(n_leads, 150))
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}


def light_file(path, **changes):
    """Write a file of the published form; ``changes`` replace what stands at its top."""
    torch.save({**published_document(light_state()), **changes}, path)
    return path


def refusal(path):
    """Return the one line with which a file is refused."""
    with pytest.raises(ModelError) as caught:
        load_ecgfounder(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


def random_state():
    """Return the full state_dict of a freshly made network, always the same."""
    torch.manual_seed(4)
    return published_state_dict(Net1D(1, 150))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a file of the published form with random weights of full size."""
    path = tmp_path_factory.mktemp("published") / "1_lead.pth"
    torch.save(published_document(random_state()), path)
    return path


@needs_shared
@pytest.mark.parametrize(("n_leads", "n_samples"), [(1, 1250), (12, 4999)])
def test_a_file_of_the_published_form_gives_the_published_logits(tmp_path, n_leads, n_samples):
    torch.save(published_document(golden_state(n_leads)), tmp_path / "golden.pth")
    model = load_ecgfounder(tmp_path / "golden.pth")
    assert (model.in_channels, model.training) == (n_leads, False)
    check_golden(model, n_leads, n_samples)


@needs_shared
@pytest.mark.parametrize("n_leads", [1, 12])
def test_the_full_state_dict_has_the_published_names_shapes_and_types(n_leads):
    full = published_state_dict(Net1D(n_leads, 150))
    found = [f"{key}\t{tuple(value.shape)}\t{value.dtype}".replace("torch.", "") for key, value in full.items()]
    lines = (SHARED / f"net1d_keys_{n_leads}lead.txt").read_text().splitlines()
    assert found == [line for line in lines if not line.startswith("#")]
    assert len(found) == 509


def test_what_is_read_comes_back_the_same_and_dead_entries_are_untouched(published):
    wanted = random_state()
    full = published_state_dict(load_ecgfounder(published))
    assert list(full) == list(wanted)
    assert all(torch.equal(full[key], wanted[key]) for key in wanted)
    norm = {key: full[f"stage_list.1.block_list.0.bn1.{key}"] for key in ("weight", "bias", "running_mean")}
    assert [value.unique().tolist() for value in norm.values()] == [[1], [0], [0]]
    assert full["first_bn.running_var"].unique().tolist() == [1]
    assert full["first_bn.num_batches_tracked"] == 0


def test_a_fresh_head_is_a_function_of_the_seed_alone(published):
    before = torch.get_rng_state()
    first, again, other = (load_ecgfounder(published, n_targets=108, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert first.dense.weight.shape == (108, 1024)
    assert torch.equal(first.dense.weight, again.dense.weight)
    assert not torch.equal(first.dense.weight, other.dense.weight)
    assert torch.equal(first.first_conv.conv.weight, other.first_conv.conv.weight)
    assert all(p.requires_grad and p.is_leaf for p in first.parameters())


@pytest.mark.parametrize("spelling", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_files_of_numpy_1_and_2_and_of_old_torch_are_read(tmp_path, spelling):
    file = io.BytesIO()
    torch.save(published_document(light_state(12)), file, _use_new_zipfile_serialization=False)
    assert b"numpy._core.multiarray" in file.getvalue()
    (tmp_path / "old.pth").write_bytes(file.getvalue().replace(b"numpy._core.multiarray", spelling))
    assert load_ecgfounder(tmp_path / "old.pth", n_targets=2).in_channels == 12


class Hostile:
    """Runs a command in whoever unpickles it."""

    def __init__(self, canary):
        self.command = f"touch {canary}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old", "plain"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, form):
    path, canary = tmp_path / "hostile.pth", tmp_path / "canary"
    document = {**published_document(light_state()), "val_auroc": Hostile(canary)}
    if form == "plain":
        path.write_bytes(pickle.dumps(Hostile(canary), protocol=2))
        assert pickle.loads(path.read_bytes()) == 0
        assert canary.exists()
        canary.unlink()
    else:
        torch.save(document, path, _use_new_zipfile_serialization=form == "zip")
    line = refusal(path)
    assert form == "plain" or "holds posix.system, not only weights; none of it was run" in line
    assert not canary.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float32(0.9), "numpy.dtypes.Float32DType"), (np.ones(3), "numpy._core.multiarray._reconstruct"),
        (os.path.join, "posixpath.join"), (io.StringIO, "_io.StringIO"),
    ],
)  # fmt: skip
def test_nothing_but_one_numpy_number_is_allowed(tmp_path, value, said):
    assert f"holds {said}, not only weights" in refusal(light_file(tmp_path / "x.pth", val_auroc=value))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_one_line(tmp_path, share):
    data = light_file(tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data[: int(share * len(data))])
    assert "damaged or not a file of weights" in refusal(tmp_path / "x.pth")


def test_mutated_files_give_a_network_or_a_typed_error(tmp_path):
    data = np.frombuffer(light_file(tmp_path / "x.pth").read_bytes(), np.uint8)
    rng, n_refused = np.random.default_rng(1), 0
    for _ in range(30):
        copy = data.copy()
        copy[rng.integers(0, len(copy), 20)] = rng.integers(0, 256, 20)
        (tmp_path / "x.pth").write_bytes(copy.tobytes())
        try:
            load_ecgfounder(tmp_path / "x.pth")
        except ModelError:
            n_refused += 1
    assert n_refused > 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dense.bias": None}, "missing dense.bias"),
        ({"first_conv.conv.weight": None}, "missing first_conv.conv.weight"),
        ({"dense.scale": torch.ones(1)}, "unknown dense.scale"),
        ({f"x{n}": torch.ones(1) for n in range(5)}, "unknown x0, x1, x2 and 2 more"),
        ({"dense.bias": torch.ones(7)}, "unlike dense.bias ((7,) torch.float32 instead of (150,) torch.float32)"),
        ({"dense.bias": torch.ones(150).double()}, "unlike dense.bias ((150,) torch.float64 instead of"),
        ({"dense.bias": 3}, "unlike dense.bias (int instead of"),
        ({"first_bn.bias": torch.ones(3)}, "unlike first_bn.bias ((3,)"),
        ({"first_conv.conv.weight": torch.ones(64, 1, 15)}, "unlike first_conv.conv.weight ((64, 1, 15)"),
    ],
)
def test_weights_of_another_network_are_refused_with_their_entries_named(tmp_path, changes, said):
    state = {key: value for key, value in {**light_state(), **changes}.items() if value is not None}
    assert said in refusal(light_file(tmp_path / "x.pth", state_dict=state))


def test_dead_entries_may_be_absent_but_the_state_dict_may_not(tmp_path):
    state = {key: value for key, value in light_state().items() if "bn" not in key}
    assert load_ecgfounder(light_file(tmp_path / "x.pth", state_dict=state)).in_channels == 1
    assert "holds no 'state_dict'" in refusal(light_file(tmp_path / "x.pth", state_dict=3))
    assert "no such file" in refusal(tmp_path / "none.pth")


NET1D = """epochs = 1
model = "net1d"
weights = "{weights}"
learning_rate = 1e-12"""


@pytest.fixture(scope="module")
def net1d_run(published, tmp_path_factory):
    """Return the config of a finished run on 12 recordings whose training moves no weight by more than 1e-11."""
    folder = tmp_path_factory.mktemp("net1d")
    config = write_small_config(folder, n_records=12)
    config.write_text(
        config.read_text().replace("epochs = 2", NET1D.format(weights=os.path.relpath(published, folder)))
    )
    done = anyecg("run", config, "evaluate.n_replicates=20")
    assert done.returncode == 0, done.stdout + done.stderr
    return config


def test_training_starts_at_the_published_weights_and_a_head_of_the_seed(net1d_run, published):
    model, card = open_model(net1d_run.parent / "run" / "model")
    assert (card["model"], type(model)) == ("net1d", Net1D)
    wanted = load_ecgfounder(published, n_targets=3, seed=3).state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=1e-10)


def test_a_published_net1d_scores_a_recording(net1d_run, tmp_path):
    model, out = net1d_run.parent / "run" / "model", tmp_path / "scores.csv"
    assert predict_files(model, DEMO / "records" / "A00009.hea", out) == (1, 0)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 1
    assert all(0 < float(row["noise"]) < 1 for row in rows)


def test_the_contents_of_the_weights_decide_what_is_done_and_not_their_path(net1d_run, published, tmp_path):
    moved = shutil.copy(published, tmp_path / "moved.pth")
    assert STAGES["finetune"].is_done(load_config(net1d_run, [f"finetune.weights={moved}"]))
    other = light_file(tmp_path / "other.pth")
    assert not STAGES["finetune"].is_done(load_config(net1d_run, [f"finetune.weights={other}"]))


def test_missing_weights_or_those_of_other_leads_are_one_line(net1d_run, tmp_path):
    torch.save(published_document(light_state(12)), tmp_path / "12_lead.pth")
    before = sorted(net1d_run.parent.rglob("*.safetensors"))
    for name, said in (("none.pth", "no such file; give ECGFounder's"), ("12_lead.pth", "takes 12 leads; ")):
        done = anyecg("finetune", net1d_run, f"finetune.weights={tmp_path / name}")
        lines = [line for line in done.stderr.splitlines() if line.startswith("anyecg finetune: ")]
        assert done.returncode == 2
        assert len(lines) == 1
        assert said in lines[0]
        assert "Traceback" not in done.stderr
    assert sorted(net1d_run.parent.rglob("*.safetensors")) == before


def test_weights_for_a_network_that_takes_none_are_refused():
    with pytest.raises(ConfigError, match="weights of ECGFounder are those of model = 'net1d'"):
        load_config(None, ["finetune.weights=x.pth"])


@pytest.fixture(scope="module")
def imported(published):
    """Return the safetensors file of the published one, and what the command line said."""
    path = published.with_name("imported.safetensors")
    done = anyecg("import-weights", published, "--out", path)
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_an_imported_file_gives_the_very_weights_of_the_published_one(imported, published):
    wanted, found = load_ecgfounder(published), load_ecgfounder(imported[0])
    assert (found.in_channels, found.training) == (1, False)
    full, wanted_full = published_state_dict(found), published_state_dict(wanted)
    assert list(full) == list(wanted_full)
    assert all(torch.equal(full[key], value) for key, value in wanted_full.items())
    heads = [load_ecgfounder(path, n_targets=5, seed=2).dense.weight for path in (published, imported[0])]
    assert torch.equal(*heads)


def test_an_imported_file_says_what_it_is_and_holds_what_the_network_uses(imported, published):
    document = document_of(imported[0])
    n_entries = len(Net1D(1, 150).state_dict())
    wanted = {"format": "anyecg-weights", "leads": 1, "outputs": 150, "entries": n_entries, "head": "published",
              "source_sha256": file_hash(published)}  # fmt: skip
    assert {key: document[key] for key in wanted} == wanted
    assert str(published.parent) not in json.dumps(document)
    assert f"leads 1, outputs 150, entries {n_entries}, head published, source_sha256" in imported[1]
    assert imported[0].stat().st_mode & 0o077 == 0


def test_a_fresh_head_is_imported_where_targets_are_given(published, tmp_path):
    assert import_weights(published, tmp_path / "x.safetensors", n_targets=4)["head"] == "fresh, seed 0"
    found = load_ecgfounder(tmp_path / "x.safetensors")
    assert torch.equal(found.dense.weight, load_ecgfounder(published, n_targets=4).dense.weight)
    for name, n_targets in (("x.pth", None), ("y.safetensors", 0)):
        with pytest.raises(ModelError, match="wanted a path that ends in"):
            import_weights(published, tmp_path / name, n_targets=n_targets)


def test_the_command_line_names_missing_and_unknown_entries(tmp_path):
    state = {key: value for key, value in light_state().items() if key != "dense.bias"} | {"extra.bias": torch.ones(1)}
    done = anyecg(
        "import-weights", light_file(tmp_path / "x.pth", state_dict=state), "--out", tmp_path / "x.safetensors"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "missing dense.bias; unknown extra.bias" in done.stderr
    assert not (tmp_path / "x.safetensors").exists()


def test_a_changed_or_foreign_safetensors_file_is_refused(imported, tmp_path):
    path = tmp_path / "x.safetensors"
    data = bytearray(imported[0].read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "its numbers changed since it was written" in refusal(path)
    write_tensor_file(path, load_ecgfounder(imported[0]).state_dict(), "anyecg-weights", {"leads": 12, "outputs": 150})
    assert "says (leads, outputs) = (12, 150); its weights have (1, 150)" in refusal(path)
    write_tensor_file(path, {"dense.weight": torch.ones(3, 1024)}, "anyecg-weights", {"leads": 1, "outputs": 3})
    assert "missing first_conv.conv.weight, first_conv.conv.bias" in refusal(path)
    write_tensor_file(path, {"x": torch.ones(3)}, "anyecg-export", {})
    assert "not a anyecg-weights file (format 'anyecg-export')" in refusal(path)


@pytest.mark.parametrize("kept", ["sparse", "meta"])
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, kept):
    bias = torch.zeros(150).to_sparse() if kept == "sparse" else torch.zeros(150, device="meta")
    assert "unlike dense.bias ((150,) torch.float32 torch." in refusal(
        light_file(tmp_path / "x.pth", state_dict={**light_state(), "dense.bias": bias})
    )
