"""What a network is worth on the validation split, while it is trained."""

import math

import numpy as np
import torch

from anyecg.kernels.auroc import auroc
from anyecg.loaders.stream import rows_of_rank
from anyecg.train.batches import WindowBatches
from anyecg.train.loss import is_one_of

MEASURES = ("val_loss", "val_score")


class Validation:
    """Masked loss and one score over the validation pairs, or over their draws where a head joins several windows.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    config : anyecg.train.finetune_config.FinetuneConfig
    stream : anyecg.loaders.stream_config.StreamConfig
    objective : anyecg.train.objective.Objective
    comm : MPI communicator
        Every rank takes its share.
    device : torch.device
    """

    def __init__(self, index, config, stream, objective, comm, device):
        tables = index.tables
        pairs = index.pairs_of("val", config.horizon_min)
        draws = np.asarray(tables["pair_draw"])[pairs]
        self.config, self.objective, self.comm, self.device = config, objective, comm, device
        self.n_each = stream.windows_per_sample
        self.joins = config.join == "features"
        if self.joins:
            # Draw after draw, its windows in order of time.
            order = np.lexsort([tables["pair_window"][pairs], draws])
            pairs, draws = pairs[order], draws[order]
            units, first_U = np.unique(draws, return_index=True)
            bounds_U = np.append(first_U, len(draws))
            mine = rows_of_rank(np.arange(len(units)), comm.rank, comm.size)
            self.n_windows_U = np.diff(bounds_U)[mine]
            pairs = pairs[bounds_U[mine[0]] : bounds_U[mine[-1] + 1]] if len(mine) else pairs[:0]
            draws = units
        else:
            pairs = rows_of_rank(pairs, comm.rank, comm.size)
        self.label_UC = torch.from_numpy(np.asarray(objective.label_DC)[draws])
        windows = tables["pair_window"][pairs]
        self.batches = None
        if len(windows):
            size = max(1, min(256, len(windows)))
            self.batches = WindowBatches(index, windows, stream, batch_size=size, device_id=device.index)

    def measure(self, network, *, phase=lambda name, together: None):
        """Return (loss, score), the same on every rank; NaN without labels.

        ``phase`` is told what comes next, and whether that waits for other ranks.
        The score is the mean AUROC over targets with both classes; for a regression the mean R2 over components.
        """
        network.eval()
        found = []
        with torch.no_grad():
            phase("validating", False)
            for x_BLT in self.batches or []:
                x_BLT = x_BLT.to(self.device)
                found.append((network.features(x_BLT) if self.joins else network(x_BLT)).float())
                phase("validating", False)
            if self.joins and found:
                parts = torch.cat(found).split(self.n_windows_U.tolist())
                found = [network.joined_of_all(part, self.n_each)[None] for part in parts]
        network.train()
        mine = torch.cat(found).cpu().numpy() if found else np.empty((0, len(self.objective.targets)), np.float32)
        phase("gathering outputs of the validation", True)
        gathered = self.comm.gather(mine)
        return self.comm.bcast(self._summarise(np.concatenate(gathered)) if self.comm.rank == 0 else None)

    def close(self):
        """End what reads ahead."""
        if self.batches:
            self.batches.close()

    def _summarise(self, output_UC):
        count_C = self.objective.count(self.label_UC)
        if not count_C.sum():
            return float("nan"), float("nan")
        loss = self.objective.loss(torch.from_numpy(output_UC), self.label_UC, self.objective.denominator(count_C))
        return loss.item(), _mean(self._scores(output_UC, self.label_UC.numpy()))

    def _scores(self, output_UC, label_UC):
        if self.config.head == "regression":
            return [_r2(output, wanted) for output, wanted in zip(output_UC.T, label_UC.T, strict=True)]
        if self.config.head == "exclusive":
            kept = is_one_of(self.label_UC).numpy()
            output_UC, label_UC = output_UC[kept], label_UC[kept]
            output_UC = torch.from_numpy(output_UC).softmax(1).numpy()
        seen_UC = label_UC >= 0
        return [auroc(output_UC[seen, c], label_UC[seen, c]) for c, seen in enumerate(seen_UC.T)]


def _r2(output, wanted):
    seen = ~np.isnan(wanted)
    spread = np.var(wanted[seen]) if seen.any() else 0.0
    return float(1 - np.mean((output[seen] - wanted[seen]) ** 2) / spread) if spread > 0 else math.nan


def _mean(values):
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan
