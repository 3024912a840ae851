import numpy as np
import pytest

from anyecg.kernels.prepare import prepare
from anyecg.loaders.dali import StreamConfig, augmentation, make_pipeline, to_torch


def blocks(n_batches, n_leads=1, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(n_batches):
        signal = rng.integers(-32767, 32767, (6, n_leads, 800)).astype(np.int16)
        yield [signal, rng.random((6, 1, 1)).astype(np.float32) * 1e-4, rng.integers(-1, 2, (6, 3)).astype(np.int8)]


def run(source, n_batches, **options):
    pipeline = make_pipeline(source, batch_size=6, n_samples=800, prefetch=2, **options)
    return [to_torch(pipeline.run()) for _ in range(n_batches)]


@pytest.mark.parametrize("n_leads", [1, 12])
def test_each_lead_of_each_window_is_standardised(n_leads):
    batches = list(blocks(3, n_leads))
    for (signal, scale, labels), (x, found) in zip(
        batches, run(lambda n: batches[n % 3], 3, augmented=False), strict=True
    ):
        wanted = prepare((signal * scale).reshape(-1, 800), preset="none").reshape(signal.shape)
        np.testing.assert_allclose(x.numpy(), wanted, atol=1e-4)
        np.testing.assert_array_equal(found.numpy(), labels)


def test_a_flat_window_becomes_zeros():
    source = [np.zeros((1, 1, 800), np.int16), np.ones((1, 1, 1), np.float32), np.zeros((1, 1), np.int8)]
    assert not run(lambda _: source, 1, augmented=False)[0][0].any()


def test_batches_may_differ_in_length():
    batches = [[part[:n] for part in block] for n, block in zip((6, 1, 4), blocks(3), strict=True)]
    assert [len(x) for x, _ in run(lambda n: batches[n % 3], 3, augmented=False)] == [6, 1, 4]


def test_augmentation_shifts_circularly_and_adds_the_drawn_wander():
    ((signal, scale, labels),) = blocks(1)
    pairs = np.arange(6)
    shift, wander = augmentation(pairs, seed=1, epoch=2, config=StreamConfig(shift_seconds=1.0, wander_mv=0.5), fs=500)
    assert ((shift >= 0) & (shift < 500)).all()
    mv = np.stack([np.roll(row, -n, axis=1) for row, n in zip(signal * scale, shift[:, 0], strict=True)])
    time = np.arange(800, dtype=np.float64)
    mv = mv + (wander[:, :1] * np.sin(wander[:, 1:2] * time + wander[:, 2:]))[:, None]
    ((x, _),) = run(lambda _: [signal, scale, labels, shift, wander], 1, augmented=True)
    np.testing.assert_allclose(x.numpy(), prepare(mv.reshape(6, 800), preset="none").reshape(6, 1, 800), atol=2e-3)


def test_augmentation_is_a_function_of_seed_epoch_and_pair():
    config = StreamConfig(shift_seconds=10.0, wander_mv=0.1)
    shift, wander = augmentation(np.arange(50), seed=1, epoch=2, config=config, fs=500)
    some = augmentation(np.array([7, 30]), seed=1, epoch=2, config=config, fs=500)
    np.testing.assert_array_equal(some[0], shift[[7, 30]])
    np.testing.assert_array_equal(some[1], wander[[7, 30]])
    assert (augmentation(np.arange(50), seed=1, epoch=3, config=config, fs=500)[0] != shift).any()
    shift, wander = augmentation(np.arange(50), seed=1, epoch=2, config=StreamConfig(), fs=500)
    assert not shift.any()
    assert not wander[:, 0].any()
