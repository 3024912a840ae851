import json
import shutil

import pytest

from anyecg.app.cli import main


@pytest.fixture
def run(small_run, tmp_path):
    """Return a copy of the small run, to be damaged."""
    return shutil.copytree(small_run, tmp_path / "run")


def state_of(run):
    (folder,) = run.glob("checkpoint/*/step-*")
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def verify(folder, capsys):
    """Return (exit code, what stands in the JSON)."""
    code = main(["verify", str(folder), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_run_is_verified_with_its_shards_states_and_model(run, capsys):
    assert main(["verify", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["everything is as it was written"] * 3
    code, found = verify(run, capsys)
    assert (code, found["whole"], found["problems"]) == (0, True, [])
    assert [part["folder"] for part in found["parts"]] == [
        str(run / "shards"), str(state_of(run).parent), str(run / "model"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["pointer.json", "manifest.json", "state.safetensors", "best"])
def test_a_flip_in_a_checkpoint_is_found_with_its_file_from_every_folder(run, capsys, name):
    state = state_of(run)
    path = {"pointer.json": state.parent / name, "best": next(state.parent.glob("best-*"))}.get(name, state / name)
    flip(path)
    for folder in (run, run / "checkpoint", state.parent):
        code, found = verify(folder, capsys)
        assert (code, found["whole"]) == (2, False)
        assert [problem["file"] for problem in found["problems"]] == [str(path.relative_to(folder))]
    assert main(["verify", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"anyecg verify: {run}: {path.relative_to(run)}: ")


def test_weights_that_are_not_those_of_the_card_are_found(run, capsys):
    flip(run / "model/model.safetensors")
    for folder, name in ((run, "model/model.safetensors"), (run / "model", "model.safetensors")):
        code, found = verify(folder, capsys)
        assert code == 2
        assert [problem["file"] for problem in found["problems"]] == [name]


def test_several_problems_are_told_one_a_line(run, capsys):
    flip(run / "model/model.safetensors")
    flip(state_of(run) / "state.safetensors")
    flip(run / "shards/shard-00001.h5")
    assert main(["verify", str(run)]) == 2
    head, *lines = capsys.readouterr().err.splitlines()
    assert head.endswith("3 problems")
    assert [line.split(":")[0].split("/")[0].strip() for line in lines] == ["shard-00001.h5", "checkpoint", "model"]


def test_a_run_before_its_first_save_is_whole(run, capsys):
    shutil.rmtree(run / "model")
    state = state_of(run)
    shutil.rmtree(state)
    (state.parent / "pointer.json").unlink()
    code, found = verify(run, capsys)
    assert (code, found["parts"][1]["step"]) == (0, None)


def test_a_lost_pointer_beside_a_state_is_a_problem(run, capsys):
    (state_of(run).parent / "pointer.json").unlink()
    code, found = verify(run / "checkpoint", capsys)
    assert code == 2
    assert "missing, beside a state" in found["problems"][0]["what"]
