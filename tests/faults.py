"""The fault matrix, run whole: `make fault`, or `make fault ONLY=12,40 SEED=7`. Writes docs/faults.md.

The cases are data in tests/fixtures/faults/cases.py; each is a test of tests/fault/test_fault_matrix.py, and
can be run there by its number. Only a run of all of them writes the page.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fixtures.faults.cases import CASES, FAULTS, KILLED_AT, SEED, Case

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
SUITE = "tests/fault/test_fault_matrix.py"
WORKERS = "4"

Told = dict[int, dict[str, Any]]


def rows() -> list[tuple[str, str]]:
    """List flow and fault of each row of the page, in its order."""
    return [(flow, fault) for flow in FAULTS for fault in (KILLED_AT, *FAULTS[flow])]


def run(only: list[int]) -> tuple[Told, int]:
    """Run the cases of these numbers, or all; returns what each told, and what pytest ended with."""
    with tempfile.TemporaryDirectory(prefix="pgvigil-faults-") as place:
        words = [sys.executable, "-m", "pytest", "-q", "-n", WORKERS, "--dist", "worksteal", SUITE]
        if only:
            words += ["-k", " or ".join(f"{number:03}-" for number in only)]
        environment = {**os.environ, "PGVIGIL_FAULT_RESULTS": place}
        ended = subprocess.run(words, cwd=ROOT, env=environment, check=False)
        return read(Path(place)), ended.returncode


def read(place: Path) -> Told:
    """Read what cases have told into a directory."""
    found = [json.loads(file.read_text()) for file in place.glob("*.json")]
    return {each["number"]: each for each in found}


def page(told: Told) -> str:
    """Write the matrix with what became of it."""
    passed = sum(each["passed"] for each in told.values())
    versions = ", ".join(_versions())
    lines = [HEAD.format(seed=SEED, cases=len(CASES), tried=len(told), passed=passed, versions=versions)]
    lines += [_row(flow, fault, told) for flow, fault in rows()]
    return "\n".join([*lines, ""])


def _row(flow: str, fault: str, told: Told) -> str:
    cases = [case for case in CASES if (case.flow, case.fault) == (flow, fault)]
    tried = [told[case.number] for case in cases if case.number in told]
    passed = [each for each in tried if each["passed"]]
    writers = sum(case.writers for case in cases)
    faulted, again = (_count(each[what] for each in passed) for what in ("faulted", "again"))
    counts = (len(cases), writers, len(tried), len(passed))
    return " | ".join([f"| `{flow}`", fault, *map(str, counts), faulted, f"{again} |"])


def _count(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {many}" for word, many in Counter(words).most_common())


def _versions() -> Iterable[str]:
    for words in (["pgbackrest", "version"], ["/usr/lib/postgresql/15/bin/postgres", "--version"]):
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        yield re.sub(r"postgres \(PostgreSQL\)", "PostgreSQL", said.partition(" (Debian")[0].strip())
    yield f"Python {sys.version_info.major}.{sys.version_info.minor}"


def _failed(told: Told, wanted: Iterable[Case]) -> list[Case]:
    return [case for case in wanted if not told.get(case.number, {}).get("passed")]


HEAD = """\
# Fault matrix

Each case is a story: a flow runs and meets a fault at an exact instant, with or without others who \
write; then what was broken works again, and the same flow runs once more. Afterwards the same is asked \
of every flow and fault (`tests/fixtures/faults/aftermath.py`):

- the second run is verified, or finds all done and refuses to do it twice; the first was not refuted, for \
nothing but the fault was wrong, unless of a horizon that is short because no next partition could be made;
- tables, partitions, archive, backups, work state and what people were told are as after a run that met \
nothing;
- each row that writers had confirmed is there exactly once;
- the audit chain holds up to its anchors and tells both runs, each step with its outcome; a run that \
died is closed as lost, and the second run says so;
- nothing is left: no process and so no port, no session, advisory lock, slot or prepared transaction, \
no directory of a run or a drill, no multipart upload, no event unsent, no table detached or half made.

A clean run counts what it does. A kill at a state boundary comes before and after each event of the \
audit log; every other instant is a share of the run's statements, S3 calls and tools, drawn from a \
seed. A clock jumps by an hour or by 26 forwards or back: of our code alone, where it asks for the time, \
because Debian's libfaketime cannot move the wall clock without the monotonic one. In every second case \
of a full disk the audit store is away as well, so that an event finds neither store nor spool.

A state boundary is met with writers and without. They insert rows, into the partition that leaves as \
well; of a backfill they also change the rows that it changes.

What is no part of this table, and where it is tried instead:

- A flow meets what it works with: `run_backfill`, `steer_backfill`, `reap_drills` and `keep_watch` store \
nothing in S3, `restore_partition` uploads nothing, `reap_drills` and `keep_watch` ask no cluster.
- Flows that need pgBackRest play with a repository in a directory on a small disk, which can be full, and \
reports lie on pgvigil's own disk. A repository or report store in S3 that is away is tried in \
`tests/live/test_nightly_backup_world.py` and `tests/live/test_verify_wal_archive_lines.py`.
- The copies of this table are small and go up in one piece. That a kill in the middle of an upload of \
several parts is made good is claimed in `tests/fault/test_partition_deaths.py`.
- Prefect's server and worker are killed in each flow by `tests/acceptance/test_prefect_deaths.py`. The \
runs of this table do what the flows do, without Prefect and so without its retries.

The last two columns count how runs ended. The one with the fault gave a verdict, or was killed before \
it could. The one after it took as many steps as a clean run (began anew), fewer (went on) or none, or \
refused.

`make fault` runs all and writes this page; `make fault ONLY=12,40 SEED=7` runs some, or others. A \
selection is part of `make long`.

Seed {seed}, {versions}. There are {cases} cases; this page tells of {tried} that were tried, and \
{passed} of them passed.

| flow | fault | cases | with writers | tried | passed | the run with the fault | the run after it |
|---|---|---|---|---|---|---|---|"""


def main(only: list[int]) -> int:
    """Run the cases and say which failed; 1 if one did, else what pytest ended with."""
    print(f"seed {SEED}", flush=True)  # noqa: T201 - for who waits
    told, code = run(only)
    failed = _failed(told, [case for case in CASES if not only or case.number in only])
    for case in failed:
        print(f"failed: {case.id}")  # noqa: T201 - for who waits
    if not only:
        PAGE.write_text(page(told), encoding="utf-8")
    return 1 if failed else code


if __name__ == "__main__":
    sys.exit(main([int(number) for number in ",".join(sys.argv[1:]).split(",") if number]))
