"""R15: no made-up cohort, however badly its tables are kept, puts a patient into two splits unsaid."""

import csv

import numpy as np
import polars as pl

from anyecg.loaders.cohort import open_cohort, pseudonym, write_cohort
from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.errors import CohortError
from anyecg.loaders.mcmed import mcmed_cohort
from anyecg.loaders.splits import SPLITS

LABS = (
    "CSN", "Order_time", "Result_time", "Component_name", "Component_value", "Component_units", "Component_nml_low",
    "Component_nml_high",
)  # fmt: skip
MOMENT = "2250-01-01T00:30:00Z"


def _table(path, head, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def make_up(root, rng):
    """Write a small MC-MED whose visits repeat, change patients, lack names, and whose official lists overlap."""
    n_visits, n_patients = int(rng.integers(1, 14)), int(rng.integers(1, 8))
    rows = []
    for number in range(n_visits):
        mrn, csn = f"m{rng.integers(n_patients)}", f"{99000000 + number}"
        mrn = rng.choice([mrn, f" {mrn} ", "", mrn, mrn, mrn])
        rows.append((mrn, csn, "50", "F", "", ""))
        if rng.random() < 0.15:
            rows.append((rng.choice([mrn, f"m{rng.integers(n_patients)}"]), csn, "50", "F", "", ""))
        folder = root / "waveforms" / csn[-3:] / csn / "II"
        folder.mkdir(parents=True)
        header = f"{csn}_1 1 500 5000 00:20:00 01/01/2250\n{csn}_1.dat 16 1000/mV 16 0 0 0 0 II\n"
        (folder / f"{csn}_1.hea").write_text(header if rng.random() < 0.9 else "")
    rng.shuffle(rows)
    _table(root / "visits.csv", ("MRN", "CSN", "Age", "Gender", "Race", "Ethnicity"), rows)
    csns = sorted({row[1] for row in rows})
    labs = [(csn, MOMENT, MOMENT, "POTASSIUM", "4.1", "mmol/L", "", "") for csn in csns if rng.random() < 0.9]
    _table(root / "labs.csv", LABS, labs)
    patient = {row[1]: row[0].strip() for row in rows if row[0].strip()}
    of_patient = {name: rng.integers(0, 3) for name in set(patient.values())}
    lists = {name: [] for name in SPLITS}
    for csn in csns:
        split = of_patient.get(patient.get(csn), 0) if rng.random() < 0.93 else rng.integers(0, 3)
        lists[SPLITS[split]].append(csn)
        if rng.random() < 0.02:
            lists[SPLITS[rng.integers(0, 3)]].append(csn)
    for name, members in lists.items():
        (root / f"split_random_{name}.csv").write_text("".join(f"{csn}\n" for csn in members))
    return patient


def outcome(root, out, rng):
    """Make a cohort of made-up tables; return what became of it; fail where a patient stands in two splits unsaid."""
    patient = make_up(root, rng)
    split = str(rng.choice(["patient", "visit", "random", "all"]))
    fractions = rng.dirichlet([3, 1, 1])[1:] * 0.99
    config = CohortConfig(
        kind="mcmed", path=str(root), split=split, val_fraction=float(fractions[0]), test_fraction=float(fractions[1])
    )
    seed = int(rng.integers(1 << 40))
    try:
        cohort = mcmed_cohort(config, seed=seed)
        write_cohort(out, cohort, "x")
    except CohortError:
        assert not (out / "cohort.json").exists()
        return "refused"
    cohort = open_cohort(out)
    key = {pseudonym(seed, "visit", csn): name for csn, name in patient.items()}
    splits: dict[str, set] = {}
    for visit, number in cohort.visits.select("visit", "split").iter_rows():
        splits.setdefault(key[visit], set()).add(number)
    n_torn = sum(len(found) > 1 for found in splits.values())
    assert cohort.n_overlapping == n_torn
    assert cohort.visits.select(pl.col("patient").n_unique()).item() == len(splits)
    if split != "visit":
        assert n_torn == 0
    return "kept, overlap stated" if n_torn else "kept"


def test_no_made_up_cohort_puts_a_patient_into_two_splits_unsaid(tmp_path):
    """Short form, in which every outcome occurs; the long form is benchmarks/fuzz_splits.py."""
    found = set()
    for seed in range(60):
        folder = tmp_path / str(seed)
        (folder / "mcmed").mkdir(parents=True)
        found.add(outcome(folder / "mcmed", folder / "out", np.random.default_rng(seed)))
    assert found == {"refused", "kept", "kept, overlap stated"}
