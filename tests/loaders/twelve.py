"""Folders of 12-lead recordings in mixed formats; each lead is a real recording of the demo's."""

import csv
from functools import lru_cache

import h5py
import numpy as np
import wfdb

from anyecg.loaders.lead_names import STANDARD_LEADS
from anyecg.loaders.records import open_record

from ..conftest import DEMO
from .foreign import dicom_group, write_dicom

FS = 300
N_SAMPLES = 20 * FS
# As other systems spell them; MLII is a lead of its own.
SPELT = ("i", "Lead II", "iii", "AVR", "avl", "ECG aVF", *(f"v{number}" for number in range(1, 7)))
FORMS = ("wfdb", "csv", "hdf5", "npy", "dicom")


@lru_cache
def _long_records():
    with (DEMO / "labels.csv").open(newline="") as file:
        records = [open_record(DEMO / "records" / row["record"]) for row in csv.DictReader(file)]
    return [record for record in records if record.n_samples >= N_SAMPLES]


def counts(number):
    """Return int16 counts of 2.5 uV of record ``number``, shape (N_SAMPLES, 12), in the order of STANDARD_LEADS."""
    records = _long_records()
    chosen = [records[(12 * number + lead) % len(records)] for lead in range(12)]
    return np.stack([np.round(one.read(0, N_SAMPLES) / 0.0025) for one in chosen], axis=1).astype(np.int16)


def write_record(folder, name, form, count_TL, leads=STANDARD_LEADS):
    """Write one recording; CSV says rate, unit and leads by its columns, NumPy says nothing."""
    mv_TL = (count_TL * 0.0025).astype(np.float32)
    if form == "wfdb":
        wfdb.wrsamp(
            name, FS, ["mV"] * len(leads), list(leads), d_signal=count_TL, fmt=["16"] * len(leads),
            adc_gain=[400.0] * len(leads), baseline=[0] * len(leads), write_dir=str(folder),
        )  # fmt: skip
    elif form == "csv":
        time_T = np.arange(len(mv_TL)) / FS
        lines = [",".join(["time", *(f"{lead} [mV]" for lead in leads)])]
        lines += [",".join(map(repr, map(float, [time, *row]))) for time, row in zip(time_T, mv_TL, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    elif form == "hdf5":
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["signal"] = mv_TL
            file["signal"].attrs.update(fs=FS, unit="mV", leads=list(leads))
    elif form == "npy":
        np.save(folder / f"{name}.npy", mv_TL)
    else:
        write_dicom(folder / f"{name}.dcm", [dicom_group(count_TL, leads=leads, fs=FS)])


def write_folder(folder, n_records, *, leads_of=lambda number: STANDARD_LEADS, forms=FORMS):
    """Write recordings of all forms in turn, and ``labels.csv`` beside the folder, whose targets cannot be learned.

    ``leads_of(number)`` names the leads that a recording has, in any order and spelling.
    """
    folder.mkdir(parents=True)
    for number in range(n_records):
        leads = leads_of(number)
        columns = [[one.lower() for one in STANDARD_LEADS].index(lead.split()[-1].lower()) for lead in leads]
        write_record(folder, f"r{number:02d}", forms[number % len(forms)], counts(number)[:, columns], leads)
    rows = [f"r{number:02d},p{number},{number % 2},{number // 2 % 2}" for number in range(n_records)]
    (folder.parent / "labels.csv").write_text("\n".join(["record,patient,odd,high", *rows]) + "\n")
