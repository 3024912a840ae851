"""What a training writes about itself: JSON lines, and the same numbers for TensorBoard."""

import json
import math
from pathlib import Path

from anyecg.loaders.files import append_line


class Journal:
    """``finetune.jsonl`` and ``tensorboard/`` in the log folder of a run, appended to by every start; rank 0 only.

    Each line is an object with ``event``: start, step, validation, left out, saved, stopped or end.
    """

    def __init__(self, folder, *, shown):
        self.path = Path(folder) / "finetune.jsonl"
        self._writer = None
        if shown:
            from tensorboardX import SummaryWriter

            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), flush_secs=30)

    def write(self, event, *, step, **numbers):
        """Append a line; numbers go to TensorBoard too."""
        if self._writer is None:
            return
        line = {"event": event, "step": step, **{name: _plain(value) for name, value in numbers.items()}}
        append_line(self.path, json.dumps(line))
        for name, value in numbers.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self):
        """Send what is kept to the disk."""
        if self._writer is not None:
            self._writer.close()


def _plain(value):
    """Return a number as JSON knows it: none for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
