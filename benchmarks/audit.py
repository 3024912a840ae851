"""Compare the pinned dependencies with a vulnerability database; say so where none can be reached."""

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
# Findings that we keep, each with a dated reason: {"PYSEC-...": "2026-11-22: not reachable from our code"}.
ACCEPTED: dict[str, str] = {}


def ask(service):
    """Return pip-audit's list of dependencies that the service knows, each with its findings; empty without answer."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip",
        "--progress-spinner", "off", "--vulnerability-service", service, "--timeout", "15", "--format", "json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        # A package index without the database says "not found" of each package: that is no answer either.
        return [found for found in json.loads(done.stdout)["dependencies"] if "skip_reason" not in found]
    except ValueError:
        return []


def main():
    """Return 0 without findings, 1 with some, 3 when no database answers for every dependency."""
    n_pinned = sum("==" in line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines())
    checked = ask("pypi") or ask("osv")
    open_findings = 0
    for dependency in checked:
        for finding in dependency["vulns"]:
            reason = ACCEPTED.get(finding["id"])
            open_findings += reason is None
            fixed = ", ".join(finding["fix_versions"]) or "no release"
            print(f"{dependency['name']} {dependency['version']}: {finding['id']}, {reason or f'fixed in {fixed}'}")
    print(f"audit: {len(checked)} of {n_pinned} pinned dependencies checked, {open_findings} open findings")
    if open_findings:
        return 1
    if len(checked) < n_pinned:
        print("audit: the vulnerability database did not answer for the others; run it again where it can be reached")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
