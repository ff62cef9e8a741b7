"""Whether every page of the copy has the checksum that was computed when it was written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import Field

from pgvigil.drill.judgement import Judgement, bounded, listed, passed, refuted, unknown
from pgvigil.errors import PgvigilError
from pgvigil.processes import Command, run
from pgvigil.reports import Finding, Frozen, Severity
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from pgvigil.drill.amcheck import Access
    from pgvigil.postgres import Connection

CHECK = "checksums"

_EXPECTED = "every page with its checksum"
_BAD_PAGE = re.compile(r'checksum verification failed in file "(?P<file>[^"]+)", block (?P<block>\d+)')
_UNREADABLE = re.compile(r'could not (?:open|read) (?:file|block \d+ in file) "(?P<file>[^"]+)"')
_COUNT = re.compile(r"^(?P<what>Files scanned|Blocks scanned|Bad checksums): +(?P<count>\d+)")
_OFF = re.compile(r"data checksums are not enabled")


class Scan(Frozen):
    """What pg_checksums said: pages by file and block, and what it counted."""

    exit_code: int
    bad_pages: tuple[tuple[str, int], ...] = ()
    unreadable: tuple[str, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    is_off: bool = False
    tail: tuple[str, ...] = ()


class _Reader:
    """Reads pg_checksums' lines."""

    def __init__(self, data: Path) -> None:
        self.root = f"{data}/"
        self.bad_pages: list[tuple[str, int]] = []
        self.unreadable: list[str] = []
        self.counts: dict[str, int] = {}
        self.is_off = False

    def take(self, line: str) -> None:
        """Take the next line of either stream."""
        if match := _BAD_PAGE.search(line):
            self.bad_pages.append((self._inside(match["file"]), int(match["block"])))
        elif match := _UNREADABLE.search(line):
            self.unreadable.append(self._inside(match["file"]))
        elif match := _COUNT.match(line):
            self.counts[match["what"]] = int(match["count"])
        elif _OFF.search(line):
            self.is_off = True

    def _inside(self, file: str) -> str:
        return file.removeprefix(self.root).removeprefix("./")


def check(access: Access, data: Path, deadline: timedelta, files: Mapping[str, str]) -> Judgement:
    """Check the pages of a copy that was stopped cleanly; `files` names relations by path below `data`.

    A cluster without checksums cannot be checked, which is told and decides nothing.
    """
    reader = _Reader(data)
    words = (str(access.programs / "pg_checksums"), "--check", "-D", str(data))
    command = Command(
        argv=words, user=access.user, env={**access.environment, "LC_ALL": "C"}, deadline=deadline
    )
    try:
        done = run(command, on_line=reader.take)
    except PgvigilError as error:
        return Judgement(checks=(unknown(CHECK, _EXPECTED, error.message),))
    scan = Scan(
        exit_code=done.exit_code,
        bad_pages=tuple(reader.bad_pages),
        unreadable=tuple(reader.unreadable),
        counts=reader.counts,
        is_off=reader.is_off,
        tail=done.tail[-3:],
    )
    return judge(scan, files)


def judge(scan: Scan, files: Mapping[str, str]) -> Judgement:
    """Judge a scan: exit code 1 is both bad pages and a scan that did not happen, so the words decide."""
    if scan.is_off:
        detail = "data checksums are off in this cluster: enable them with pg_checksums --enable"
        return Judgement(checks=(unknown(CHECK, _EXPECTED, detail, required=False),))
    pages: dict[str, list[int]] = {}
    for file, block in scan.bad_pages:
        pages.setdefault(file, []).append(block)
    if pages:
        findings = [_finding(file, blocks, files) for file, blocks in pages.items()]
        check = refuted(CHECK, _EXPECTED, [finding.subject for finding in findings])
        return Judgement(checks=(check,), findings=bounded(findings, CHECK))
    blocks = scan.counts.get("Blocks scanned", 0)
    if scan.exit_code or scan.unreadable or not blocks or scan.counts.get("Bad checksums") != 0:
        why = listed(scan.unreadable) or f"pg_checksums ended with {scan.exit_code}: {listed(scan.tail)}"
        return Judgement(checks=(unknown(CHECK, _EXPECTED, why),))
    return Judgement(checks=(passed(CHECK, _EXPECTED, f"{blocks} pages"),))


def _finding(file: str, blocks: Sequence[int], files: Mapping[str, str]) -> Finding:
    named = _relation(file, files)
    return Finding(
        code="checksum-failed",
        severity=Severity.ERROR,
        message=f"{len(blocks)} pages of {named} fail their checksum in the copy, first block {blocks[0]}",
        hint="see whether the source has them too (pg_amcheck, pg_checksums): if not, the backup is damaged",
        subject=named,
    )


def _relation(file: str, files: Mapping[str, str]) -> str:
    """Name the relation of a file; base/5/1259.1 is more of base/5/1259, base/5/1259_vm a fork of it."""
    main = re.sub(r"(_(vm|fsm|init))?(\.\d+)?$", "", file)
    return f"{files[main]} ({file})" if main in files else file


def read_files(connection: Connection) -> dict[str, str]:
    """Name the relations of the session's database by the path of their file, while the copy still runs."""
    rows = connection.execute(query("drill_checksums", "files")).fetchall()
    return {row["path"]: row["relation"] for row in rows}


def read_failures(connection: Connection) -> Judgement:
    """Judge how many checksum failures the copy has met since it was started."""
    name, expected = "checksum failures", "none met while the copy ran"
    rows = connection.execute(query("drill_checksums", "failures")).fetchall()
    failed = [f"{row['database']}: {row['failures']}" for row in rows if row["failures"]]
    if not rows or all(row["failures"] is None for row in rows):
        return Judgement(checks=(unknown(name, expected, "data checksums are off", required=False),))
    if failed:
        return Judgement(checks=(refuted(name, expected, failed),))
    return Judgement(checks=(passed(name, expected, f"{len(rows)} databases"),))
