import base64
import hashlib
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from anyecg.app.page import page
from anyecg.app.report import choices, glance, parts_of, training_note
from anyecg.app.report_cells import Axis
from anyecg.app.report_figures import draw_calibration, draw_ecg
from anyecg.app.report_text import text_table
from anyecg.loaders.files import write_document
from anyecg.train.finetune_config import FinetuneConfig, Head

from ..conftest import anyecg
from ..train.made import publish_made
from .made_results import made_comparison, made_tables

NAMES = ['IRON, "TOTAL" <low>', "A&B high", *(f"TARGET {number} high" for number in range(3, 31))]
PAPER = [0.5 + 0.009 * number for number in range(30)]


class Checker(HTMLParser):
    """Collect what a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.loads = []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.loads += [named[key] for key in ("src", "href", "xlink:href") if named.get(key, "#")[0] != "#"]


def made_page(tables, comparison=None):
    """Return the report of made-up tables, without the parts that need a run."""
    parts = parts_of(tables, truth={}, confidence=0.95, notes=["note"], comparison=comparison)
    return page(
        "report.html.j2", script="report.js", title="made", subtitle="", glance=glance(tables), **choices(tables),
        parts=parts, roc=None, training=Markup("<svg></svg>"), training_note="", examples=[], counts=[], versions="",
        config="",
    )  # fmt: skip


def rows_of(text, kind):
    """Return the rows of the first table of a kind, each a list of its cells' texts."""
    table = text[text.index(f'data-kind="{kind}"') :]
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    return [
        [unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", table)
    ]


@pytest.fixture(scope="module")
def tables():
    """Return made-up tables of 30 targets at three horizons and levels."""
    return made_tables(NAMES, paper=PAPER, internal=True)


def test_the_report_is_one_file_that_loads_nothing(small_run):
    text = (small_run / "report.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.loads == []
    assert not re.search(r"url\((?!#)|@import|<img|<iframe|<link", text)


def test_the_policy_lets_just_our_script_run(tables):
    text = made_page(tables)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert unescape(policy).startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in unescape(policy)
    assert not re.search(r"eval\(|Function\(|innerHTML|\son[a-z]+=", text)


def test_the_report_shows_every_part(small_run, small_index):
    text = (small_run / "report.html").read_text()
    for part in (
        "Results on the test split", "ROC, draw level", "AUROC with 95% CI", "Masked BCE", "Example windows",
        "records kept", "patients in two splits", "deepspeed 0", "n_replicates = 200", *small_index.targets,
    ):  # fmt: skip
        assert part in text, part
    assert text.count("<svg") >= 3 + 3 * len(small_index.targets) - 2


def test_every_row_of_the_results_is_in_a_table(tables):
    text = made_page(tables)
    assert text.count('data-kind="results-1"') == 9
    shown = [row[0].removesuffix(" few positive") for row in rows_of(text, "results-1")]
    assert sorted(shown) == sorted(NAMES)
    first = {row["target"]: row for row in tables["rows"][: len(NAMES)]}
    assert [float(row[1].split()[0]) for row in rows_of(text, "results-1")[:-1]] == sorted(
        (round(row["auroc"], 3) for row in first.values() if row["auroc"] == row["auroc"]), reverse=True
    )


def test_a_missing_interval_shows_its_reason(tables):
    text = made_page(tables)
    found = {row[0].removesuffix(" few positive"): row for row in rows_of(text, "results-1")}
    assert found[NAMES[-1]][1] == "– no positive draw"
    assert found[NAMES[-2]][1].endswith("1 positive patient; wanted 2 or more")


def test_targets_with_few_positive_patients_are_marked(tables):
    text = made_page(tables)
    few = {row["target"] for row in tables["rows"][: len(NAMES)] if row["few_positive"]}
    marked = [row[0] for row in rows_of(text, "results-1") if row[0].endswith(" few positive")]
    assert {name.removesuffix(" few positive") for name in marked} == few != set()


def test_bands_are_counted(tables):
    first = tables["rows"][: len(NAMES)]
    counts = [sum(row["band"] == band for row in first) for band in (">= 0.65", "0.55-0.65", "< 0.55")]
    assert min(counts) > 0
    assert "AUROC ≥ 0.65: {}, 0.55–0.65: {}, &lt; 0.55: {};".format(*counts) in made_page(tables)


def test_names_of_targets_are_text_and_nothing_else(tables):
    text = made_page(tables, made_comparison(NAMES))
    assert NAMES[0] not in text
    assert "<low>" not in text
    assert "IRON, &#34;TOTAL&#34; &lt;low&gt;" in text
    assert "A&amp;B high" in text


def test_small_subgroups_show_no_figure(tables):
    text = made_page(tables)
    shown = {row[0]: row[3:] for row in rows_of(text, "subgroups-1")}
    sexes = [row for row in tables["subgroups"] if row["attribute"] == "sex"]
    assert any(row["reason"] for row in sexes)
    for row in sexes:
        cell = shown[row["target"]][("F", "M").index(row["group"])]
        assert cell == "– too small" if row["reason"] else cell.startswith(f"{row['auroc']:.3f} ")


def test_what_the_ecg_adds_is_counted_by_adjusted_p(tables):
    text = made_page(tables)
    better = [
        row for row in tables["baselines"]
        if row["level"] == "draw" and row["model"] == "ecg+age-sex-heart" and row["p_holm"] < 0.05
    ]  # fmt: skip
    assert f"The ECG adds to the baseline in {len(better)} of {len(NAMES)} targets" in text


@pytest.mark.parametrize("absent", ["macro", "calibration", "subgroups", "baselines"])
def test_a_table_without_rows_has_no_part(tables, absent):
    name = {"macro": "means"}.get(absent, absent)
    assert f'<section id="{name}">' in made_page(tables)
    assert f'<section id="{name}">' not in made_page({**tables, absent: []})


def test_values_have_their_table_and_no_bands(tables):
    ends = {f"{metric}{end}": 0.5 for metric in ("mae", "r2", "spearman") for end in ("", "_low", "_high")}
    where = {"target": "POTASSIUM", "horizon_min": 60, "level": "draw", "n": 1200, "n_patients": 400}
    text = made_page({name: [where | ends] if name == "regression" else [] for name in tables})
    values = ["0.500 0.500–0.500"] * 3
    assert rows_of(text, "regression-1") == [["POTASSIUM", *values, "1,200", "400"]]
    assert 'name="band"' not in text


def test_a_comparison_in_the_run_folder_is_shown(small_run, small_index, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    write_document(run / "compare.json", "anyecg-comparison", made_comparison(list(small_index.targets)))
    done = anyecg("report", run / "config.toml", f"folder={run}")
    assert done.returncode == 0, done.stderr
    text = (run / "report.html").read_text()
    assert "Models compared" in text
    assert [row[1] for row in rows_of(text, "comparison-1")] == ["runs/a", "runs/b"]


def test_all_108_targets_stay_a_moderate_file():
    names = [f"COMPONENT NUMBER {number} high" for number in range(108)]
    assert len(made_page(made_tables(names), made_comparison(names)).encode()) < 4e6


@given(
    st.lists(st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 3).map(sorted), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_an_axis_holds_every_value_and_its_middle(triples, middle):
    rows = [{"a_low": low, "a": value, "a_high": high} for low, value, high in triples]
    axis = Axis.over(rows, ("a",), middle=middle)
    for value in (middle, *(row["a"] for row in rows)):
        assert axis.low - 1e-9 <= value <= axis.high + 1e-9
    places = [float(axis.at(value)[:-1]) for value in sorted(row["a"] for row in rows)]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= 100


def test_an_interval_beyond_the_axis_is_cut_and_says_so():
    axis = Axis(0.4, 1.0, 0.1, 0.5)
    lane = axis.lane({"a": 0.5, "a_low": 0.1, "a_high": 0.7}, "a")
    assert '<rect class="c0" x="0%" width="50%"/>' in lane
    assert "‹" in lane
    assert "›" not in lane


def test_an_axis_never_reaches_beyond_what_it_is_given():
    rows = [{"a": value, "a_low": value - 50, "a_high": value + 50} for value in (0.5, 1.0, 20.0)]
    axis = Axis.over(rows, ("a",), middle=1.0, within=(-1.0, 3.0))
    assert (axis.low, axis.high) == (-1.0, 3.0)
    assert "<circle" not in axis.lane(rows[2], "a")
    assert "›" in axis.lane(rows[2], "a")


def test_a_calibrated_curve_lies_on_the_diagonal():
    bins = [{"predicted": share, "observed": share} for share in (0.01, 0.02, 0.035)]
    points = re.search(r'points="([^"]*)"', draw_calibration(bins))[1].split()
    assert [sum(map(float, point.split(","))) for point in points] == pytest.approx([100] * 3)


def test_ecg_paper_is_drawn_to_scale():
    picture = draw_ecg(np.zeros(5000), 500)
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', picture).groups()
    assert (float(width) / 72 * 25.4, float(height) / 72 * 25.4) == pytest.approx((250, 25), abs=0.01)


def test_the_text_table_keeps_missing_numbers_visible():
    row = dict.fromkeys(
        ("auroc", "auroc_low", "auroc_high", "auprc", "sensitivity", "specificity", "f1"), float("nan")
    )  # fmt: skip
    counts = {"target": "t", "level": "draw", "horizon_min": 60, "n": 3, "n_positive": 0}
    line = text_table([{**counts, **row}]).splitlines()[-1]
    assert "no interval" in line
    assert "–" in line


def test_the_report_shows_the_decisions_of_a_model_of_exclusive_labels(small_run, small_index, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    model = publish_made(
        tmp_path / "model", small_index, head="exclusive", join="features", windows_per_sample=3
    )  # fmt: skip
    shutil.copy(small_run / "model/curve.csv", model)
    done = anyecg(
        "run", run / "config.toml", f"folder={run}", f"predict.model={model}",
        'evaluate.levels=["window", "draw", "draw-head"]', 'evaluate.f1_classes=["noise", "atrial_fibrillation"]',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^mean +draw-head +60 ", done.stdout, re.MULTILINE)
    text = (run / "report.html").read_text()
    for part in ("Each unit goes to the class", "draw-head level, 60 min", "ROC, draw"):
        assert part in text, part
    assert [row[0] for row in rows_of(text, "decisions-1")] == [*small_index.targets, "all", "mean"]
    assert text.count('data-kind="decisions-1"') == text.count('data-kind="results-1"') == 3


@pytest.mark.parametrize("best_by", get_args(FinetuneConfig.model_fields["best_by"].annotation))
@pytest.mark.parametrize("head", get_args(Head))
def test_the_note_on_training_says_by_what_the_epoch_was_chosen(best_by, head):
    card = {"model": "resnet", "n_parameters": 5, "epoch": 2.0, "head": head, "finetune": {"best_by": best_by}}
    said = training_note(card, [{"windows_per_s": 7.0, "waiting_share": 0.5}] * 3)
    wanted = "lowest validation loss" if best_by == "loss" else "R2" if head == "regression" else "AUROC"
    assert wanted in said
