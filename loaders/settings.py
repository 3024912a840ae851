"""What every section of the config has in common; each section's class stands beside the code that reads it."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One table of the config: unknown keys are refused, values are never changed, every field has a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def identity(self, *left_out):
        """Return what of this section decides a result, as a JSON-like dict; the keys in ``left_out`` do not."""
        return self.model_dump(mode="json", exclude=set(left_out))
