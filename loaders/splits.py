"""The names of the splits, in the order of their numbers."""

SPLITS = ("train", "val", "test")
