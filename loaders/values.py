"""The values of the components of every draw, read from the shards: the index holds labels only."""

import base64

import numpy as np

from anyecg.loaders.apart import parse_apart
from anyecg.loaders.errors import ShardError
from anyecg.loaders.shard_parse import REMAKE, SETS, parse_draws


def draw_values(index, splits=("train", "val", "test")):
    """Return the measured values of every draw of an index.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    splits : collection of str
        Shards of other splits are not read.

    Returns
    -------
    float32 array, shape (draws, components)
        In the components' units, rows as in the index's tables, columns as ``index.components``; NaN where
        not measured or not exact, and in the draws of other splits.

    Raises
    ------
    ShardError, UpgradeNeeded
        A shard that is missing, damaged, or not the one of the index.
    """
    components = index.components
    value_DC = np.full((len(index.tables["draw_time"]), len(components)), np.nan, np.float32)
    for shard in (shard for split in splits for shard in index.shards_of(split)):
        path = index.folder / index.head["shards"][shard.number]["name"]
        found = parse_apart(path, parse_draws)
        sets = {name: np.frombuffer(base64.b64decode(text), SETS[name]) for name, text in found["sets"].items()}
        # Rows of visits count within the shard; times and labels tell its draws from those of another shard.
        same = found["components"] == list(components) and all(
            np.array_equal(sets[source], np.asarray(index.tables[name][shard.draws]).reshape(-1))
            for name, source in (("draw_time", "draws/time"), ("draw_labels", "draws/labels"))
        )
        if not same or sets["draws/values"].size != value_DC[shard.draws].size:
            raise ShardError(f"{path}: its draws are not those of the index; {REMAKE}")
        value_DC[shard.draws] = sets["draws/values"].reshape(value_DC[shard.draws].shape)
    return value_DC
