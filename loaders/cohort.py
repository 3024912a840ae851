"""What any data source becomes: patients, visits, records and draws, each patient in one split."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from anyecg.loaders.errors import CohortError
from anyecg.loaders.files import digest, file_hash, read_document, replacing, write_document
from anyecg.loaders.settings import Section

SPLITS = ("train", "val", "test")
RECORD_SCHEMA = {
    "visit_row": pl.Int32, "path": pl.String, "fs": pl.Float64, "start": pl.Int64, "n_samples": pl.Int64,
    "digest": pl.String,
}  # fmt: skip
TABLES = ("visits", "records", "draws", "quarantine")


class CohortConfig(Section):
    """Where the recordings and their labels come from, and how patients are split."""

    kind: Literal["folder"] = Field("folder", description="folder: any folder of WFDB records and a CSV of labels")
    path: str = Field("", description="folder of the recordings; relative to the config file")
    labels: str = Field("", description="CSV: record, patient, then one column a target with 1, 0, -1 or empty")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="share of the patients for validation")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share of the patients for the test")

    @model_validator(mode="after")
    def _some_train(self):
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must leave patients for training (below 1)")
        return self


@dataclass(frozen=True)
class Cohort:
    """Tables of a cohort; rows refer to ``visits`` by ``visit_row``.

    Attributes
    ----------
    targets : tuple of str
    visits : visit and patient keys (uint64, pseudonymous), split (0 train, 1 val, 2 test), age (NaN unknown),
        sex (0 female, 1 male, -1 unknown)
    records : visit_row, path below ``root``, fs in Hz, start in microseconds, n_samples, digest of the header and the
        signal file's size
    draws : visit_row, time in microseconds, then one int8 column a target (1 abnormal, 0 not, -1 not measured)
    quarantine : record and reason, one row for each record left out
    flow : list of (what, count), from what was found to what is kept
    root : folder of the records
    """

    targets: tuple
    visits: pl.DataFrame
    records: pl.DataFrame
    draws: pl.DataFrame
    quarantine: pl.DataFrame
    flow: list
    root: Path
    hash: str = ""


def pseudonym(seed, kind, name):
    """Return the uint64 key of a patient or visit: a keyed BLAKE2b of its name, so tables join but name nobody."""
    key = hashlib.blake2b(f"{kind}\0{name}".encode(), digest_size=8, key=f"anyecg {seed}".encode())
    return int.from_bytes(key.digest(), "little")


def split_patients(patient_keys, *, seed, val_fraction, test_fraction):
    """Assign each patient to a split, in an order that a keyed hash of the patient decides.

    Parameters
    ----------
    patient_keys : uint64 array, shape (visits,)
        Patient of each visit.

    Returns
    -------
    int8 array, shape (visits,)
        0 train, 1 val, 2 test; round(fraction x patients) patients each in test and val, the rest in train.
    """
    patients, row = np.unique(np.asarray(patient_keys, np.uint64), return_inverse=True)
    order = np.argsort([pseudonym(seed, "split", int(patient)) for patient in patients])
    n_test, n_val = round(test_fraction * len(patients)), round(val_fraction * len(patients))
    split = np.zeros(len(patients), np.int8)
    split[order[:n_test]] = 2
    split[order[n_test : n_test + n_val]] = 1
    return split[row]


def check_disjoint(visits):
    """Refuse a cohort in which a patient stands in two splits."""
    n_mixed = visits.group_by("patient").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height
    if n_mixed:
        raise CohortError(
            f"{n_mixed} patients stand in two splits; split by patient, or correct the lists of the splits"
        )


def write_cohort(folder, cohort, stage_hash):
    """Write the tables, then ``cohort.json``, whose presence means that the cohort is complete."""
    if not cohort.records.height:
        raise CohortError(f"the cohort is empty: {describe_flow(cohort.flow)}; check path and labels in [cohort]")
    check_disjoint(cohort.visits)
    folder = Path(folder)
    for name in TABLES:
        with replacing(folder / f"{name}.parquet") as temporary:
            getattr(cohort, name).write_parquet(temporary)
    hashes = {name: file_hash(folder / f"{name}.parquet") for name in TABLES}
    document = {
        "stage_hash": stage_hash,
        "targets": cohort.targets,
        "flow": cohort.flow,
        "root": str(cohort.root),
        "tables": hashes,
        "hash": digest([cohort.targets, hashes]),
    }
    write_document(folder / "cohort.json", "anyecg-cohort", document)


def open_cohort(folder):
    """Read a complete cohort.

    Raises
    ------
    CohortError
        No cohort there, another version, or a table that is not the one written.
    """
    folder = Path(folder)
    document = read_document(
        folder / "cohort.json", "anyecg-cohort", error=CohortError,
        missing=f"{folder} holds no cohort; run 'anyecg cohort' with the same config first",
    )  # fmt: skip
    tables = {}
    for name in TABLES:
        path = folder / f"{name}.parquet"
        if not path.exists() or file_hash(path) != document["tables"][name]:
            raise CohortError(f"{path} is missing or changed since it was written; run 'anyecg cohort' again")
        tables[name] = pl.read_parquet(path)
    return Cohort(
        targets=tuple(document["targets"]), flow=[tuple(step) for step in document["flow"]],
        root=Path(document["root"]), hash=document["hash"], **tables,
    )  # fmt: skip


def describe_flow(flow):
    """Return the flow of exclusions as one line."""
    return ", ".join(f"{what} {n}" for what, n in flow)


def build_cohort(config, *, seed):
    """Build the cohort that ``[cohort]`` asks for, from any kind of source."""
    from anyecg.loaders.folder import folder_cohort

    return folder_cohort(config, seed=seed)
