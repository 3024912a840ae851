"""The config of sharding, and how long a window is."""

from typing import Literal

from pydantic import Field, field_validator

from anyecg.loaders.lead_names import lead_name
from anyecg.loaders.settings import Section

# Of a window.
SECONDS = 10
MAX_LEADS = 12


class ShardConfig(Section):
    """How recordings become windows, and windows shards."""

    preset: str = Field(
        "ecgfounder",
        pattern="^(ecgfounder|ecgfounder-paper|none)$",
        description="filters of each window: ecgfounder, ecgfounder-paper or none",
    )
    fs: int = Field(500, ge=101, le=10_000, description="sampling rate of the stored windows in Hz")
    lead: str | list[str] = Field(
        "", description='lead to take: its name, or a list of 1 to 12 names as in ["I", "II", "V1"]; empty: the first'
    )
    missing_leads: Literal["quarantine", "zeros"] = Field(
        "quarantine",
        description="a record that lacks some of several leads: quarantine, or zeros for them; one without any of them "
        "is quarantined",
    )
    pad_short: bool = Field(False, description="zero-pad recordings shorter than a window instead of dropping them")
    train_horizon_min: Literal[60, 30, 15] = Field(
        60, description="horizon whose windows the train split stores, in minutes; val and test store all three"
    )
    windows_per_draw: int = Field(200, ge=1, description="windows sampled per draw and horizon, at most")
    before_only: bool = Field(False, description="take only windows that end before the draw")
    windows_per_shard: int = Field(50_000, ge=1, description="about how many windows a shard holds (10 kB a lead)")
    filter: Literal["none", "bitshuffle-lz4"] = Field(
        "none", description="none, or bitshuffle-lz4: smaller files, read by HDF5 with the package hdf5plugin only"
    )
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more than this share of records is bad")
    ranks: int = Field(2, ge=1, description="MPI ranks that shard, started on this machine")

    @field_validator("lead")
    @classmethod
    def _each_lead_once(cls, lead):
        names = [lead_name(name).lower() for name in ([lead] if isinstance(lead, str) else lead)]
        if not 1 <= len(names) <= MAX_LEADS or len(set(names)) < len(names) or ("" in names and lead != ""):
            raise ValueError(f"wanted the name of a lead, or a list of 1 to {MAX_LEADS} of them, each once")
        return lead

    @property
    def leads(self):
        """Names of the leads that windows have, in order; none stands for the first lead of each record."""
        names = [self.lead] if isinstance(self.lead, str) else self.lead
        return tuple(name for name in names if name)

    @property
    def n_leads(self):
        """How many leads a window has."""
        return max(1, len(self.leads))

    def identity(self, *left_out):
        """Return what decides the shards; a single lead is one however it is written, and is missing or there."""
        found = super().identity(*left_out)
        if self.n_leads == 1:
            found["lead"] = "".join(self.leads)
            found.pop("missing_leads", None)
        return found
