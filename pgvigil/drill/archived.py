"""Whether an archived partition comes back: one of all, each month another, rebuilt in the copy and undone.

The source is not touched: the copy has the types, collations and extensions that the rows need.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from pgvigil import postgres
from pgvigil.drill import copy as copies
from pgvigil.drill.judgement import passed, refuted, unknown
from pgvigil.errors import EvidenceError, PgvigilError
from pgvigil.partitions import returning
from pgvigil.partitions.managing import Managed
from pgvigil.reports import Finding, Severity, Verdict, conclude
from pgvigil.runs import finding_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgvigil.archive.stream import Progress
    from pgvigil.drill.copy import Copy
    from pgvigil.drill.state import Drill
    from pgvigil.partitions.returning import Archived
    from pgvigil.postgres import Connection
    from pgvigil.reports import Check

CHECK = "archived"
EXPECTED = "an archived partition comes back from S3 as it was archived"


@dataclass(frozen=True)
class _InCopy(Managed):
    """One table of the fleet file as it is in the copy; no session of it can lead anywhere else.

    To rebuild a table calls functions of its owner, so it is done as the role that does it at the source.
    """

    copy: Copy | None = None

    @override
    @contextmanager
    def session(self, *, patient: bool = False) -> Iterator[Connection]:
        assert self.copy is not None  # noqa: S101 - a field after those with defaults has one
        limit = self.policy.deadline if patient else postgres.STATEMENT_TIMEOUT
        with copies.connect(self.copy, self.database, self.run.name, limit, role=self.copy.role) as session:
            yield session


def prove(drill: Drill, copy: Copy, *, on_progress: Callable[[Progress], None]) -> None:
    """Rebuild one archived partition in the copy, compare it with its manifest, and undo it.

    Refuted is a copy that is damaged, gone, or becomes another table; a store or a server that does not
    answer leaves it open. Where nothing was archived yet there is nothing to prove, and the check says so.
    """
    tables = _tables(drill, copy)
    if not tables:
        return
    try:
        found = returning.find_of_the_month(tables)
        if found is None:
            drill.run.checks.append(unknown(CHECK, EXPECTED, "nothing is archived yet", required=False))
            return
        _judge(drill, found, returning.build(found, keep=False, on_progress=on_progress))
    except EvidenceError:
        raise
    except PgvigilError as error:
        _fail(drill, error)


def _tables(drill: Drill, copy: Copy) -> list[_InCopy]:
    cluster = drill.run.identity.subject
    return [
        _InCopy(drill.run, cluster, name, copies.dsn(copy, name, role=copy.role), policy, copy=copy)
        for name, settings in drill.settings.databases.items()
        for policy in settings.partitions
        if policy.archive
    ]


def _judge(drill: Drill, found: Archived, checks: list[Check]) -> None:
    what = f"{found.managed.database}: {found.name}, {found.manifest.digest.rows} rows, from {found.uri}"
    if conclude(checks) is Verdict.VERIFIED:
        drill.run.checks.append(passed(CHECK, EXPECTED, what))
        return
    faults = [
        f"{check.id}: expected {check.expected}, found {check.actual}"
        for check in checks
        if check.verdict is not Verdict.VERIFIED
    ]
    drill.run.checks.append(refuted(CHECK, EXPECTED, faults))
    drill.run.findings.append(
        Finding(
            code="archive-lost",
            severity=Severity.ERROR,
            message=f"{what}: does not come back as it was archived: {'; '.join(faults)}",
            hint="look for an older version of the object, and prove the other copies: restore-partition "
            "with keep=false and the name of each",
            subject=str(found.name),
        )
    )


def _fail(drill: Drill, error: PgvigilError) -> None:
    if error.context.get("s3_code") == "ManifestAltered":
        drill.run.checks.append(refuted(CHECK, EXPECTED, [error.message]))
    else:
        drill.run.checks.append(unknown(CHECK, EXPECTED, error.message))
    drill.run.findings.append(finding_of(error, CHECK))
