import errno
import json
import os
import random
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from anyecg.loaders.errors import ModelError, UpgradeNeeded
from anyecg.loaders.files import FORMATS, file_hash, replacing, write_document
from anyecg.train.checkpoint import Checkpoint
from anyecg.train.tensors import write_tensors

from ..disk import Failing, harm, lay, lose_power, power_losses, record_changes, watched

NUMBERS = {"curve": [[0.1, float("nan")]], "best_value": float("inf"), "sums": {"loss": 1 / 3}}


def save(folder, step):
    """Save a made-up state of a step; return it."""
    tensors = {"model.w": torch.arange(6.0).reshape(2, 3) + step, "exp_avg.w": torch.full((5,), 1 / step)}
    best = f"best-{step:08d}.safetensors"
    with replacing(folder / best) as temporary:
        write_tensors(temporary, {"w": tensors["model.w"]})
    state = NUMBERS | {"step": step}
    Checkpoint(folder).save(step, tensors, state, beside=[best])
    return tensors, state


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a checkpoint with two saves behind it."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    for step in (3, 7):
        save(path, step)
    return path


def files(folder):
    """Return every file of a checkpoint, by path."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def step_of(folder):
    found = Checkpoint(folder).load()
    return found and found[1]["step"]


def test_a_state_comes_back_bit_by_bit(folder):
    tensors, state = save(folder, 9)
    found, numbers = Checkpoint(folder).load()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert json.dumps(numbers) == json.dumps(state)


def test_only_the_newest_state_and_its_best_weights_are_kept(folder):
    names = ["best-00000007.safetensors", "pointer.json", "step-00000007"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert Checkpoint(folder).problems() == ({"step": 7, "n_bytes": sum(map(len, files(folder).values()))}, [])


def test_a_folder_without_a_state_is_a_fresh_start(tmp_path):
    assert Checkpoint(tmp_path).load() is None
    assert Checkpoint(tmp_path / "none").problems() == ({"step": None, "n_bytes": 0}, [])


def test_a_second_save_of_a_step_changes_nothing(folder):
    before = files(folder)
    Checkpoint(folder).save(7, {"other": torch.zeros(1)}, {})
    assert files(folder) == before


@pytest.mark.parametrize("form", ["anyecg-checkpoint", "anyecg-manifest"])
def test_another_version_needs_an_upgrade_by_name(tmp_path, form):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, form, 77)
        save(folder, 8)
    with pytest.raises(UpgradeNeeded, match=f"upgrade needed: {form} version 77"):
        Checkpoint(folder).load()
    _, (problem,) = Checkpoint(folder).problems()
    assert "upgrade needed" in problem.what


def test_every_file_that_is_missing_a_link_or_of_another_kind_is_refused(folder, tmp_path):
    for text in files(folder):
        path, aside = Path(text), tmp_path / "aside"
        name = str(path.relative_to(folder))
        path.rename(aside)
        if name != "pointer.json":
            with pytest.raises(ModelError, match=f"{name}: missing .*; remove .* and run 'anyecg finetune' again"):
                Checkpoint(folder).load()
        assert [problem.file for problem in Checkpoint(folder).problems()[1]] == [name]
        path.symlink_to(aside)
        with pytest.raises(ModelError, match=f"{name}: not a plain file; links and the like are refused"):
            Checkpoint(folder).load()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(ModelError, match=f"{name}: not a plain file"):
            Checkpoint(folder).load()
        path.unlink()
        aside.rename(path)
    assert step_of(folder) == 7


def test_a_state_in_a_linked_folder_is_refused(folder, tmp_path):
    (folder / "step-00000007").rename(tmp_path / "elsewhere")
    (folder / "step-00000007").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="step-00000007: not a folder"):
        Checkpoint(folder).load()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user_are_refused(folder):
    for text in [*files(folder), str(folder / "step-00000007")]:
        os.chown(text, 12345, -1)
        with pytest.raises(ModelError, match="belongs to user 12345, not to you"):
            Checkpoint(folder).load()
        os.chown(text, 0, -1)


@pytest.mark.parametrize("name", ["../x", "/etc", "..", "", None, 7, "step-00000007/../../x", "step-1\n"])
def test_names_that_lead_elsewhere_are_refused(folder, name):
    shutil.copytree(folder / "step-00000007", folder.parent / "x")
    write_document(folder / "pointer.json", "anyecg-checkpoint", {"folder": name, "sha256": "0"})
    with pytest.raises(ModelError, match=r"pointer\.json: folder .*; wanted a name as step-"):
        Checkpoint(folder).load()


@pytest.mark.parametrize(
    "change", [{"files": {}}, {"files": None}, {"beside": {"../x": "0"}}, {"beside": []}, {"state": {}}]
)
def test_a_manifest_of_another_make_is_refused(folder, change):
    path = folder / "step-00000007/manifest.json"
    manifest = {
        key: value for key, value in json.loads(path.read_text()).items() if key in ("files", "beside", "state")
    }
    write_document(path, "anyecg-manifest", manifest | change)
    write_document(folder / "pointer.json", "anyecg-checkpoint", {"folder": "step-00000007", "sha256": file_hash(path)})
    with pytest.raises(ModelError, match=r"manifest\.json"):
        Checkpoint(folder).load()


def test_every_flip_cut_and_zeroed_page_is_found_with_its_file(folder):
    """Short form of benchmarks/flip_checkpoints.py."""
    rng, outcomes = random.Random(6), Counter()
    whole = files(folder)
    for number in range(60):
        text = list(whole)[number % len(whole)]
        kind, harmed = harm(whole[text], rng, [])
        if harmed == whole[text]:
            continue
        Path(text).write_bytes(harmed)
        (problem,) = Checkpoint(folder).problems()[1]
        assert folder / problem.file == Path(text), (kind, problem)
        with pytest.raises(ModelError):
            Checkpoint(folder).load()
        Path(text).write_bytes(whole[text])
        outcomes[kind] += 1
    assert min(outcomes[kind] for kind in ("flip", "cut", "zero")) > 0


def test_what_a_kill_left_never_disturbs_the_next_save(folder):
    for name in (".step-00000009.tmp", "step-00000009"):
        (folder / name).mkdir()
        (folder / name / "state.safetensors").write_bytes(b"half")
    (folder / ".step-00000005.tmp").write_bytes(b"a file")
    (folder / "step-00000004").symlink_to(folder.parent)
    for name in (".best-00000009.safetensors.17.tmp", ".pointer.json.17.tmp", "best-00000002.safetensors"):
        (folder / name).write_bytes(b"half")
    assert step_of(folder) == 7
    save(folder, 9)
    assert step_of(folder) == 9
    assert sorted(path.name for path in folder.iterdir()) == [
        "best-00000009.safetensors",
        "pointer.json",
        "step-00000009",
    ]
    assert folder.parent.is_dir()


def test_a_save_onto_a_damaged_pointer_is_refused(folder):
    (folder / "pointer.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match=r"pointer.json: .*; remove"):
        save(folder, 9)


def test_any_change_that_fails_leaves_the_old_state_or_the_new_one(folder):
    whole = files(folder)
    counting = Failing(None, 0)
    with watched(str(folder), counting):
        save(folder, 9)
    found = Counter()
    for k in range(counting.n_calls):
        lay(whole, folder)
        failing = Failing(k, (errno.ENOSPC, errno.EIO, errno.EDQUOT)[k % 3])
        with watched(str(folder), failing), suppress(OSError):
            save(folder, 9)
        found[step_of(folder)] += 1
        save(folder, 9)
        assert step_of(folder) == 9
        assert not list(folder.glob(".*")), failing.what
    assert found.keys() == {7, 9}


def test_a_full_disk_is_told_with_the_file(folder):
    def full(name, path, descriptor, arguments, call):
        if name == "pwrite" and path.endswith("state.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return call()

    with pytest.raises(OSError, match=r"No space left on device: .*state\.safetensors"), watched(str(folder), full):
        save(folder, 9)
    assert step_of(folder) == 7
    assert not list(folder.glob(".step-*"))


def test_after_a_power_loss_the_old_state_or_the_new_one_is_whole(folder):
    whole = files(folder)
    steps = record_changes(folder, lambda: save(folder, 9))
    found = Counter()
    for at, variant, rng in [(1, "lost", None), *power_losses(40, seed=5)]:
        state = lose_power(whole, steps[: round(at * len(steps))], str(folder), variant, rng)
        lay(state, folder)
        found[step_of(folder)] += 1
        save(folder, 9)
        assert step_of(folder) == 9
    assert found.keys() == {7, 9}
