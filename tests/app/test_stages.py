import pytest

from anyecg.app.config import load_config
from anyecg.app.stages import STAGES


@pytest.fixture
def hash_with(tiny_set):
    """Return a function that gives the hash of the finetune stage on the tiny shards, with some keys set."""

    def wanted(*overrides):
        return STAGES["finetune"].wanted(load_config(None, [f"folder={tiny_set[0].parent}", *overrides]))

    return wanted


@pytest.mark.parametrize(
    "override",
    [
        "stream.prefetch=9",
        "stream.read_threads=5",
        "stream.workers=3",
        "stream.loader=torch",
        "stream.on_damage=quarantine",
    ],
)
def test_how_batches_are_prepared_is_no_part_of_the_training_hash(hash_with, override):
    assert hash_with(override) == hash_with()


@pytest.mark.parametrize("override", ["stream.noise_mv=0.1", "stream.lanes=2"])
def test_what_changes_the_weights_changes_the_training_hash(hash_with, override):
    assert hash_with(override) != hash_with()
