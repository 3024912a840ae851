import shutil

import pytest
import torch
from mpi4py import MPI

from anyecg.loaders.errors import ModelError
from anyecg.train.export import export_model
from anyecg.train.finetune_config import FinetuneConfig
from anyecg.train.initial import initial_network
from anyecg.train.model import open_model

from ..conftest import anyecg, write_small_config
from .models import make_model


def start(index, weights, *, targets=None, **config):
    config = FinetuneConfig(weights=str(weights), **config)
    targets = index.targets if targets is None else targets
    return initial_network(config, index, MPI.COMM_SELF, targets=targets, seed=5, fresh=True)


def differing(network, other):
    """Return the names of the entries in which two networks differ."""
    one, two = network.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    return {key for key in one if not torch.equal(one[key], two[key])}


def test_a_model_of_the_same_targets_is_taken_whole_from_either_form(small_run, small_index, tmp_path):
    model = open_model(small_run / "model")[0]
    export_model(small_run / "model", "safetensors", tmp_path / "one.safetensors")
    for weights in (small_run / "model", tmp_path / "one.safetensors"):
        network = start(small_index, weights)
        assert differing(network, model) == set()
        assert network.training


@pytest.mark.parametrize("change", [{"targets": ("a", "b", "c")}, {"head": "exclusive"}])
def test_other_targets_or_another_head_get_a_head_of_the_seed(small_run, small_index, change):
    model = open_model(small_run / "model")[0]
    network = start(small_index, small_run / "model", **change)
    assert differing(network, model) == {"dense.weight", "dense.bias"}
    assert differing(network, start(small_index, small_run / "model", **change)) == set()


def test_a_head_of_several_windows_is_added(small_run, small_index):
    network = start(small_index, small_run / "model", join="features")
    assert network.several is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "s4d"}, "a model 's4d'; found finetune.model = 'resnet'"),
        ({"fs": 250, "samples": 2500}, "made for windows of 250 Hz"),
        ({"leads": ("I", "II")}, "takes 2 leads; .* holds 1"),
    ],
)
def test_a_model_for_other_windows_or_of_another_network_is_refused(small_index, tmp_path, changes, said):
    with pytest.raises(ModelError, match=said):
        start(small_index, make_model(tmp_path / "model", **changes))


def test_what_is_no_start_is_refused_before_any_stage_runs(tmp_path):
    config = write_small_config(tmp_path, n_records=12)
    make_model(tmp_path / "s4d", model="s4d")
    for weights, said in (("none", "no such file; give ECGFounder's"), ("s4d", "a model 's4d'"), (".", "holds no")):
        done = anyecg("run", config, f"finetune.weights={tmp_path / weights}")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert said in done.stderr
    assert not (tmp_path / "run" / "cohort").exists()


def test_only_the_head_moves_where_only_the_head_is_trained(small_run, tmp_path):
    for name in ("cohort", "shards"):
        shutil.copytree(small_run / name, tmp_path / "run" / name)
    config = write_small_config(tmp_path)
    changes = [f"finetune.weights={small_run / 'model'}", "finetune.train=head", "finetune.epochs=1"]
    assert anyecg("cohort", config).returncode == 0
    done = anyecg("finetune", config, *changes)
    assert done.returncode == 0, done.stderr
    model, card = open_model(tmp_path / "run" / "model")
    moved = differing(model, open_model(small_run / "model")[0])
    assert moved == {"dense.weight", "dense.bias"}
    assert card["from_weights"]
