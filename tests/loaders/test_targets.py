import polars as pl
import pytest

from anyecg.loaders.errors import CohortError
from anyecg.loaders.targets import label_of, parse_results, read_targets


def test_the_papers_table_has_108_targets_of_66_components():
    targets = read_targets()
    assert len(targets) == len({target.name for target in targets}) == 108
    components = [target.component for target in targets]
    assert len(set(components)) == 66
    assert sum(components.count(component) == 2 for component in set(components)) == 42
    (found,) = (target for target in targets if target.name == "POTASSIUM high")
    assert (found.limit, found.unit) == (5.0, "mmol/L")
    assert all(0.5 < target.paper_auroc < 1 or target.paper_auroc <= 0.5 for target in targets)


@pytest.mark.parametrize(
    ("text", "sign", "number"),
    [
        ("4.1", "=", 4.1), (" 4 ", "=", 4.0), (">10.0", ">", 10.0), ("< 0.01", "<", 0.01), (">=3", ">=", 3.0),
        ("≤2", "<=", 2.0), ("1,200", "=", 1200.0), ("-1.5", "=", -1.5), ("1e3", "=", 1000.0), (".5", "=", 0.5),
        ("Negative", None, None), ("", None, None), ("4.1 H", None, None), ("nan", None, None), ("1e999", None, None),
        (None, None, None), ("1-2", None, None),
    ],
)  # fmt: skip
def test_results_are_split_into_sign_and_number(text, sign, number):
    frame = pl.DataFrame({"x": [text]}, schema={"x": pl.String})
    found_sign, found_number = frame.select(
        *(e.alias(n) for e, n in zip(parse_results(pl.col("x")), "sn", strict=True))
    ).row(0)
    assert (found_sign, found_number) == (sign, pytest.approx(number) if number is not None else None)


def slow_label(sign, number, direction, limit):
    """The obvious twin: what every number that the text may stand for says."""
    step = 1e-3
    candidates = {
        "=": [number], ">": [number + step, number + 1e6], ">=": [number, number + 1e6],
        "<": [number - step, number - 1e6], "<=": [number, number - 1e6],
    }[sign]  # fmt: skip
    said = {value > limit if direction == "high" else value < limit for value in candidates}
    return int(said.pop()) if len(said) == 1 else -1


@pytest.mark.parametrize("direction", ["low", "high"])
@pytest.mark.parametrize("sign", ["=", "<", "<=", ">", ">="])
@pytest.mark.parametrize("number", [3.0, 4.0, 5.0])
def test_a_sign_decides_a_label_whenever_it_can(sign, number, direction):
    frame = pl.DataFrame({"sign": [sign], "number": [number]})
    found = frame.select(label_of(pl.col("sign"), pl.col("number"), direction, 4.0)).item()
    assert found == slow_label(sign, number, direction, 4.0)


def test_no_number_is_no_label():
    frame = pl.DataFrame({"sign": [None], "number": [None]}, schema={"sign": pl.String, "number": pl.Float64})
    assert frame.select(label_of(pl.col("sign"), pl.col("number"), "low", 4.0)).item() == -1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("component,direction,limit\nK,high,5\n", "line 2: unit is missing"),
        ("component,direction,limit,unit\nK,up,5,m\n", "wanted low or high"),
        ("component,direction,limit,unit\nK,high,x,m\n", "limit 'x'; wanted a number"),
        ("component,direction,limit,unit\nK,high,nan,m\n", "wanted low or high, a number"),
        ("component,direction,limit,unit\nK,high,5,m\nK,high,6,m\n", "stands twice"),
        ("component,direction,limit,unit\nK,high,5,m\nK,low,3,g\n", "two units of one component"),
        ("component,direction,limit,unit\nK,high,1e999,m\n", "wanted low or high, a number"),
        ("component,direction,limit,unit\n,high,5,m\n", "wanted low or high, a number"),
        ("component,direction,limit,unit\n", "no target"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CohortError, match=said):
        read_targets(tmp_path / "t.csv")
