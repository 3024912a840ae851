"""Augmentation written slowly in float64, the oracle of the torch and DALI twins."""

import numpy as np

from anyecg.loaders.augment import columns, draw_changes, normals
from anyecg.loaders.stream_config import AugmentConfig

FS, N_SAMPLES = 500, 800
ALL = {
    "noise_mv": 0.1, "mask_seconds": 0.5, "shift_seconds": 10.0, "stretch": 0.2, "flip": 0.5, "wander_mv": 0.3,
    "hum_mv": 0.2, "hum_hz": 50,
}  # fmt: skip
EACH = [
    AugmentConfig(noise_mv=0.1), AugmentConfig(mask_seconds=0.5), AugmentConfig(shift_seconds=10.0),
    AugmentConfig(stretch=0.2), AugmentConfig(flip=0.5), AugmentConfig(wander_mv=0.3), AugmentConfig(hum_mv=0.2),
    AugmentConfig(**ALL),
]  # fmt: skip


def named(config):
    """Return what a config switches on, for the name of a test."""
    return " ".join(sorted(config.model_fields_set))


def windows(n_windows, n_leads=1, seed=1):
    """Return random int16 windows and their scales; of several leads, the second one is missing in every third."""
    rng = np.random.default_rng(seed)
    signal_BLT = rng.integers(-32767, 32767, (n_windows, n_leads, N_SAMPLES)).astype(np.int16)
    scale_BL1 = (rng.random((n_windows, n_leads, 1)) * 1e-4 + 1e-6).astype(np.float32)
    if n_leads > 1:
        signal_BLT[::3, 1], scale_BL1[::3, 1] = 0, 1
    return signal_BLT, scale_BL1


def draw(pairs, config, *, seed=1, epoch=2):
    """Return the changes of some pairs."""
    return draw_changes(
        np.array(pairs, np.int64), seed=seed, epoch=epoch, config=config, fs=FS, n_samples=N_SAMPLES
    )  # fmt: skip


def changed_slowly(signal_BLT, scale_BL1, changes_Bn, config):
    """Return the windows in mV, changed and standardised, float64."""
    time, out = np.arange(N_SAMPLES), []
    for signal_LT, scale, row in zip(signal_BLT, scale_BL1, changes_Bn.astype(float), strict=True):
        drawn = dict(zip(columns(config), row, strict=True))
        x_LT = signal_LT * scale.astype(float)
        if "shift" in drawn:
            x_LT = np.roll(x_LT, -int(drawn["shift"]), axis=1)
        if "pace" in drawn:
            at = drawn["pace"] * (time + 0.5) + drawn["pace_first"] - 0.5
            x_LT = np.stack([np.interp(at, time, x_T) for x_T in x_LT])
        if "sign" in drawn:
            x_LT = x_LT * drawn["sign"]
        if "wander_mv" in drawn:
            x_LT = x_LT + drawn["wander_mv"] * np.sin(drawn["wander_step"] * time + drawn["wander_phase"])
        if "hum_sine" in drawn:
            angle = 2 * np.pi * config.hum_hz * time / FS
            x_LT = x_LT + drawn["hum_sine"] * np.sin(angle) + drawn["hum_cosine"] * np.cos(angle)
        if "noise_mv" in drawn:
            first = int(drawn["noise_start"])
            noise = normals(x_LT.size)[first : first + x_LT.size].astype(float)
            x_LT = x_LT + drawn["noise_mv"] * noise.reshape(x_LT.shape)
        if "mask_start" in drawn:
            x_LT[:, int(drawn["mask_start"]) : int(drawn["mask_stop"])] = 0
        if len(x_LT) > 1:
            x_LT[scale[:, 0] == 1] = 0
        centred = x_LT - x_LT.mean(1, keepdims=True)
        out.append(centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-12))
    return np.stack(out)
