"""The config of the cohort: where recordings and labels come from, and how patients are split."""

from typing import Literal

from pydantic import Field, model_validator

from anyecg.loaders.lead_names import plain_options
from anyecg.loaders.settings import Section


class CohortConfig(Section):
    """Where the recordings and their labels come from, and how patients are split."""

    kind: Literal["folder", "mcmed"] = Field(
        "folder", description="folder: recordings of any format and a CSV of labels; mcmed: the layout of MC-MED 1.0.1"
    )
    path: str = Field("", description="folder of the recordings; relative to the config file")
    labels: str = Field(
        "",
        description="folder: CSV of record, patient, then columns of labels (1, 0, -1, empty) or value:NAME",
    )
    targets: str = Field("", description="mcmed: target table (component, direction, limit, unit); empty: paper's 108")
    limits: Literal["table", "file"] = Field(
        "table", description="mcmed: limits of the target table, or of labs.csv itself (Component_nml_low, _high)"
    )
    units: Literal["refuse", "ignore"] = Field(
        "refuse", description="mcmed: refuse results whose unit is not the target table's, or ignore units"
    )
    anchor: Literal["order", "result"] = Field("order", description="mcmed: time of a draw: its order or its result")
    lag_minutes: float = Field(0.0, ge=0, le=1440, description="mcmed: a draw is this long before its anchor")
    split: Literal["patient", "visit", "random", "chrono", "all"] = Field(
        "patient",
        description="by patient; mcmed: by visit (the paper's; patients overlap), or MC-MED's own lists; all: everyone "
        "is test, to judge a finished model",
    )
    val_fraction: float = Field(0.1, ge=0, lt=1, description="share of the patients (visits) for validation")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share of the patients (visits) for the test")

    fs: float = Field(0.0, ge=0, lt=1e6, description="folder: sampling rate in Hz of files that do not say it, else 0")
    unit: Literal["", "nV", "uV", "mV", "V"] = Field("", description="folder: unit of files that do not say it")
    delimiter: str = Field("", max_length=1, description="folder: between the columns of text, where it cannot be seen")
    decimal: Literal["", ".", ","] = Field("", description="folder: decimal mark of text, where it cannot be seen")
    header: Literal["", "yes", "no"] = Field(
        "", description="folder: whether a first line of text names the columns, where it cannot be seen"
    )
    lead_names: list[str] = Field(
        [], max_length=64, description="folder: names of the leads, in order, of files that do not name them"
    )

    @property
    def options(self):
        """What ``anyecg.loaders.records.open_record`` is told of files of plain numbers; empty where nothing is."""
        header = {"yes": True, "no": False}.get(self.header)
        return plain_options(
            fs=self.fs, unit=self.unit, delimiter=self.delimiter, decimal=self.decimal, header=header,
            leads=self.lead_names,
        )  # fmt: skip

    @model_validator(mode="after")
    def _some_train(self):
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must leave patients for training (below 1)")
        return self

    @property
    def fractions(self):
        """Shares of the patients for validation and test, as keyword arguments of ``split_patients``."""
        everyone = self.split == "all"
        return {
            "val_fraction": 0.0 if everyone else self.val_fraction,
            "test_fraction": 1.0 if everyone else self.test_fraction,
        }
