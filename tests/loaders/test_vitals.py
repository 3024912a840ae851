import numpy as np
import polars as pl
import pytest

from anyecg.loaders import tables
from anyecg.loaders.errors import CohortError
from anyecg.loaders.vitals import MEASURES, read_vitals

VISITS = pl.DataFrame({"CSN": ["1", "2", "3"]})


def test_means_agree_with_an_obvious_twin_in_blocks_of_any_size(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    columns = ("1", "2", "3", "4"), (*MEASURES, "Pain, now", ""), ("98.6", "71", "NaN", "x", "")
    rows = list(zip(*(rng.choice(values, 3000).tolist() for values in columns), strict=True))
    path = tmp_path / "numerics.csv"
    lines = [f'{csn},Monitor,"{measure}",{value},2250-01-01T00:00:00Z' for csn, measure, value in rows]
    path.write_text("\n".join(["CSN,Source,Measure,Value,Time", *lines, "1,Monitor"]) + "\n")
    whole, flow = read_vitals(path, VISITS)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 700)
    blocks, flow_of_blocks = read_vitals(path, VISITS)
    assert blocks.equals(whole, null_equal=True)
    assert flow == flow_of_blocks
    for visit, csn in enumerate(VISITS["CSN"]):
        for measure in MEASURES:
            twin = [float(v) for c, m, v in rows if (c, m) == (csn, measure) and v not in ("NaN", "x", "")]
            assert whole[f"monitor_{measure}"][visit] == pytest.approx(np.mean(twin), rel=1e-6)
    counts = dict(flow)
    assert counts["rows in numerics.csv"] == 3001
    assert counts["rows in numerics.csv"] == sum(n for what, n in flow if what.startswith("- ")) + counts["vital signs"]
    assert counts["- with another number of fields"] == 1
    assert counts["- of an unknown visit"] == sum(csn == "4" for csn, _, _ in rows)


def test_without_the_table_nothing_is_known(tmp_path):
    found, flow = read_vitals(tmp_path / "numerics.csv", VISITS)
    assert flow == []
    assert found.shape == (3, len(MEASURES))
    assert all(found[name].is_nan().all() for name in found.columns)


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "numerics.csv").write_text("CSN,Value\n1,2\n")
    with pytest.raises(CohortError, match="column 'Measure' is missing"):
        read_vitals(tmp_path / "numerics.csv", VISITS)
