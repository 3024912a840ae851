"""R13 for shards, long form: every hostile shard and index is refused in a second and 256 MB, and leads nowhere."""

import shutil
import tempfile
from pathlib import Path

from tests.loaders.hostile import STRACE, escapes, not_refused, run_all


def main():
    """Print how many trials were refused, the slowest and the memory; a second pass is watched by strace."""
    if not shutil.which("strace"):
        raise SystemExit("strace is missing; install it to see what is opened")
    with tempfile.TemporaryDirectory() as folder:
        tried = run_all(folder)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        traced = run_all(home, *STRACE, str(home / "trace"))
        escaped = escapes((home / "trace").read_text(), home)
    found = tried["found"]
    wrong = not_refused(found) | not_refused(traced["found"])
    slowest = max(found, key=lambda name: found[name][1])
    memory = max(tried["peak_mb"], tried["child_peak_mb"])
    if wrong or escaped or found[slowest][1] > 1 or memory > 256:
        raise SystemExit(f"{wrong}, outside: {escaped}, slowest {slowest}: {found[slowest]}, {memory:.0f} MB")
    print(f"{len(found)} trials of hostile shards and indices: all refused by a typed error; nothing opened outside,")
    print(f"no socket; slowest {found[slowest][1] * 1e3:.0f} ms; peak memory {memory:.0f} MB")


if __name__ == "__main__":
    main()
