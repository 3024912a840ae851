import logging

import numpy as np
import pytest

from anyecg.loaders.errors import ShardError
from anyecg.loaders.source import READ_AHEAD, PairSource
from anyecg.loaders.stream import epoch_order, open_index, rows_of_rank
from anyecg.loaders.stream_config import StreamConfig

from .test_reader import flip

ORDER = {"seed": 3, "batch_size": 16, "split": "train", "horizon_min": 60}


def blocks_of(index, config, n_steps, **options):
    source = PairSource(index, config, ORDER, **options)
    try:
        return [source(step) for step in range(n_steps)]
    finally:
        source.close()


def pairs_of_epochs(index, config, n_epochs):
    return [epoch_order(index, seed=3, epoch=epoch, choice=config) for epoch in range(n_epochs)]


@pytest.mark.parametrize("chosen", [{}, {"balance": 1.0}, {"windows_per_draw": 2}, {"windows_per_sample": 3}])
def test_blocks_are_the_epochs_one_after_the_other(tiny_set, tiny_index, chosen):
    config, tables = StreamConfig(**chosen), tiny_index.tables
    source = PairSource(tiny_index, config, ORDER)
    for epoch, pairs in enumerate(pairs_of_epochs(tiny_index, config, 3)):
        assert source.n_batches(epoch) == -(-len(pairs) // 16)
        blocks = [source(step) for step in range(source.first_step(epoch), source.first_step(epoch + 1))]
        assert [block.n_pairs for block in blocks] == [len(pairs[n : n + 16]) for n in range(0, len(pairs), 16)]
        flat = pairs.reshape(-1)
        signal = np.concatenate([block.signal_BLT for block in blocks])
        np.testing.assert_array_equal(signal[:, 0], tiny_set[1][tables["pair_window"][flat]])
        labels = np.concatenate([block.label_BC for block in blocks])
        np.testing.assert_array_equal(labels, tables["draw_labels"][tables["pair_draw"][flat]])
        assert not any(block.n_substituted for block in blocks)
    source.close()


def test_a_source_asked_for_a_late_step_first_gives_what_another_gives(tiny_index):
    config = StreamConfig(balance=0.7)
    wanted = blocks_of(tiny_index, config, 60)
    for step in (59, 3, 40):
        source = PairSource(tiny_index, config, ORDER)
        np.testing.assert_array_equal(source(step).signal_BLT, wanted[step].signal_BLT)
        source.close()


@pytest.mark.parametrize("n_each", [1, 3])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 64])
def test_a_bad_chunk_is_replaced_by_the_same_pairs_on_any_number_of_ranks(tiny_set, tiny_copy, caplog, n_ranks, n_each):
    index, tables = open_index(tiny_copy), open_index(tiny_copy).tables
    first, last = flip(index, 1, np.random.default_rng(5))
    config = StreamConfig(on_damage="quarantine", windows_per_sample=n_each)
    ((pairs,),) = [pairs_of_epochs(index, config, 1)]
    n_steps = -(-len(pairs) // 16)
    with caplog.at_level(logging.WARNING):
        alone = blocks_of(index, config, n_steps)
        shared = [blocks_of(index, config, n_steps, rank=rank, n_ranks=n_ranks) for rank in range(n_ranks)]
    window = tables["pair_window"][pairs].reshape(len(pairs), n_each)
    is_bad = ((window >= first) & (window <= last)).any(1)
    assert is_bad.any()
    assert sum(block.n_substituted for block in alone) == is_bad.sum()
    signal = np.concatenate([block.signal_BLT for block in alone]).reshape(len(pairs), n_each, -1)
    np.testing.assert_array_equal(signal[~is_bad], tiny_set[1][window[~is_bad]])
    whole = {row.tobytes(): number for number, row in enumerate(tiny_set[1])}
    taken = np.array([[whole[row.tobytes()] for row in sample] for sample in signal])
    assert not ((taken >= first) & (taken <= last)).any()
    labels = np.concatenate([block.label_BC for block in alone]).reshape(len(pairs), n_each, -1)
    for sample, of_sample in zip(taken, labels, strict=True):
        for number, row in zip(sample, of_sample, strict=True):
            draws = tables["pair_draw"][tables["pair_window"] == number]
            assert row.tolist() in tables["draw_labels"][draws].tolist()
    for step, block in enumerate(alone):
        parts = [blocks[step] for blocks in shared]
        rows = [len(rows_of_rank(np.arange(block.n_pairs), rank, n_ranks)) * n_each for rank in range(n_ranks)]
        joined = np.concatenate([part.signal_BLT[:n] for part, n in zip(parts, rows, strict=True)])
        np.testing.assert_array_equal(joined, block.signal_BLT)
        assert sum(part.n_substituted for part in parts) == block.n_substituted
    said = [record for record in caplog.records if record.args and f"windows {first} to {last} of" in record.args[0]]
    assert 1 <= len(said) <= 1 + n_ranks


def test_a_bad_chunk_stops_the_source_by_default(tiny_copy):
    index = open_index(tiny_copy)
    first, last = flip(index, 1, np.random.default_rng(5))
    with pytest.raises(ShardError, match=f"windows {first} to {last} of the index are damaged"):
        blocks_of(index, StreamConfig(), 21)


def test_a_set_of_which_nothing_is_whole_stops_the_source(tiny_copy):
    index = open_index(tiny_copy)
    for row in range(5):
        flip(index, row, np.random.default_rng(row))
    with pytest.raises(ShardError, match="no whole window found in 100 trials"):
        blocks_of(index, StreamConfig(on_damage="quarantine"), 1)


@pytest.mark.parametrize("row", range(5))
def test_damage_is_named_wherever_it_lies(tiny_copy, caplog, row):
    index = open_index(tiny_copy)
    first, last = flip(index, row, np.random.default_rng(row))
    with caplog.at_level(logging.WARNING):
        blocks = blocks_of(index, StreamConfig(on_damage="quarantine", run_chunks=1, lanes=1, pool_runs=1), 21)
    assert sum(block.n_substituted for block in blocks) > 0
    assert caplog.text.count(f"windows {first} to {last} of the index are damaged") == 1


def test_an_epoch_without_a_pair_is_refused(tiny_index):
    with pytest.raises(ShardError, match="an epoch without a pair"):
        blocks_of(tiny_index, StreamConfig(patients=1e-9), 1)


@pytest.mark.parametrize(("lanes", "batch_size"), [(1, 16), (2, 16), (4, 8), (256, 16)])
def test_an_epoch_reads_each_chunk_once(tiny_index, lanes, batch_size):
    config = StreamConfig(lanes=lanes, run_chunks=1, pool_runs=1)
    source = PairSource(tiny_index, config, {**ORDER, "batch_size": batch_size})
    for step in range(source.n_batches(0) - READ_AHEAD):
        source(step)
    # Closing waits for what threads still read ahead.
    reader = source.reader
    source.close()
    chunks = tiny_index.tables["chunks"]
    assert reader.n_bytes_read == chunks[:5, 4].sum()
