import gc
import subprocess
import sys

import numpy as np
import pytest
import torch

from anyecg.kernels.prepare import prepare
from anyecg.loaders.augment import standardised
from anyecg.loaders.counters import Counters
from anyecg.loaders.dali import DaliBatches, make_pipeline
from anyecg.loaders.errors import ShardError
from anyecg.loaders.source import Block, PairSource
from anyecg.loaders.stream_config import AugmentConfig, StreamConfig

from .changed import ALL, EACH, FS, N_SAMPLES, changed_slowly, draw, named, windows

PLAIN = AugmentConfig()
ORDER = {"seed": 5, "batch_size": 16, "split": "train", "horizon_min": 60}


def block(seed=1, n_leads=1, config=PLAIN, n_windows=6):
    signal_BLT, scale_BL1 = windows(n_windows, n_leads, seed)
    label_BC = np.random.default_rng(seed).integers(-1, 2, (n_windows, 3)).astype(np.int8)
    return Block(signal_BLT, scale_BL1, label_BC, draw(range(n_windows), config), n_windows, 0)


def run(blocks, n_leads=1, config=PLAIN):
    pipeline = make_pipeline(
        lambda number: blocks[number % len(blocks)], batch_size=6, shape=(n_leads, N_SAMPLES), fs=FS, config=config
    )
    for _ in blocks:
        yield [torch.from_dlpack(output.as_tensor()) for output in pipeline.run()]


def equal(batch, other):
    return torch.equal(batch.x_BLT, other.x_BLT) and torch.equal(batch.label_BC, other.label_BC)


@pytest.mark.parametrize("n_leads", [1, 12])
def test_each_lead_of_each_window_is_standardised(n_leads):
    blocks = [block(seed, n_leads) for seed in range(3)]
    for given, (x_BLT, label_BC) in zip(blocks, run(blocks, n_leads), strict=True):
        mv_BLT = given.signal_BLT * given.scale_BL1
        wanted = prepare(mv_BLT.reshape(-1, N_SAMPLES), preset="none").reshape(mv_BLT.shape)
        np.testing.assert_allclose(x_BLT.numpy(), wanted, atol=1e-4)
        np.testing.assert_array_equal(label_BC.numpy(), given.label_BC)


@pytest.mark.parametrize("value", [0, 1, -7, 32767])
def test_a_constant_window_becomes_zeros(value):
    given = block()
    given.signal_BLT[:] = value
    ((x_BLT, _),) = run([given])
    assert x_BLT.abs().max() < 0.05


def test_batches_may_differ_in_length():
    assert [len(x_BLT) for x_BLT, _ in run([block(n_windows=n) for n in (6, 1, 4)])] == [6, 1, 4]


@pytest.mark.parametrize("n_leads", [1, 3])
@pytest.mark.parametrize("config", [AugmentConfig(), *EACH], ids=named)
def test_dali_torch_and_numpy_augment_alike(config, n_leads):
    given = block(1, n_leads, config)
    ((x_BLT, _),) = run([given], n_leads, config)
    arrays = given.signal_BLT, given.scale_BL1, given.changes_Bn
    np.testing.assert_allclose(x_BLT.numpy(), changed_slowly(*arrays, config), atol=1e-3)
    np.testing.assert_allclose(x_BLT.numpy(), standardised(*map(torch.from_numpy, arrays), config, fs=FS), atol=1e-3)


def test_a_mask_may_be_empty_at_either_end_or_cover_the_window():
    config = AugmentConfig(mask_seconds=1.0)
    edges = [(0, 0), (N_SAMPLES, N_SAMPLES), (0, N_SAMPLES), (0, 1), (N_SAMPLES - 1, N_SAMPLES), (5, 5)]
    given = block(config=config)._replace(changes_Bn=np.array(edges, np.float32))
    ((x_BLT, _),) = run([given], config=config)
    wanted = changed_slowly(given.signal_BLT, given.scale_BL1, given.changes_Bn, config)
    np.testing.assert_allclose(x_BLT.numpy(), wanted, atol=1e-3)


def test_only_the_configured_augmentations_are_nodes_of_the_graph():
    def nodes(**config):
        serialized = make_pipeline(
            lambda _: block(), batch_size=6, shape=(1, N_SAMPLES), fs=FS, config=AugmentConfig(**config)
        ).serialize()
        return {name for name in (b"Normalize", b"Slice", b"Cat", b"Constant", b"Arithm") if name in serialized}

    assert nodes() == {b"Normalize"}
    assert nodes(shift_seconds=1.0) >= {b"Normalize", b"Slice", b"Cat"}
    assert b"Cat" not in nodes(noise_mv=1.0, hum_mv=1.0, wander_mv=1.0, mask_seconds=1.0)
    assert b"Slice" not in nodes(hum_mv=1.0, wander_mv=1.0, mask_seconds=1.0)


@pytest.fixture
def make_batches(tiny_index):
    made = []

    def make(**options):
        made.append(DaliBatches(PairSource(tiny_index, StreamConfig(**ALL), ORDER), prefetch=2, **options))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def test_tensors_keep_their_values_while_and_after_the_pipeline_runs(make_batches):
    batches = make_batches()
    held = [batches.next() for _ in range(12)]
    copies = [(batch.x_BLT.clone(), batch.label_BC.clone()) for batch in held]
    batches.close()
    del batches
    gc.collect()
    again = make_batches()
    for batch, (x_BLT, label_BC) in zip(held, copies, strict=True):
        assert torch.equal(batch.x_BLT, x_BLT)
        assert torch.equal(batch.label_BC, label_BC)
        assert equal(batch, again.next())


def test_starting_at_a_step_gives_what_running_to_it_gives(make_batches):
    from_start, later = make_batches(), make_batches(first_step=30)
    for _ in range(30):
        from_start.next()
    for _ in range(5):
        assert equal(from_start.next(), later.next())


def test_a_checkpoint_of_dali_continues_with_the_very_same_batches(make_batches):
    batches = make_batches(first_step=3)
    for _ in range(5):
        batches.next()
    checkpoint = batches.checkpoint()
    resumed = make_batches(first_step=3, checkpoint=checkpoint)
    for _ in range(5):
        assert equal(batches.next(), resumed.next())


RESUME = """
import sys
from pathlib import Path
from anyecg.loaders.dali import DaliBatches
from anyecg.loaders.source import PairSource
from anyecg.loaders.stream import open_index
from anyecg.loaders.stream_config import StreamConfig
folder, checkpoint, config, out = sys.argv[1:]
source = PairSource(open_index(folder), StreamConfig.model_validate_json(config), dict(
    seed=5, batch_size=16, split="train", horizon_min=60))
batches = DaliBatches(source, prefetch=2, checkpoint=Path(checkpoint).read_bytes())
Path(out).write_bytes(b"".join(batches.next().x_BLT.numpy().tobytes() for _ in range(5)))
batches.close()
"""


def test_a_checkpoint_of_dali_continues_in_another_process(make_batches, tiny_set, tmp_path):
    batches = make_batches()
    for _ in range(5):
        batches.next()
    (tmp_path / "checkpoint").write_bytes(batches.checkpoint())
    options = [tiny_set[0], tmp_path / "checkpoint", StreamConfig(**ALL).model_dump_json(), tmp_path / "out"]
    subprocess.run([sys.executable, "-c", RESUME, *map(str, options)], check=True, timeout=120)
    wanted = b"".join(batches.next().x_BLT.numpy().tobytes() for _ in range(5))
    assert (tmp_path / "out").read_bytes() == wanted


def test_an_error_of_the_source_keeps_its_type(tiny_index):
    class Failing(PairSource):
        def __call__(self, step, buffer=None):
            if step == 6:
                raise ShardError("windows 3 to 9 are damaged")
            return super().__call__(step, buffer)

    batches = DaliBatches(Failing(tiny_index, StreamConfig(), ORDER), prefetch=3)
    with pytest.raises(ShardError, match=r"^windows 3 to 9 are damaged$"):
        [batches.next() for _ in range(7)]
    batches.close()


def test_the_time_of_each_stage_is_counted(make_batches):
    counters = Counters()
    batches = make_batches(counters=counters)
    for _ in range(4):
        batches.next()
    totals = counters.totals()
    assert (totals["dali"].events, totals["dali"].n_windows) == (4, 64)
    assert totals["copy"].n_bytes == 64 * 50 * 4
