from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from anyecg.loaders.errors import ModelError
from anyecg.train.people import People, people_of

from .made import cohort_of


def test_people_are_found_by_their_visit_in_whatever_order(tiny_index):
    cohort = cohort_of(tiny_index)
    people = people_of(tiny_index, cohort)
    rows = {key: row for row, key in enumerate(cohort.visits["visit"].to_list())}
    for number, key in enumerate(np.asarray(tiny_index.tables["visit_visit"]).tolist()):
        assert people.age[number] == cohort.visits["age"][rows[key]]
        assert people.sex[number] == cohort.visits["sex"][rows[key]]
        race = cohort.side["Race"][rows[key]] or "unknown"
        assert people.race[number] in (race, "other")


def test_races_of_fewer_than_ten_patients_are_not_named(tiny_index):
    cohort = cohort_of(tiny_index)
    n_rare, key = 7, np.asarray(tiny_index.tables["visit_visit"])
    visits = pl.DataFrame(
        {
            "visit": np.append(key, key.max() + 1 + np.arange(30, dtype=np.uint64)),
            "patient": np.arange(len(key) + 30), "age": 50.0, "sex": 0,
        }
    )  # fmt: skip
    race = np.where(np.arange(visits.height) < n_rare, "Rare", "White")
    people = people_of(tiny_index, replace(cohort, visits=visits, side=pl.DataFrame({"Race": race})))
    assert people.race.tolist() == ["other"] * min(n_rare, len(key)) + ["White"] * (len(key) - n_rare)


def test_a_cohort_of_other_visits_is_refused(tiny_index):
    cohort = cohort_of(tiny_index)
    other = cohort.visits.with_columns(pl.col("visit") + 1)
    with pytest.raises(ModelError, match="visits that the cohort beside it does not have; run 'anyecg shard' again"):
        people_of(tiny_index, replace(cohort, visits=other))


def test_every_visit_is_in_one_group_of_each_attribute():
    rng = np.random.default_rng(1)
    age = np.append(rng.uniform(0, 100, 500).round(1), [np.nan, 40, 65, 80, 39.9])
    people = People(age, rng.integers(-1, 2, 505), rng.choice(["Asian", "unknown", "White"], 505))
    for attribute in ("sex", "age", "race"):
        assert (sum(inside.astype(int) for inside in people.groups(attribute).values()) == 1).all()
    bands = people.groups("age")
    assert list(bands) == ["under 40", "40-64", "65-79", "80 and over", "unknown"]
    assert [next(name for name, inside in bands.items() if inside[row]) for row in (-1, -2, -3, -4)] == [
        "under 40", "80 and over", "65-79", "40-64",
    ]  # fmt: skip


def test_what_nobody_knows_makes_no_groups():
    people = People(np.full(3, np.nan), np.full(3, -1), None)
    assert [people.groups(attribute) for attribute in ("sex", "age", "race")] == [{}, {}, {}]
