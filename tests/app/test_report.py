import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from anyecg.app.report import draw_ecg, text_table

from ..conftest import anyecg
from ..train.made import publish_made


class Checker(HTMLParser):
    """Collect what a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.loads = []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.loads += [named[key] for key in ("src", "href", "xlink:href") if named.get(key, "#")[0] != "#"]


def test_the_report_is_one_file_that_loads_nothing(small_run):
    text = (small_run / "report.html").read_text()
    page = Checker()
    page.feed(text)
    assert page.loads == []
    assert not re.search(r"url\((?!#)|@import|<script|<img|<iframe", text)


def test_the_report_shows_every_part(small_run, small_index):
    text = (small_run / "report.html").read_text()
    for part in (
        "Results on the test split", "ROC, draw level", "AUROC with 95% CI", "Masked BCE", "Example windows",
        "records kept", "patients in two splits", "deepspeed 0", "n_replicates = 200", *small_index.targets,
    ):  # fmt: skip
        assert part in text, part
    assert text.count("<svg") >= 3 + 3 * len(small_index.targets) - 2


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
    for part in ("Decisions: each unit goes", "draw-head level, 60 min", "<td>all</td>", "<td>mean</td>", "ROC, draw"):
        assert part in text, part
    assert text.count("<th>Sensitivity</th>") == 6
