"""What can go wrong for a reason the user can mend; the command line prints one line and exits 2."""


class AnyECGError(Exception):
    """Base of every error with a remedy: says where, what was found, what was wanted, what to do next.

    Attributes
    ----------
    on_every_rank : bool
        Every rank of the job raises it at the same place, so all may end in order.
    code : int
        What the command exits with.
    quiet : bool
        Another process of the job says it.
    """

    on_every_rank = False
    code = 2
    quiet = False


class UpgradeNeeded(AnyECGError):
    """A file of another format version than this code reads."""


class ConfigError(AnyECGError):
    """A config file that cannot be used."""


class RecordError(AnyECGError):
    """A recording that cannot be read."""


class Unsaid(RecordError):
    """A file of plain numbers that does not say its rate or unit, nor was it said by an option."""


class CohortError(AnyECGError):
    """A cohort that cannot be built or does not fit its config."""


class ShardError(AnyECGError):
    """A shard or index that is missing, damaged, or of another make."""


class ModelError(AnyECGError):
    """A checkpoint, model or score file that is missing, damaged, or of another make."""


class SlurmError(AnyECGError):
    """A cluster that is absent, or refuses what it is asked."""


class Stopped(AnyECGError):
    """A stage that a signal has asked to stop, and that has saved where it stands: run it again, by a requeue."""

    on_every_rank = True
    # EX_TEMPFAIL of sysexits.h.
    code = 75
