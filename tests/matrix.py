"""The suite on several PostgreSQL majors: this host's own, and those that come as wheels.

`make matrix` runs it and writes docs/versions.md. What needs a stanza runs on the majors that this host's
pgBackRest knows, and is left out, by name, on the others. Red, or passing no claim, is a failure.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from pgvigil.sandbox.postgres import find_programs
from tests.fixtures.sandbox import PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "versions.md"
LOCK = ROOT / "requirements-matrix.lock"
KINDS = ("live", "contract", "fault")

PREFECT = "Prefect, a browser and the command line, which reach PostgreSQL through what the others claim"
BACKUPS = "their claims need a stanza, so pgBackRest has to know the major"
NONE = "no PostgreSQL takes part in it"
LEFT_OUT = {
    "acceptance": PREFECT,
    "contract/test_object_store": NONE,
    "fault/test_fault_matrix": "a matrix of its own, `make fault`",
    "live/test_processes": NONE,
    **dict.fromkeys(
        (
            "fault/test_nightly_backup_deaths",
            "fault/test_restore_drill_deaths",
            "live/test_alarm_test",
            "live/test_doctor",
            "live/test_drill_archived",
            "live/test_drill_recover",
            "live/test_drill_rounds",
            "live/test_drill_untouched",
            "live/test_nightly_backup",
            "live/test_nightly_backup_world",
            "live/test_repository_host",
            "live/test_restore_drill",
            "live/test_silence",
            "live/test_verify_wal_archive",
            "live/test_verify_wal_archive_files",
            "live/test_verify_wal_archive_lines",
            "live/test_verify_wal_archive_servers",
        ),
        BACKUPS,
    ),
}


LONG = {"fault/test_backfill_failover", "live/test_waves"}  # suites that have nothing else


@dataclass(frozen=True)
class Major:
    """Programs of one PostgreSQL, and where they come from."""

    programs: Path
    source: str

    @property
    def version(self) -> str:
        """Such as 17.10, as the programs say."""
        return re.findall(r"\d+(?:\.\d+)?", output(self.programs / "postgres", "--version"))[0]


@dataclass
class Result:
    """How one suite went on one major; `left_out` has the reason for each claim that was."""

    passed: int = 0
    red: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether it proves anything, and nothing against it."""
        return bool(self.passed) and not self.red

    def __str__(self) -> str:
        if not self.is_good:
            return f"**{len(self.red)} failed**" if self.red else "**none passed**"
        return f"{self.passed}" + (f", {len(self.left_out)} left out" if self.left_out else "")


Column = dict[str, Result]


def output(*words: str | Path) -> str:
    """Run a program and return what it says."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def suites() -> list[str]:
    """Name every suite that has claims about PostgreSQL apart from a backup."""
    files = [file.with_suffix("") for kind in KINDS for file in (ROOT / "tests" / kind).glob("test_*.py")]
    names = sorted(str(file.relative_to(ROOT / "tests")) for file in files)
    if unknown := set(LEFT_OUT) - {*names, "acceptance"}:
        sys.exit(f"left out, but there is no such suite: {', '.join(sorted(unknown))}")
    return [name for name in names if name not in LEFT_OUT]


@contextmanager
def majors() -> Iterator[list[Major]]:
    """Give this host's PostgreSQL, and those of the lock file, which are gone after the block."""
    with tempfile.TemporaryDirectory(prefix="pgvigil-matrix-", dir="/tmp") as place:
        Path(place).chmod(0o755)  # the servers' user has to enter it
        words = [
            "install",
            "--quiet",
            "--only-binary=:all:",
            "--no-deps",
            "--require-hashes",
            "--target",
            place,
        ]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, *words, "-r", LOCK], check=True)
        wheels = sorted(Path(place).glob("*/pginstall/bin"))
        others = [Major(home, home.parents[1].name.replace("_", "-")) for home in wheels]
        yield [Major(find_programs(None), "this host's own"), *others]


def run(major: Major, names: list[str]) -> Column:
    """Run the suites on one major and return how each went; what is long is left to `make long`."""
    quick = [name for name in names if name not in LONG]
    column = _run(major, quick, "-m", "not long") if quick else {}
    return column | (_run(major, long, "-m", "long") if (long := [*LONG.intersection(names)]) else {})


def _run(major: Major, names: list[str], *options: str) -> Column:
    with tempfile.TemporaryDirectory(prefix="pgvigil-matrix-") as place:
        report = Path(place) / "report.xml"
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "3",
            "--dist",
            "loadfile",
            "--no-loadscope-reorder",
        ]
        words += [*options, f"--junitxml={report}", *(f"tests/{name}.py" for name in names)]
        done = subprocess.run(words, cwd=ROOT, env={**os.environ, PROGRAMS: str(major.programs)}, check=False)
        if done.returncode not in {0, 1}:
            sys.exit(f"pytest ended with {done.returncode} on PostgreSQL {major.version}")
        return read(ET.parse(report), names)  # noqa: S314 - pytest's own file


def read(report: "ET.ElementTree[ET.Element]", names: list[str]) -> Column:
    """Read pytest's report; every suite that was asked for has its result, though it be empty."""
    found = {name: Result() for name in names}
    for case in report.iter("testcase"):
        result = found[case.get("classname", "").removeprefix("tests.").replace(".", "/")]
        skipped = case.find("skipped")
        if skipped is not None:
            result.left_out[str(case.get("name"))] = str(skipped.get("message"))
        elif case.find("failure") is not None or case.find("error") is not None:
            result.red.append(str(case.get("name")))
        else:
            result.passed += 1
    return found


HEAD = """\
# Versions

`make matrix` runs every suite that needs no backup on several majors of PostgreSQL and writes this page: \
how many claims passed, and which were left out, and why. What takes tens of seconds is left to `make long`, \
unless a suite has nothing else. A suite that passes none is a failure. Here were {servers}; {pgbackrest} is \
what backs up. The wheels are pinned in `requirements-matrix.lock` and serve this alone.

"""


def page(columns: dict[str, Column], head: str) -> str:
    """Write the table as docs/versions.md has it, and below it each thing that was left out, and why."""
    names = sorted(next(iter(columns.values())))
    lines = [f"| suite | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    lines += [f"| `{name}` | {' | '.join(str(each[name]) for each in columns.values())} |" for name in names]
    lines += [
        "",
        "## Left out everywhere",
        "",
        "`make test` and `make long` run these on this host's own.",
        "",
    ]
    lines += [f"- {_grouped(reason)}: {reason}" for reason in dict.fromkeys(LEFT_OUT.values())]
    for version, column in columns.items():
        told = list(_left_out(column))
        lines += ["", f"## Left out on {version}", "", *told] if told else []
    return head + "\n".join(lines) + "\n"


def _grouped(reason: str) -> str:
    return ", ".join(f"`{name}`" for name, why in sorted(LEFT_OUT.items()) if why == reason)


def _left_out(column: Column) -> Iterator[str]:
    """Tell each reason once, with the claims that it kept out."""
    claims: dict[str, list[str]] = {}
    for name, result in column.items():
        for claim, reason in result.left_out.items():
            claims.setdefault(reason, []).append(f"`{name}::{claim}`")
    yield from (f"- {', '.join(found)}: {reason}" for reason, found in claims.items())


def main() -> int:
    """Run the matrix and write the page; 1 if anything was red or any suite passed nothing."""
    names = suites()
    with majors() as found:
        columns = {f"PostgreSQL {major.version}": run(major, names) for major in found}
        sources = ", ".join(f"{major.version} from {major.source}" for major in found)
    PAGE.write_text(page(columns, HEAD.format(servers=sources, pgbackrest=output("pgbackrest", "version"))))
    bad = [
        f"{version}: {name}: {', '.join(result.red) or 'no claim passed'}"
        for version, column in columns.items()
        for name, result in column.items()
        if not result.is_good
    ]
    print("\n".join([*(PAGE.read_text().splitlines()), *bad]))  # noqa: T201 - for who waits
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
