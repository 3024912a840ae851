"""Mutated shards: bits, bytes, cuts, insertions and swaps, most of them in what HDF5 keeps for itself."""

import h5py
import numpy as np

from anyecg.loaders.errors import ShardError, UpgradeNeeded
from anyecg.loaders.shard_file import describe_shard
from anyecg.loaders.shard_parse import SETS

from .checksums import find_blocks, mend
from .tiny import write_tiny_shard

NUMBERS = (0, 1, 255, 65_535, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1, 0x7FFFFFFF << 32)


def make_seeds(folder):
    """Return shards to mutate: (bytes, places of HDF5's own bytes, those that are not zero, blocks with checksums)."""
    seeds = []
    for form in ("none", "bitshuffle-lz4"):
        path = folder / f"seed-{form}.h5"
        write_tiny_shard(path, form=form)
        describe_shard(path)
        data = path.read_bytes()
        own = np.ones(len(data), bool)

        def leave_out(chunk, own=own):
            own[chunk.byte_offset : chunk.byte_offset + chunk.size] = False

        with h5py.File(path) as file:
            for name in SETS:
                file[name].id.chunk_iter(leave_out)
        places = np.flatnonzero(own)
        seeds.append((data, places, places[np.frombuffer(data, np.uint8)[places] != 0], find_blocks(data)))
    return seeds


def mutate(seed, rng):
    """Change a shard at up to three places; often make HDF5's checksums right again, so that the parse goes on."""
    original, places, filled, blocks = seed
    data = bytearray(original)
    kind = rng.integers(8)

    def somewhere():
        where = rng.random()
        if where < 0.7:
            return int(rng.choice(filled))
        return int(rng.choice(places)) if where < 0.9 else int(rng.integers(len(original)))

    for _ in range(rng.integers(1, 4)):
        place, n = somewhere(), int(rng.integers(1, 300))
        if kind <= 2:
            if place < len(data):
                data[place] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            data[place : place + n % 40] = rng.integers(0, 256, n % 40, np.uint8).tobytes()
        elif kind == 4:
            width = 2 ** int(rng.integers(4))
            number = NUMBERS[int(rng.integers(len(NUMBERS)))] % 256**width
            data[place : place + width] = number.to_bytes(width, "little")
        elif kind == 5:
            other = somewhere()
            first, second = data[place : place + n], data[other : other + n]
            data[place : place + n], data[other : other + n] = second, first
        elif kind == 6:
            data[place:place] = rng.integers(0, 256, n, np.uint8).tobytes()
        else:
            del data[place : len(data) if rng.random() < 0.5 else place + n]
    return mend(data, blocks) if kind <= 5 and rng.random() < 0.7 else bytes(data)


def outcome(path):
    """Describe a mutated shard; return "shard", "typed error" or "ended" (its child did); all else is a fault."""
    try:
        describe_shard(path)
    except (ShardError, UpgradeNeeded) as cause:
        if "exit status" in str(cause):
            raise
        return "ended" if "HDF5 could not parse it" in str(cause) else "typed error"
    return "shard"
