"""Who the visits of an index are: age, sex, race; and the groups that results are shown for."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from anyecg.loaders.errors import ModelError

UNKNOWN = "unknown"
SEXES = {0: "female", 1: "male", -1: UNKNOWN}
OTHER = "other"
# Races of fewer patients than this are not named.
FEW = 10
# Years at which the bands of age begin.
AGES = (0, 40, 65, 80)


@dataclass(frozen=True)
class People:
    """What is known of each visit of an index.

    Attributes
    ----------
    age : float array, shape (visits,)
        Years, NaN unknown.
    sex : int array, shape (visits,)
        0 female, 1 male, -1 unknown.
    race : array of str, shape (visits,), or None
        "unknown" where it is not given, "other" where fewer than ten patients have it; None where the source has none.
    """

    age: np.ndarray
    sex: np.ndarray
    race: np.ndarray | None

    def groups(self, attribute):
        """Return {name: bool (visits,)} of the groups of an attribute; none where nothing is known of it."""
        if attribute == "sex":
            groups = {name: self.sex == sex for sex, name in SEXES.items()}
        elif attribute == "age":
            ends = (*AGES[1:], np.inf)
            groups = {
                _band(low, high): (self.age >= low) & (self.age < high) for low, high in zip(AGES, ends, strict=True)
            }
            groups[UNKNOWN] = np.isnan(self.age)
        else:
            race = np.full(len(self.age), UNKNOWN) if self.race is None else self.race
            last = [OTHER, UNKNOWN]
            groups = {name: race == name for name in [*sorted(set(race.tolist()) - {*last}), *last]}
        groups = {name: inside for name, inside in groups.items() if inside.any()}
        return {} if set(groups) == {UNKNOWN} else groups


def _band(low, high):
    if not low:
        return f"under {high:.0f}"
    return f"{low:.0f} and over" if np.isinf(high) else f"{low:.0f}-{high - 1:.0f}"


def _races(cohort):
    """Return the race of each visit of a cohort, those of few patients as one."""
    visits = cohort.visits.select("patient").with_columns(race=cohort.side["Race"].cast(str).fill_null(""))
    visits = visits.with_columns(race=pl.col("race").replace("", UNKNOWN))
    few = pl.col("patient").n_unique().over("race") < FEW
    race = pl.when(few & (pl.col("race") != UNKNOWN)).then(pl.lit(OTHER)).otherwise(pl.col("race"))
    return visits.select(race).to_series().to_numpy().astype(str)


def people_of(index, cohort):
    """Return who the visits of an index are, from the cohort that its shards were made of.

    Raises
    ------
    ModelError
        Visits of the index that the cohort does not have.
    """
    key, wanted = cohort.visits["visit"].to_numpy(), np.asarray(index.tables["visit_visit"])
    order = np.argsort(key)
    row = order[np.minimum(np.searchsorted(key[order], wanted), len(key) - 1)]
    if not np.array_equal(key[row], wanted):
        raise ModelError(f"{index.folder}: visits that the cohort beside it does not have; run 'anyecg shard' again")
    race = None
    if "Race" in cohort.side.columns:
        race = _races(cohort)[row]
    return People(
        age=cohort.visits["age"].to_numpy().astype(np.float64)[row], sex=cohort.visits["sex"].to_numpy()[row], race=race
    )
