"""Recordings of several leads: their names, their windows, and the shards of a folder of them."""

import edfio
import numpy as np
import polars as pl
import pytest
from mpi4py import MPI

from anyecg.app.config import load_config, render_config
from anyecg.kernels.segment import DROPPED, FLAT, PADDED
from anyecg.loaders.cohort import open_cohort, write_cohort
from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.errors import ConfigError, RecordError, ShardError
from anyecg.loaders.folder import folder_cohort
from anyecg.loaders.index import open_index
from anyecg.loaders.lead_names import STANDARD_LEADS, find_lead, plain_options
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.records import open_leads, open_record
from anyecg.loaders.shard_config import ShardConfig
from anyecg.loaders.shards import write_shards
from anyecg.loaders.verify import verify
from anyecg.loaders.windows import find_leads, find_windows, store_leads, store_windows

from ..conftest import SHARED
from .test_shards import memory_record
from .test_windows import faulty_record
from .twelve import FS, SPELT, counts, write_folder, write_record

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
TWELVE = list(STANDARD_LEADS)


@pytest.mark.parametrize(
    ("lead", "names", "wanted"),
    [
        ("II", ("I", "II"), [1]), ("ii", ("I", "II"), [1]), ("II", ("I", "Lead II"), [1]), ("ECG II", ("ii",), [0]),
        ("V1", ("ECG lead v1",), [0]),
        ("AVR", ("aVL", "aVR"), [1]), ("II", ("MLII", "V5"), []), ("mlii", ("MLII", "V5"), [0]), ("II", ("III",), []),
        ("II", ("ii", "II"), [1]), ("II", ("ii", "Lead II"), [0, 1]), ("II", ("II", "II:2"), [0]),
    ],
)  # fmt: skip
def test_a_lead_is_known_by_its_very_name_or_else_by_its_standard_one(lead, names, wanted):
    assert find_lead(lead, names) == wanted


@pytest.mark.parametrize("form", ["wfdb", "csv", "hdf5", "dicom"])
def test_leads_of_any_spelling_are_opened_by_their_standard_names(tmp_path, form):
    count_TL = counts(3)
    write_record(tmp_path, "r", form, count_TL, SPELT)
    found = open_leads(tmp_path / "r", TWELVE)
    for record, count_T in zip(found, count_TL.T, strict=True):
        np.testing.assert_array_equal(record.read(), (count_T * 0.0025).astype(np.float32))
    np.testing.assert_array_equal(open_record(tmp_path / "r", lead="v4").read(), found[9].read())


def test_leads_of_wfdb_have_standard_names_where_that_keeps_them_apart(tmp_path):
    for names, wanted in (
        (("i", "ECG v2", "ECG 1", "MLII"), ("I", "V2", "ECG 1", "MLII")), (("ii", "Lead II", "v1", "aVF"), None),
    ):  # fmt: skip
        write_record(tmp_path, "r", "wfdb", counts(3)[:, :4], names)
        assert open_record(tmp_path / "r").leads == (wanted or names)


def test_a_lead_that_can_be_two_is_refused(tmp_path):
    write_record(tmp_path, "r", "wfdb", counts(3)[:, :2], ("ii", "Lead II"))
    with pytest.raises(RecordError, match="lead 'II' can be any of ii, Lead II; give its name as it stands there"):
        open_record(tmp_path / "r", lead="II")


def test_missing_leads_are_all_named_or_left_open_but_never_all_of_them(tmp_path):
    write_record(tmp_path, "r", "csv", counts(3)[:, :2], ("I", "II"))
    path = tmp_path / "r.csv"
    with pytest.raises(RecordError, match=r"r\.csv: lead 'V1' is missing; found I, II$"):
        open_leads(path, ["II", "V1"])
    with pytest.raises(RecordError, match=r"r\.csv: leads 'V1', 'V2' are missing; found I, II$"):
        open_leads(path, ["V1", "II", "V2"])
    missing, second, first = open_leads(path, ["V1", "II", "I"], zeros=True)
    assert missing is None
    np.testing.assert_array_equal([second.read(), first.read()], (counts(3)[:, 1::-1].T * 0.0025).astype(np.float32))
    with pytest.raises(RecordError, match="leads 'V1', 'V2' are missing"):
        open_leads(path, ["V1", "V2"], zeros=True)


def stored_alone(record, chosen_W):
    return store_windows(find_windows(record, pad_short=True), chosen_W, fs=500, preset="ecgfounder")


@pytest.mark.parametrize("keep", [True, False])
def test_each_lead_is_stored_as_it_would_be_alone_whatever_its_rate(keep):
    """The slow twin: each lead by itself; flags are those of any lead, and the shortest lead ends the grid."""
    records = [faulty_record(rate, n_windows) for rate, n_windows in ((250, 30), (333.3, 32), (500, 27), (1000, 40))]
    found = find_leads([*records, None], pad_short=False, keep=keep)
    alone = [find_windows(record, pad_short=False) for record in records]
    np.testing.assert_array_equal(found.flags_W, np.bitwise_or.reduce([one.flags_W[:27] for one in alone]))
    np.testing.assert_array_equal(found.start_s_W, 10.0 * np.arange(27))
    for chosen_W in (np.ones(27, bool), (found.flags_W & DROPPED) == 0, np.arange(27) == 26, np.zeros(27, bool)):
        signal_WLT, scale_WL = store_leads(found, chosen_W, fs=500, preset="ecgfounder")
        assert signal_WLT.shape == (chosen_W.sum(), 5, 5000)
        for lead, record in enumerate(records):
            wanted_WT, wanted_W = stored_alone(record, chosen_W)
            np.testing.assert_array_equal(signal_WLT[:, lead], wanted_WT)
            np.testing.assert_array_equal(scale_WL[:, lead], wanted_W)
        assert not signal_WLT[:, 4].any()
        assert (scale_WL[:, 4] == 1).all()


def test_a_short_lead_makes_one_padded_window_of_all():
    rng = np.random.default_rng(4)
    long, short = (memory_record(rng.standard_normal(n), 500) for n in (15_000, 3000))
    found = find_leads((long, short), pad_short=True)
    assert len(found.flags_W) == 1
    assert found.flags_W[0] & PADDED
    signal_WLT, _ = store_leads(found, np.ones(1, bool), fs=500, preset="ecgfounder")
    for lead, record in enumerate((long, short)):
        np.testing.assert_array_equal(signal_WLT[:, lead], stored_alone(record, np.ones(1, bool))[0])
    assert len(find_leads((long, short), pad_short=False).flags_W) == 0


@needs_shared
def test_one_ecg_in_three_formats_gives_the_same_twelve_lead_window():
    folder = SHARED / "formats"
    stored = []
    for name in ("aecg/Example aECG.xml", "scp/Example.scp", "dicom/Example.dcm"):
        found = find_leads(open_leads(folder / name, TWELVE), pad_short=False)
        assert not (found.flags_W & DROPPED).any()
        stored.append(store_leads(found, np.ones(1, bool), fs=500, preset="ecgfounder"))
    assert all(signal_WLT.any(2).all() for signal_WLT, _ in stored)
    for other in stored[1:]:
        for one, same in zip(stored[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


@needs_shared
@pytest.mark.parametrize(
    "name", ["wfdb/s0010_re", "sierra/129DYPRG.XML", "sierra/3191723_ZZDEMOPTONLY_1-04_orig.xml",
             "aecg/subject1_0.xml", "dicom/waveform_ecg.dcm"],
)  # fmt: skip
def test_real_recordings_give_twelve_leads_each_as_it_is_alone(name):
    path = SHARED / "formats" / name
    found = find_leads(open_leads(path, TWELVE), pad_short=True)
    chosen_W = np.ones(len(found.flags_W), bool)
    signal_WLT, _ = store_leads(found, chosen_W, fs=500, preset="ecgfounder")
    for number, lead in enumerate(TWELVE):
        np.testing.assert_array_equal(signal_WLT[:, number], stored_alone(open_record(path, lead=lead), chosen_W)[0])


@needs_shared
def test_both_leads_of_half_an_hour_are_each_as_they_are_alone():
    path = SHARED / "mitdb" / "101"
    found = find_leads(open_leads(path, ["V1", "mlii"]), pad_short=False)
    assert len(found.flags_W) == 180
    signal_WLT, scale_WL = store_leads(found, np.arange(180) % 7 == 3, fs=500, preset="ecgfounder")
    for number, lead in enumerate(("V1", "MLII")):
        wanted_WT, wanted_W = stored_alone(open_record(path, lead=lead), np.arange(180) % 7 == 3)
        np.testing.assert_array_equal(signal_WLT[:, number], wanted_WT)
        np.testing.assert_array_equal(scale_WL[:, number], wanted_W)


def test_leads_of_several_rates_in_one_file_lie_on_one_grid(tmp_path):
    """EDF; a spike at 12 s stands at the same sample of the second window in both leads."""
    rng, signals = np.random.default_rng(8), []
    for lead, rate in (("ECG I", 500), ("ECG II", 200)):
        mv_T = 0.05 * rng.standard_normal(30 * rate)
        mv_T[12 * rate : 12 * rate + rate // 50] += 2
        signals.append(edfio.EdfSignal(mv_T, rate, label=lead, physical_dimension="mV", physical_range=(-4, 4)))
    edfio.Edf(signals).write(tmp_path / "a.edf")
    found = find_leads(open_leads(tmp_path / "a.edf", ["II", "I"]), pad_short=False)
    assert [lead.fs for lead in found.leads] == [200, 500]
    np.testing.assert_array_equal(found.start_s_W, [0, 10, 20])
    signal_WLT, _ = store_leads(found, np.ones(3, bool), fs=500, preset="none")
    assert np.abs(np.abs(signal_WLT[1].astype(int)).argmax(1) - 1005).max() <= 5


def make_cohort(tmp_path, **options):
    config = CohortConfig(
        path=str(tmp_path / "records"), labels=str(tmp_path / "labels.csv"), test_fraction=0.4,
        val_fraction=0.2, **options,
    )  # fmt: skip
    write_cohort(tmp_path / "cohort", folder_cohort(config, seed=1), "0")
    return open_cohort(tmp_path / "cohort")


def make_shards(folder, cohort, **options):
    config = ShardConfig(**{"lead": TWELVE, "windows_per_shard": 8, "max_bad_fraction": 1.0} | options)
    write_shards(folder, cohort, config, MPI.COMM_SELF, seed=1, stage_hash="")
    return open_index(folder)


BARE = {"fs": float(FS), "unit": "mV", "lead_names": TWELVE}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return a folder with a cohort of ten recordings in five formats, of which r01 lacks V1 and r05 all leads."""
    folder = tmp_path_factory.mktemp("mixed")
    some = {5: ("V1",), 2: SPELT, 1: TWELVE[:6] + TWELVE[7:], 4: TWELVE[::-1]}
    write_folder(folder / "records", 10, leads_of=lambda number: some.get(number, STANDARD_LEADS))
    # V1 of r05 is renamed, so that the recording has none of the leads.
    header = folder / "records/r05.hea"
    header.write_text(header.read_text().replace("V1", "V7"))
    return folder, make_cohort(folder, **BARE)


def test_a_folder_of_mixed_formats_becomes_shards_of_twelve_leads(mixed, tmp_path):
    _, cohort = mixed
    index = make_shards(tmp_path / "shards", cohort)
    assert index.leads == STANDARD_LEADS
    assert verify(tmp_path / "shards")[1] == []
    assert dict(pl.read_csv(tmp_path / "shards/quarantine.csv").iter_rows()) == {
        "r01.csv": f"unreadable: r01.csv: lead 'V1' is missing; found {', '.join(TWELVE[:6] + TWELVE[7:])}",
        "r05": f"unreadable: r05: leads {', '.join(map(repr, TWELVE))} are missing; found V7",
    }
    assert index.head["counts"]["records dropped: unreadable"] == 2
    assert index.tables["window_scale"].shape == (index.head["counts"]["windows"], 12)
    reader = WindowReader(index)
    windows = np.arange(reader.n_windows)
    signal_WLT, scale_WL = reader.read(windows), index.scale_of(windows)
    reader.close()
    for visit in np.unique(index.tables["window_visit"]):
        here = np.flatnonzero(index.tables["window_visit"] == visit)
        key = index.tables["visit_visit"][visit]
        (row,) = np.flatnonzero(cohort.visits["visit"].to_numpy() == key)
        mv_TL = (counts(int(cohort.records["path"][int(row)][1:3])) * 0.0025).astype(np.float32)
        for lead in range(12):
            alone = find_windows(memory_record(mv_TL[:, lead], FS), pad_short=False)
            chosen_W = index.tables["window_start"][here] // 10_000_000
            wanted_WT, wanted_W = store_windows(
                alone, np.isin(np.arange(len(alone.flags_W)), chosen_W), fs=500, preset="ecgfounder"
            )  # fmt: skip
            np.testing.assert_array_equal(signal_WLT[here, lead], wanted_WT)
            np.testing.assert_array_equal(scale_WL[here, lead], wanted_W)


def test_zeros_for_missing_leads_are_counted_by_lead(mixed, tmp_path):
    index = make_shards(tmp_path / "shards", mixed[1], missing_leads="zeros")
    found = index.head["counts"]
    assert found["records dropped: unreadable"] == 1
    assert found["records kept but with zeros for some leads"] == 1
    assert found["records kept but with zeros for lead V1"] == 1
    reader = WindowReader(index)
    signal_WLT = reader.read(np.arange(reader.n_windows))
    reader.close()
    n_zero = (~signal_WLT.any(2)).sum(0)
    assert n_zero[6] == n_zero.sum() == 2
    assert not (index.tables["window_flags"] & FLAT).any()


def test_leads_kept_or_read_again_give_the_same_bytes(mixed, tmp_path, monkeypatch):
    make_shards(tmp_path / "kept", mixed[1])
    monkeypatch.setattr("anyecg.loaders.collect._KEPT_SAMPLES", 0)
    make_shards(tmp_path / "again", mixed[1])
    for path in (tmp_path / "kept").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_windows_that_would_fill_the_memory_are_quarantined(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr("anyecg.loaders.collect._MAX_STORED", 12 * 19 * 500)
    with pytest.raises(ShardError, match="no window was kept of 10 records"):
        make_shards(tmp_path, mixed[1])
    assert (
        "20 s of 12 leads at 500 Hz; wanted at most 114000 samples in all: split the record"
        in (tmp_path / "quarantine.csv").read_text()
    )


def test_one_lead_gives_the_same_bytes_as_a_list_of_one(mixed, tmp_path):
    for name, lead in (("text", "V2"), ("list", ["V2"])):
        make_shards(tmp_path / name, mixed[1], lead=lead, missing_leads="zeros" if name == "list" else "quarantine")
    for path in (tmp_path / "text").iterdir():
        assert (tmp_path / "list" / path.name).read_bytes() == path.read_bytes()


def test_bare_files_are_read_with_the_options_of_the_cohort(tmp_path):
    """Text and NumPy without a word on rate, unit and leads; a file that says its rate and leads keeps them."""
    records = tmp_path / "records"
    write_folder(records, 6, forms=("npy", "csv", "hdf5"))
    for number in (1, 4):
        mv_TL = counts(number) * 0.0025
        np.savetxt(records / f"r{number:02d}.csv", mv_TL, "%.7g", delimiter=";")
    (records / "labels.csv").write_text("record,patient,t\n" + "".join(f"{n},{n},1\n" for n in range(9)))
    cohort = make_cohort(tmp_path, **{**BARE, "fs": 150.0})
    assert cohort.records["path"].to_list() == [f"r{n:02d}.{('npy', 'csv', 'h5')[n % 3]}" for n in range(6)]
    assert cohort.records["fs"].to_list() == [150, 150, 300] * 2
    assert make_shards(tmp_path / "shards", cohort).head["counts"]["records kept"] == 6
    bare = make_cohort(tmp_path)
    assert bare.hash != cohort.hash
    reasons = dict(bare.quarantine.iter_rows())
    assert reasons["r01"] == "no such record"
    assert reasons["r00"].startswith("unreadable: r00.npy: says no sampling rate; give it in Hz")
    assert bare.records["path"].to_list() == ["r02.h5", "r05.h5"]


def test_what_a_file_says_goes_before_the_options_of_its_folder(tmp_path):
    write_record(tmp_path, "r", "csv", counts(0)[:, :2], ("I", "II"))
    options = plain_options(fs=100.0, unit="uV", leads=["V1", "V2"], decimal="")
    record = open_record(tmp_path / "r.csv", **options)
    assert (record.fs, record.leads) == (FS, ("I", "II"))
    np.testing.assert_array_equal(record.read(), (counts(0)[:, 0] * 0.0025).astype(np.float32))
    assert plain_options(fs=0.0, unit="", header=None, leads=[]) == {}


@pytest.mark.parametrize(("text", "leads"), [("II", ("II",)), ('["ii", "V1"]', ("ii", "V1")), ('""', ()), ("''", ())])
def test_the_config_takes_one_lead_or_a_list(text, leads, tmp_path):
    config = load_config(None, [f"shard.lead={text}"])
    assert config.shard.leads == leads
    (tmp_path / "c.toml").write_text(render_config(config))
    assert load_config(tmp_path / "c.toml").shard == config.shard


@pytest.mark.parametrize("text", ["[]", '["II", "ii"]', '["II", ""]', "[1]", "3", str([f"V{n}" for n in range(13)])])
def test_no_lead_twice_none_without_name_and_at_most_twelve(text):
    with pytest.raises(ConfigError, match=r"shard\.lead"):
        load_config(None, [f"shard.lead={text}"])
