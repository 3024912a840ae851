"""What any data source becomes: patients, visits, records and draws, each patient in one split."""

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from anyecg.loaders.errors import CohortError
from anyecg.loaders.files import digest, file_hash, read_document, replacing, write_document

RECORD_SCHEMA = {
    "visit_row": pl.Int32, "path": pl.String, "fs": pl.Float64, "start": pl.Int64, "n_samples": pl.Int64,
    "digest": pl.String,
}  # fmt: skip
REFERENCE_SCHEMA = {
    "target": pl.String, "horizon_min": pl.Int64, "level": pl.String, "source": pl.String, "auroc": pl.Float64,
}  # fmt: skip
TABLES = ("visits", "records", "draws", "side", "quarantine")


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
    draws : visit_row, time in microseconds, one int8 column a target (1 abnormal, 0 not, -1 not measured), and one
        float32 column "value:COMPONENT" each (NaN not measured or not exact)
    side : race, ethnicity and triage vitals of the visits, where the source has them
    quarantine : record and reason, one row for each record left out
    flow : list of (what, count), from what was found to what is kept
    root : folder of the records
    pairing : "all" (each window of a visit with its draw) or "horizon" (windows around the draw)
    definition : what each target means (limit, unit), so that a model of other limits is not taken for one of these
    reference : target, horizon_min, level, source, auroc: what others found, for the report; decides nothing
    may_overlap : split by visit, so that patients may stand in two splits
    options : what ``anyecg.loaders.records.open_record`` is told of files of plain numbers
    """

    targets: tuple
    visits: pl.DataFrame
    records: pl.DataFrame
    draws: pl.DataFrame
    quarantine: pl.DataFrame
    flow: list
    root: Path
    components: tuple = ()
    side: pl.DataFrame = field(default_factory=pl.DataFrame)
    pairing: str = "all"
    may_overlap: bool = False
    options: dict = field(default_factory=dict)
    definition: tuple = ()
    reference: pl.DataFrame = field(default_factory=partial(pl.DataFrame, schema=REFERENCE_SCHEMA))
    hash: str = ""

    @property
    def n_overlapping(self):
        """Patients who stand in more than one split."""
        return self.visits.group_by("patient").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height


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


def write_cohort(folder, cohort, stage_hash):
    """Write the tables, then ``cohort.json``, whose presence means that the cohort is complete."""
    if not cohort.records.height:
        raise CohortError(f"the cohort is empty: {describe_flow(cohort.flow)}; check path and labels in [cohort]")
    if cohort.n_overlapping and not cohort.may_overlap:
        raise CohortError(
            f"{cohort.n_overlapping} patients stand in two splits; split by patient, or correct the lists of the splits"
        )
    folder = Path(folder)
    for name in TABLES:
        with replacing(folder / f"{name}.parquet") as temporary:
            getattr(cohort, name).write_parquet(temporary)
    with replacing(folder / "reference.csv") as temporary:
        cohort.reference.write_csv(temporary)
    hashes = {name: file_hash(folder / f"{name}.parquet") for name in TABLES}
    meaning = cohort.targets, cohort.components, cohort.pairing, cohort.definition
    document = {
        "stage_hash": stage_hash,
        **{name: getattr(cohort, name) for name in ("targets", "components", "pairing", "may_overlap", "definition")},
        "patients_in_two_splits": cohort.n_overlapping,
        "flow": cohort.flow,
        "root": str(cohort.root),
        "options": cohort.options,
        "tables": hashes,
        "hash": digest([*meaning, hashes, *([cohort.options] if cohort.options else [])]),
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
        targets=tuple(document["targets"]), components=tuple(document["components"]), pairing=document["pairing"],
        may_overlap=document["may_overlap"], options=document.get("options", {}),
        definition=tuple(map(tuple, document["definition"])), flow=[tuple(step) for step in document["flow"]],
        root=Path(document["root"]), hash=document["hash"], reference=read_reference(folder), **tables,
    )  # fmt: skip


def read_reference(folder):
    """Read what others found, beside a cohort; empty where nobody did."""
    path = Path(folder) / "reference.csv"
    return pl.read_csv(path, schema=REFERENCE_SCHEMA) if path.is_file() else pl.DataFrame(schema=REFERENCE_SCHEMA)


def describe_flow(flow):
    """Return the flow of exclusions as one line."""
    return ", ".join(f"{what} {n}" for what, n in flow)


def build_cohort(config, *, seed):
    """Build the cohort that ``[cohort]`` asks for, from any kind of source."""
    if config.kind == "mcmed":
        from anyecg.loaders.mcmed import mcmed_cohort

        return mcmed_cohort(config, seed=seed)
    from anyecg.loaders.folder import folder_cohort

    return folder_cohort(config, seed=seed)
