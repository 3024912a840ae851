"""The source's CSV tables: opened strictly, every column as text, large ones read block by block."""

import polars as pl
import pyarrow as pa
import pyarrow.csv

from anyecg.loaders.errors import CohortError
from anyecg.loaders.progress import Progress

# Bounds the memory, for pyarrow reads some thirty blocks ahead; no row may be longer.
BLOCK_BYTES = 4 * 2**20
OTHER_WIDTH = "with another number of fields"


def _refusal(path, cause):
    # pyarrow quotes the row that it cannot decode; what stands in it must not leave the source.
    reason = str(cause).splitlines()[0].split(", got ")[0]
    return CohortError(f"{path}: not a CSV ({reason}); wanted UTF-8 text with a header, as MC-MED has it")


def _fields():
    """Return the expression of all fields; an empty one, or of spaces only, counts as missing, quoted or not."""
    stripped = pl.all().str.strip_chars()
    return pl.when(stripped != "").then(stripped).name.keep()


def scan(path, wanted):
    """Open a CSV lazily, every column as text; refuse it without the wanted columns."""
    if not path.is_file():
        raise CohortError(f"{path}: no such file; give the folder of MC-MED as 'path' in [cohort]")
    try:
        table = pl.scan_csv(path, infer_schema=False)
        found = table.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as cause:
        raise _refusal(path, cause) from None
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CohortError(f"{path}: column '{missing[0]}' is missing; found {', '.join(found)}")
    return table.select(_fields())


def collect(table, path):
    """Run a lazy query in streaming fashion; refuse what is not a CSV."""
    try:
        return table.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as cause:
        raise _refusal(path, cause) from None


def microseconds(text):
    """Return the expression of int64 microseconds since 1970 of ISO times, beyond 2262 too; null where none.

    T or a space, fractions of a second or none, then Z, an offset, or nothing, which is UTC, the axis of all tables.
    """
    zone = pl.when(text.str.contains(r"(Z|[+-]\d\d:?\d\d)$")).then(pl.lit("")).otherwise(pl.lit("Z"))
    return (text + zone).str.to_datetime("%+", time_unit="us", strict=False).dt.timestamp("us")


def blocks(path, wanted, counts):
    """Yield a CSV block by block, each a lazy table of the wanted columns as text; memory does not grow with the file.

    Parameters
    ----------
    path : path
    wanted : sequence of str
        Columns; others are not read.
    counts : Counter
        Rows with another number of fields than the header are counted here under OTHER_WIDTH, and left out.

    Raises
    ------
    CohortError
        No such file or column, not UTF-8, a row of more than BLOCK_BYTES, or a quote that is never closed.
    """
    scan(path, wanted)

    def other_width(_):
        counts[OTHER_WIDTH] += 1
        return "skip"

    try:
        with Progress(path.name, path.stat().st_size, "B") as progress:
            found = pyarrow.csv.open_csv(
                path,
                # With threads it would hold as many blocks more as the machine has cores.
                pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=other_width),
                pyarrow.csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())),
            )
            for block in found:
                progress.advance(min(BLOCK_BYTES, progress.total - progress.done))
                yield pl.DataFrame(block).lazy().select(_fields())
    except (pa.ArrowException, OSError) as cause:
        raise _refusal(path, cause) from None
    # pyarrow ends a field at the end of the file without a word, and with it every row inside an open quote.
    with path.open("rb") as file:
        n_quotes = sum(part.count(b'"') for part in iter(lambda: file.read(BLOCK_BYTES), b""))
    if n_quotes % 2:
        raise CohortError(f"{path}: a quote is never closed ({n_quotes} quotes); mend the table")
