"""Names of the preparations of a window."""

PRESETS = ("ecgfounder", "ecgfounder-paper", "none")
