"""Augmentations of a window, each pair's own numbers a function of (seed, epoch, pair) alone."""

import math
from functools import lru_cache

import numpy as np

from anyecg.kernels.counter import uniform
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import digest
from anyecg.loaders.stream_config import filtered_away

N_NOISE_STARTS = 1 << 16
PACE_STEPS = 1 << 10
# Added to a variance, so that a constant window becomes zeros: far below one step of any window that is not constant.
EPSILON_MV, EPSILON_STEPS = 1e-12, 1e-2
# Of windows of zeros: a step of 1 mV is far beyond any other window's.
MISSING_SCALE = 1.0


def check_preset(config, index):
    """Raise ShardError when the windows of ``index`` are filtered and wander or hum is to be added to them."""
    preset = index.head["preset"]
    if name := filtered_away(config, preset):
        raise ShardError(
            f"{index.folder}: preset '{preset}', whose filters take out what stream.{name} = {getattr(config, name)} "
            f"adds; set it to 0, or make shards with shard.preset = 'none'"
        )


def columns(config):
    """Return the names of the columns of ``draw_changes``: those of the augmentations that are on."""
    by_switch = {
        "shift_seconds": ("shift",),
        "stretch": ("pace", "pace_first"),
        "flip": ("sign",),
        "wander_mv": ("wander_mv", "wander_step", "wander_phase"),
        "hum_mv": ("hum_sine", "hum_cosine"),
        "noise_mv": ("noise_mv", "noise_start"),
        "mask_seconds": ("mask_start", "mask_stop"),
    }
    return tuple(name for switch, names in by_switch.items() if getattr(config, switch) for name in names)


def in_mv(config):
    """Say whether an augmentation adds millivolts; else the scale of a window cancels in its z-score."""
    return bool(config.wander_mv or config.hum_mv or config.noise_mv)


def draw_changes(pairs, *, seed, epoch, config, fs, n_samples):
    """Draw each pair's changes as a function of (seed, epoch, pair) alone.

    Parameters
    ----------
    pairs : int64 array, shape (B,)
    config : AugmentConfig
    fs : int
        Sampling rate in Hz.
    n_samples : int
        Samples of a window.

    Returns
    -------
    float32 array, shape (B, n)
        The columns that ``columns(config)`` names, in this order: shift in samples, below ``n_samples``; samples of the
        window that one of the stretched window lasts, and where its left edge lies; -1 to turn it upside down, else 1;
        amplitude of the wander in mV, its step in rad a sample and its phase in rad; factors in mV of the hum's sine
        and cosine; SD of the noise in mV and where it starts in ``normals``; first sample of the mask and the sample
        after its last.
    """

    def u(what):
        return uniform(int(digest([what, seed, epoch]), 16), pairs)

    drawn = {}
    if config.shift_seconds:
        drawn["shift"] = np.floor(u("shift") * min(config.shift_seconds * fs, n_samples))
    if config.stretch:
        # As often faster as slower, about the middle of the window; in steps that keep each sum of them exact in
        # float32, so that it does not matter in which order a device adds them.
        drawn["pace"] = np.round((1 + config.stretch) ** (2 * u("stretch") - 1) * PACE_STEPS) / PACE_STEPS
        drawn["pace_first"] = n_samples / 2 * (1 - drawn["pace"])
    if config.flip:
        drawn["sign"] = np.where(u("flip") < config.flip, -1, 1)
    if config.wander_mv:
        drawn["wander_mv"] = u("wander") * config.wander_mv
        drawn["wander_step"] = 2 * math.pi * (0.1 + 0.4 * u("wander frequency")) / fs
        drawn["wander_phase"] = 2 * math.pi * u("wander phase")
    if config.hum_mv:
        amplitude, phase = u("hum") * config.hum_mv, 2 * math.pi * u("hum phase")
        drawn["hum_sine"], drawn["hum_cosine"] = amplitude * np.cos(phase), amplitude * np.sin(phase)
    if config.noise_mv:
        drawn["noise_mv"] = u("noise") * config.noise_mv
        drawn["noise_start"] = np.floor(u("noise start") * N_NOISE_STARTS)
    if config.mask_seconds:
        length = np.floor(u("mask length") * (min(round(config.mask_seconds * fs), n_samples) + 1))
        drawn["mask_start"] = np.floor(u("mask start") * (n_samples - length + 1))
        drawn["mask_stop"] = drawn["mask_start"] + length
    changes_Bn = np.empty((len(pairs), len(drawn)), np.float32)
    for column, name in enumerate(columns(config)):
        changes_Bn[:, column] = drawn[name]
    return changes_Bn


@lru_cache(maxsize=2)
def normals(n_values):
    """Return the table that all noise is cut from: 2^16 + n_values standard normal numbers, float32, read-only.

    A pair's noise is its own SD times ``n_values`` = leads x samples of them from its own start on; so no random
    generator of a device decides it. Box and Muller's method on numbers of our own counter.
    """
    counter = np.arange(N_NOISE_STARTS + n_values)
    radius, angle = uniform(1, counter), uniform(2, counter)
    table = (np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * math.pi * angle)).astype(np.float32)
    table.flags.writeable = False
    return table


def hum_waves(config, *, fs, n_samples):
    """Return sine and cosine of the mains, float32 (samples,) each."""
    angle = 2 * math.pi * config.hum_hz / fs * np.arange(n_samples)
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)


def standardised(signal_BLT, scale_BL1, changes_Bn, config, *, fs):
    """Scale, change and standardise windows in torch, on the device they are on: what DALI's pipeline does.

    Parameters
    ----------
    signal_BLT : int16 tensor
    scale_BL1 : float32 tensor
        mV a step; ``MISSING_SCALE`` marks a lead that is missing and stays zeros, whatever is added to the others.
    changes_Bn : float32 tensor
        Of ``draw_changes``.

    Returns
    -------
    float32 tensor (B, L, T), each lead of each window with mean 0 and SD 1
    """
    from torch.nn.functional import layer_norm

    x_BLT = signal_BLT.float()
    if in_mv(config):
        x_BLT *= scale_BL1
    x_BLT = change(x_BLT, changes_Bn, config, fs=fs)
    if in_mv(config) and x_BLT.shape[1] > 1:
        x_BLT *= scale_BL1 < MISSING_SCALE
    return layer_norm(x_BLT, x_BLT.shape[-1:], eps=EPSILON_MV if in_mv(config) else EPSILON_STEPS)


def change(x_BLT, changes_Bn, config, *, fs):
    """Apply drawn changes in torch, on any device: shift, stretch, flip, wander, hum, noise, mask.

    Parameters
    ----------
    x_BLT : float32 tensor
        In mV where wander, hum or noise is on.
    changes_Bn : float32 tensor
        Of ``draw_changes``.

    Returns
    -------
    float32 tensor (B, L, T)
    """
    import torch

    n_leads, n_samples = x_BLT.shape[1:]
    drawn = {name: changes_Bn[:, i, None, None] for i, name in enumerate(columns(config))}
    rows = torch.arange(len(x_BLT), device=x_BLT.device)
    time = torch.arange(n_samples, device=x_BLT.device)

    def table(values):
        return torch.from_numpy(values.copy()).to(x_BLT.device)

    if config.shift_seconds:
        from_shift = torch.cat([x_BLT, x_BLT], dim=2).unfold(2, n_samples, 1)
        x_BLT = from_shift[rows, :, drawn["shift"][:, 0, 0].long()]
    if config.stretch:
        x_BLT = _stretched(x_BLT, drawn["pace"], drawn["pace_first"])
    if config.flip:
        x_BLT = x_BLT * drawn["sign"]
    if config.wander_mv:
        x_BLT = x_BLT + drawn["wander_mv"] * torch.sin(drawn["wander_step"] * time + drawn["wander_phase"])
    if config.hum_mv:
        sine, cosine = (table(wave) for wave in hum_waves(config, fs=fs, n_samples=n_samples))
        x_BLT = x_BLT + drawn["hum_sine"] * sine + drawn["hum_cosine"] * cosine
    if config.noise_mv:
        from_start = table(normals(n_leads * n_samples)).unfold(0, n_leads * n_samples, 1)
        noise = from_start[drawn["noise_start"][:, 0, 0].long()].view(x_BLT.shape)
        x_BLT = x_BLT + drawn["noise_mv"] * noise
    if config.mask_seconds:
        x_BLT = x_BLT * ((time < drawn["mask_start"]) | (time >= drawn["mask_stop"]))
    return x_BLT


def _stretched(x_BLT, pace_B11, first_B11):
    """Interpolate linearly at another pace; beyond its ends a window stays at its first or last value."""
    import torch

    n_samples = x_BLT.shape[2]
    middle = torch.arange(n_samples, device=x_BLT.device) + 0.5
    at = (pace_B11 * middle + (first_B11 - 0.5)).clamp(0, n_samples - 1)
    before = at.floor().clamp(max=n_samples - 2)
    index = before.long().expand(x_BLT.shape)
    return torch.lerp(x_BLT.gather(2, index), x_BLT.gather(2, index + 1), at - before)
