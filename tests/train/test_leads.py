"""Models of several leads: from 12-lead shards to scores of files, in every network and form."""

import csv
import logging

import numpy as np
import onnxruntime
import pytest
import torch
from mpi4py import MPI

from anyecg.kernels.beats import heart_features
from anyecg.loaders.errors import ModelError, RecordError
from anyecg.loaders.lead_names import STANDARD_LEADS, plain_options
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.stream_config import StreamConfig
from anyecg.train.batches import PairBatches
from anyecg.train.export import export_model
from anyecg.train.finetune import initial_network
from anyecg.train.finetune_config import FinetuneConfig
from anyecg.train.heart import make_heart, read_heart
from anyecg.train.loss import masked_bce
from anyecg.train.model import MODELS, build_model, open_model
from anyecg.train.network import standardised
from anyecg.train.predict_files import open_model_leads, predict_files, score_record
from anyecg.train.scoring import open_scorer

from ..loaders.test_leads import BARE, TWELVE, make_cohort, make_shards
from ..loaders.twelve import SPELT, write_folder
from .models import make_model
from .test_weights import light_state, published_document

OPTIONS = plain_options(fs=BARE["fs"], unit="mV", leads=TWELVE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of eight recordings of 12 leads, in ``records``, of which r02.h5 lacks V6 and aVL."""
    folder = tmp_path_factory.mktemp("leads")
    some = {1: SPELT, 2: [lead for lead in TWELVE if lead not in ("V6", "aVL")]}
    write_folder(folder / "records", 8, leads_of=lambda number: some.get(number, STANDARD_LEADS))
    return folder


@pytest.fixture(scope="module")
def index(folder):
    return make_shards(folder / "shards", make_cohort(folder, **BARE), missing_leads="zeros")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("name", MODELS)
def test_every_network_learns_from_batches_of_twelve_leads(index, name):
    """DALI's own pipeline; a lead that is missing is zeros, whatever is added to the others."""
    stream = StreamConfig(loader="dali", noise_mv=0.05, shift_seconds=10.0, mask_seconds=1.0)
    order = {"seed": 1, "batch_size": 16, "split": "train", "horizon_min": 60}
    batches = PairBatches(index, stream, order, MPI.COMM_SELF)
    batch = batches.next()
    batches.close()
    assert batch.x_BLT.shape[1:] == (12, 5000)
    lost = {place for place in range(12) if (batch.x_BLT[:, place] == 0).all(-1).any()}
    assert lost <= {STANDARD_LEADS.index("aVL"), STANDARD_LEADS.index("V6")}
    network = build_model(name, n_leads=12, n_targets=2, seed=1).train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        loss = masked_bce(network(batch.x_BLT[:2]), batch.label_BC[:2])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_s4d_of_twelve_leads_is_the_same_in_onnx_where_a_lead_is_zeros_too(tmp_path):
    """The other networks: by way of files, below, and tests/train/test_export.py."""
    model = make_model(tmp_path / "model", model="s4d", leads=TWELVE)
    export_model(model, "onnx", tmp_path / "m.onnx")
    x_WLT = np.random.default_rng(1).standard_normal((3, 12, 5000)).astype(np.float32)
    x_WLT[1, 4] = 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted_WC = open_model(model)[0](standardised(torch.from_numpy(x_WLT))).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"signal": x_WLT})[0], wanted_WC, atol=1e-4)


def test_every_form_of_a_model_of_twelve_leads_scores_files_alike(folder, tmp_path):
    model = make_model(tmp_path / "model", leads=TWELVE, join="features")
    found = []
    for form in ("onnx", "safetensors", None):
        path = tmp_path / f"m.{form}" if form else model
        if form:
            export_model(model, form, path)
        assert predict_files(path, folder / "records", tmp_path / "out.csv", zeros=True, **OPTIONS) == (8, 0)
        found.append(rows_of(tmp_path / "out.csv"))
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert other[:2] == one[:2]
            np.testing.assert_allclose([float(s) for s in other[2:]], [float(s) for s in one[2:]], atol=2e-5)


def test_a_record_without_a_lead_of_the_model_keeps_its_row_or_gets_zeros_by_choice(folder, tmp_path, caplog):
    model, out = make_model(tmp_path / "model", leads=TWELVE), tmp_path / "out.csv"
    quarantine = tmp_path / "out.csv.quarantine.csv"
    predict_files(model, folder / "records", out, **OPTIONS)
    assert [row for row in rows_of(out) if row[0] == "r02"] == [["r02", "", "", "", ""]]
    assert "r02.h5: leads 'aVL', 'V6' are missing; found I, II, III" in quarantine.read_text()
    before = [row for row in rows_of(out) if row[0] != "r02"]
    with caplog.at_level(logging.WARNING):
        assert predict_files(model, folder / "records", out, zeros=True, **OPTIONS) == (8, 0)
    assert "zeros stand for missing leads in 1 of 8 records" in caplog.text
    assert not quarantine.exists()
    assert [row for row in rows_of(out) if row[0] != "r02"] == before
    assert all(0 < float(score) < 1 for row in rows_of(out) for score in row[2:])
    with pytest.raises(RecordError, match="leads 'aVL', 'V6' are missing"):
        predict_files(model, folder / "records" / "r02.h5", out, **OPTIONS)


def test_the_leads_of_the_card_are_scored_in_its_order(folder, tmp_path):
    """A window is scored as torch scores what the shard of its record holds."""
    leads = ["V2", "II"]
    model = make_model(tmp_path / "model", leads=leads)
    scorer = open_scorer(model)
    index = make_shards(tmp_path / "shards", make_cohort(folder, **BARE), lead=leads)
    reader = WindowReader(index)
    windows = np.arange(reader.n_windows)
    x_WLT = reader.read(windows) * index.scale_of(windows)[:, :, None]
    reader.close()
    with torch.no_grad():
        wanted_WC = torch.sigmoid(open_model(model)[0](standardised(torch.from_numpy(x_WLT)))).numpy()
    found = []
    for number in range(8):
        records = open_model_leads(scorer.card, folder / "records" / f"r{number:02d}", folder, **OPTIONS)
        found.append(score_record(scorer, records)[1])
    np.testing.assert_allclose(np.sort(np.concatenate(found), 0), np.sort(wanted_WC, 0), atol=1e-5)


def test_leads_of_too_many_samples_together_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("anyecg.train.predict_files.MAX_SAMPLES", 12 * 6000 - 1)
    card = {"leads": TWELVE}
    with pytest.raises(RecordError, match="72000 samples in 12 leads; wanted at most 71999: split the record"):
        open_model_leads(card, folder / "records" / "r00", folder)
    assert len(open_model_leads({"leads": TWELVE[:11]}, folder / "records" / "r00", folder)) == 11


def test_beats_are_looked_for_in_lead_ii(index, tmp_path):
    make_heart(tmp_path / "heart.h5", index, comm=MPI.COMM_SELF)
    heart = read_heart(tmp_path / "heart.h5", index)
    assert heart.lead == "II"
    rows, feature_WF = heart.windows["train"]
    reader = WindowReader(index)
    wanted_WF = heart_features(np.ascontiguousarray(reader.read(rows)[:, 1]), 500)
    reader.close()
    np.testing.assert_array_equal(feature_WF, wanted_WF)


def test_published_weights_of_twelve_leads_begin_a_training_of_twelve(index, folder, tmp_path, caplog):
    torch.save(published_document(light_state(12)), tmp_path / "12_lead.pth")
    torch.save(published_document(light_state(1)), tmp_path / "1_lead.pth")
    options = {"targets": ("odd", "high"), "seed": 1, "fresh": True}

    def config(name):
        return FinetuneConfig(model="net1d", weights=str(tmp_path / name))

    network = initial_network(config("12_lead.pth"), index, MPI.COMM_SELF, **options)
    assert (network.in_channels, network.dense.out_features) == (12, 2)
    assert caplog.text == ""
    with pytest.raises(ModelError, match=r"1_lead\.pth: takes 1 leads; .* holds 12"):
        initial_network(config("1_lead.pth"), index, MPI.COMM_SELF, **options)
    turned = make_shards(tmp_path / "turned", make_cohort(folder, **BARE), lead=TWELVE[::-1])
    initial_network(config("12_lead.pth"), turned, MPI.COMM_SELF, **options)
    assert "expect I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6; the shards hold V6, V5" in caplog.text
