import dataclasses

import numpy as np
import pytest
import torch

from anyecg.kernels.prepare import prepare
from anyecg.loaders.augment import (
    N_NOISE_STARTS,
    change,
    check_preset,
    columns,
    draw_changes,
    in_mv,
    normals,
    standardised,
)
from anyecg.loaders.errors import ShardError
from anyecg.loaders.stream_config import AugmentConfig

from .changed import EACH, FS, N_SAMPLES, changed_slowly, draw, named, windows


def test_every_augmentation_is_off_by_default():
    assert columns(AugmentConfig()) == ()
    assert draw(range(6), AugmentConfig()).shape == (6, 0)
    assert not in_mv(AugmentConfig())


@pytest.mark.parametrize("config", EACH, ids=named)
def test_changes_are_a_function_of_seed_epoch_and_pair(config):
    whole = draw(range(50), config)
    assert whole.dtype == np.float32
    assert whole.shape == (50, len(columns(config)))
    pairs = np.random.default_rng(1).permutation(50)
    for some in np.split(pairs, [3, 4, 30]):
        np.testing.assert_array_equal(draw(some, config), whole[some])
    assert (draw(range(50), config, epoch=3) != whole).any(0).all()
    assert (draw(range(50), config, seed=2) != whole).any(0).all()


def test_an_augmentation_does_not_change_the_numbers_of_another():
    every = dict(zip(columns(EACH[-1]), draw(range(50), EACH[-1]).T, strict=True))
    for config in EACH[:-1]:
        for name, drawn in zip(columns(config), draw(range(50), config).T, strict=True):
            np.testing.assert_array_equal(drawn, every[name])


def test_drawn_numbers_stay_within_the_configured_limits():
    drawn = dict(zip(columns(EACH[-1]), draw(range(5000), EACH[-1]).T, strict=True))
    assert 0 <= drawn["shift"].min() < 3
    assert N_SAMPLES - 3 < drawn["shift"].max() < N_SAMPLES
    assert (drawn["pace"].min(), drawn["pace"].max()) == pytest.approx((1 / 1.2, 1.2), abs=2e-3)
    assert (drawn["sign"] < 0).mean() == pytest.approx(0.5, abs=0.03)
    length = drawn["mask_stop"] - drawn["mask_start"]
    assert (length.min(), length.max()) == (0, 0.5 * FS)
    assert (drawn["mask_start"].min(), drawn["mask_stop"].max()) == (0, N_SAMPLES)
    for name in ("wander_mv", "noise_mv"):
        assert 0 <= drawn[name].min() < drawn[name].max() <= getattr(EACH[-1], name)
    assert np.hypot(drawn["hum_sine"], drawn["hum_cosine"]).max() <= EACH[-1].hum_mv
    assert drawn["wander_step"].min() >= np.float32(2 * np.pi * 0.1 / FS)
    assert drawn["wander_step"].max() <= np.float32(2 * np.pi * 0.5 / FS)
    assert drawn["noise_start"].max() < N_NOISE_STARTS


def test_the_shortest_shift_and_mask_are_no_change():
    config = AugmentConfig(shift_seconds=0.001, mask_seconds=0.001)
    assert not draw(range(50), config)[:, 0].any()
    assert (draw(range(50), config)[:, 1] == draw(range(50), config)[:, 2]).all()


def test_the_noise_table_is_standard_normal_and_begins_the_same_for_every_length():
    table = normals(5000)
    assert table.shape == (N_NOISE_STARTS + 5000,)
    assert abs(table.mean()) < 0.02
    assert table.std() == pytest.approx(1, abs=0.02)
    assert (table**4).mean() == pytest.approx(3, abs=0.2)
    assert abs(np.corrcoef(table[:-1], table[1:])[0, 1]) < 0.02
    np.testing.assert_array_equal(normals(10), table[: N_NOISE_STARTS + 10])


@pytest.mark.parametrize("n_leads", [1, 3])
@pytest.mark.parametrize("config", [AugmentConfig(), *EACH], ids=named)
def test_the_torch_twin_agrees_with_numpy_in_float64(config, n_leads):
    signal_BLT, scale_BL1 = windows(6, n_leads)
    changes_Bn = draw(range(6), config)
    wanted = changed_slowly(signal_BLT, scale_BL1, changes_Bn, config)
    found = standardised(*map(torch.from_numpy, (signal_BLT, scale_BL1, changes_Bn)), config, fs=FS)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-3)


def test_without_augmentation_the_torch_twin_is_the_kernel_of_preparation():
    signal_BLT, scale_BL1 = windows(6)
    wanted = prepare((signal_BLT * scale_BL1).reshape(6, -1), preset="none")
    found = standardised(*map(torch.from_numpy, (signal_BLT, scale_BL1, np.empty((6, 0)))), AugmentConfig(), fs=FS)
    np.testing.assert_allclose(found[:, 0].numpy(), wanted, atol=1e-4)


def test_a_beat_in_the_middle_stays_there_and_lasts_as_much_longer_as_the_window_is_slower():
    time = np.arange(N_SAMPLES) + 0.5 - N_SAMPLES / 2
    x_BLT = torch.from_numpy(np.exp(-((time / 40) ** 2) / 2).astype(np.float32))[None, None].repeat(20, 1, 1)
    config = AugmentConfig(stretch=0.2)
    changes_Bn = draw(range(20), config)
    found = change(x_BLT, torch.from_numpy(changes_Bn), config, fs=FS)[:, 0].numpy()
    for x_T, pace in zip(found, changes_Bn[:, 0], strict=True):
        np.testing.assert_allclose(x_T, np.exp(-((pace * time / 40) ** 2) / 2), atol=1e-3)


def test_flipping_all_windows_turns_every_one_upside_down():
    config, x_BLT = AugmentConfig(flip=1.0), torch.randn(5, 2, N_SAMPLES)
    assert torch.equal(change(x_BLT, torch.from_numpy(draw(range(5), config)), config, fs=FS), -x_BLT)


@pytest.mark.parametrize("name", ["wander_mv", "hum_mv"])
def test_what_filters_would_take_out_is_refused_for_filtered_windows(tiny_index, name):
    config = AugmentConfig(**{name: 0.1})
    check_preset(config, tiny_index)
    filtered = dataclasses.replace(tiny_index, head={**tiny_index.head, "preset": "ecgfounder"})
    check_preset(AugmentConfig(noise_mv=1.0), filtered)
    with pytest.raises(ShardError, match=rf"preset 'ecgfounder'.*stream\.{name} = 0\.1.*shard\.preset = 'none'"):
        check_preset(config, filtered)


def test_no_pairs_have_no_changes():
    assert draw_changes(np.empty(0, np.int64), seed=1, epoch=0, config=EACH[-1], fs=FS, n_samples=9).shape == (0, 13)
