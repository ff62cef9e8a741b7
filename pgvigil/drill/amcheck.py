"""Whether tables and indexes of the copy are sound: pg_amcheck in every database, its coverage counted.

pg_amcheck passes over a database without the extension and still ends well, so the extension is installed
first, and what was checked is compared with what is there. The copy must have been promoted.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pgvigil import postgres
from pgvigil.drill.judgement import Judgement, bounded, join, listed, passed, refuted, unknown
from pgvigil.errors import DatabaseFailed, PgvigilError
from pgvigil.postgres import sql
from pgvigil.processes import Command, run
from pgvigil.reports import Check, Finding, Frozen, Severity
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pgvigil.postgres import Connection

SCHEMA = "pgvigil_amcheck"

_EXPECTED = "every table and B-tree index of the database sound, every entry of a table in its indexes"
_READING = re.compile(r'^pg_amcheck: checking (?:heap table|btree index) "(?P<name>.*)"$', re.DOTALL)
_CORRUPT = re.compile(r'^(?:heap table|btree index) "(?P<name>.*)"(?P<place>, block .*)?:$', re.DOTALL)
_NAMING = re.compile(r'(?:pg_amcheck: checking )?(?:heap table|btree index) "')
_WORDS = re.compile(r"^ {4}(?P<words>.*)$")
_CORRUPTION = 2  # pg_amcheck's exit code
_ASKED = 50  # so many relations are asked about again
# PostgreSQL appendix A: XX internal error and corruption, 58 system error such as a file that is gone.
_DAMAGE = ("XX", "58")


class Access(Frozen):
    """How to reach the copy: `dsn` as of `copy.dsn`, its options included; programs, and whose."""

    dsn: str
    programs: Path
    user: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)

    def database(self, name: str) -> str:
        """Return the connection string of one database."""
        quoted = name.replace("\\", "\\\\").replace("'", "\\'")
        return f"{self.dsn} dbname='{quoted}'"


class Relation(Frozen):
    """A relation with pages; `checked_as` is None for kinds that amcheck does not know."""

    oid: int
    name: str
    checked_as: str | None
    kind: str


class Damage(Frozen):
    """What pg_amcheck says of one relation, its first words; `sqlstate` where asking again gave one."""

    relation: str
    words: str
    sqlstate: str = ""

    @property
    def is_corruption(self) -> bool:
        """Tell damage from a check that failed for another reason, such as a function of an index."""
        return not self.words.startswith("ERROR:") or self.sqlstate.startswith(_DAMAGE)


class Outcome(Frozen):
    """How pg_amcheck ended in one database."""

    exit_code: int
    checked: frozenset[str] = frozenset()
    damages: tuple[Damage, ...] = ()
    tail: tuple[str, ...] = ()


class _Reader:
    """Reads pg_amcheck's lines: what it looks at, and what it says of it.

    A name may have several lines, and may be another one's beginning up to a quote at the end of a line.
    """

    def __init__(self, database: str, names: Iterable[str], on_progress: Callable[[int], None]) -> None:
        self.prefix = f"{database}."
        self.on_progress = on_progress
        self.checked: set[str] = set()
        self.damages: dict[str, str] = {}
        self._names = frozenset(names)
        self._beginnings = frozenset(_beginnings(f"{self.prefix}{name}" for name in self._names))
        self._relation = ""
        self._lines: list[str] = []
        self._whole = 0

    def take(self, line: str) -> None:
        """Take the next line of either stream."""
        self._lines.append(line)
        text = "\n".join(self._lines)
        if naming := _NAMING.match(text):
            if self._is_whole(text):
                self._whole = len(self._lines)
            if text[naming.end() :] in self._beginnings or not self._whole:
                return
        self._settle()

    def end(self) -> None:
        """Take the end of the last line."""
        while self._lines:
            self._settle()

    def _settle(self) -> None:
        """Read what was kept in case that a longer name came, up to the end of the longest that did."""
        lines, whole = self._lines, self._whole or 1
        self._lines, self._whole = [], 0
        self._read("\n".join(lines[:whole]))
        for line in lines[whole:]:
            self.take(line)

    def _is_whole(self, text: str) -> bool:
        """Tell whether this is all of a name; where a shorter one is whole, only if there is such a name."""
        match = _READING.match(text) or _CORRUPT.match(text)
        return match is not None and (not self._whole or self._short(match) in self._names)

    def _short(self, match: re.Match[str]) -> str:
        return match["name"].removeprefix(self.prefix)

    def _read(self, text: str) -> None:
        if match := _READING.match(text):
            self.checked.add(self._short(match))
            self.on_progress(len(self.checked))
        elif match := _CORRUPT.match(text):
            self._relation = self._short(match)
        elif (match := _WORDS.match(text)) and self._relation:
            self.damages.setdefault(self._relation, match["words"].strip())


def _beginnings(names: Iterable[str]) -> Iterator[str]:
    """Give what each name has before one of its line breaks."""
    for name in names:
        lines = name.split("\n")
        yield from ("\n".join(lines[:count]) for count in range(1, len(lines)))


def check(
    access: Access,
    application_name: str,
    deadline: timedelta,
    *,
    jobs: int = 1,
    on_progress: Callable[[str, int], None] = lambda _database, _checked: None,
) -> Judgement:
    """Check every database of the copy, those that let nobody in as well, within one deadline for all.

    Opens databases and installs the extension, so read the copy's catalogue before. What could not be
    checked is inconclusive by its name. Raises DatabaseFailed only when the copy itself is not reachable.
    """
    end = time.monotonic() + deadline.total_seconds()
    judgements = []
    for database in open_databases(access, application_name):
        left = timedelta(seconds=max(end - time.monotonic(), 0.001))
        told = partial(on_progress, database)
        judgements.append(check_database(access, application_name, database, left, jobs, told))
    return join(judgements)


def open_databases(access: Access, application_name: str) -> tuple[str, ...]:
    """Let the superuser into every database, template0 included, and name them all."""
    with postgres.connect(access.database("postgres"), application_name) as connection:
        connection.execute("SET default_transaction_read_only = off")
        rows = connection.execute(query("drill_amcheck", "databases")).fetchall()
        for row in rows:
            if not row["allows"]:
                statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true")
                connection.execute(statement.format(sql.Identifier(row["name"])))
    return tuple(row["name"] for row in rows)


def check_database(  # noqa: PLR0913 - one call, its bounds and who listens
    access: Access,
    application_name: str,
    database: str,
    deadline: timedelta,
    jobs: int = 1,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Judgement:
    """Check one database; any failure makes it inconclusive, never a pass."""
    try:
        with postgres.connect(
            access.database(database), application_name, statement_timeout=deadline
        ) as connection:
            postgres.read_bytes(connection)
            install(connection)
            _end_prepared(connection)
            relations = read_relations(connection)
            encoding = "SQL_ASCII" if postgres.is_unencoded(connection) else "UTF8"
            reader = _Reader(database, (each.name for each in relations), on_progress)
            outcome = _run(access, database, encoding, deadline, jobs, reader)
            return judge(database, relations, _ask_again(connection, relations, outcome))
    except PgvigilError as error:
        name = f"amcheck {database}"
        return Judgement(
            checks=(unknown(name, _EXPECTED, error.message),), findings=(_unchecked(database, error.message),)
        )


def install(connection: Connection) -> None:
    """Install amcheck in a schema of ours, or bring the one that is there up to date.

    A function of somebody else beside its own could be called in its place, so it is taken out of such a
    schema. Event triggers of the users are put aside within the same transaction, so none can hinder it.
    """
    (here,) = connection.execute(query("drill_amcheck", "installed")).fetchall()
    if here["version"] is not None and here["version"] == here["newest"] and not here["is_mixed"]:
        return
    connection.execute("SET default_transaction_read_only = off")  # users may have set it for the database
    with connection.transaction(), _deaf(connection, here["event_triggers"] or []):
        if here["version"] is None or here["is_mixed"]:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))  # nobody else's
        if here["version"] is None:
            connection.execute(sql.SQL("CREATE EXTENSION amcheck SCHEMA {}").format(sql.Identifier(SCHEMA)))
        elif here["is_mixed"]:
            connection.execute(
                sql.SQL("ALTER EXTENSION amcheck SET SCHEMA {}").format(sql.Identifier(SCHEMA))
            )
        if here["version"] not in {None, here["newest"]}:
            connection.execute("ALTER EXTENSION amcheck UPDATE")


def _end_prepared(connection: Connection) -> None:
    """Roll back what was prepared at the source: it holds its locks in the copy, too, and for ever."""
    for row in connection.execute(query("drill_amcheck", "prepared")).fetchall():
        connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(row["gid"])))


_ENABLE = {"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}


@contextmanager
def _deaf(connection: Connection, event_triggers: Sequence[Sequence[str]]) -> Iterator[None]:
    """Disable event triggers for the block; commands on event triggers fire none themselves."""
    statement = sql.SQL("ALTER EVENT TRIGGER {} {}")
    for name, _ in event_triggers:
        connection.execute(statement.format(sql.Identifier(name), sql.SQL("DISABLE")))
    yield
    for name, state in event_triggers:
        connection.execute(statement.format(sql.Identifier(name), sql.SQL(_ENABLE[state])))


def read_relations(connection: Connection) -> tuple[Relation, ...]:
    """Read which relations of the database have pages to check."""
    rows = connection.execute(query("drill_amcheck", "relations")).fetchall()
    shown = _as_printed if postgres.is_unencoded(connection) else str
    return tuple(
        Relation(
            oid=row["oid"],
            name=shown(f"{row['schema_name']}.{row['name']}"),
            checked_as=row["checked_as"],
            kind=row["kind"],
        )
        for row in rows
    )


def _as_printed(name: str) -> str:
    """Read a name that came byte by byte as it is read from pg_amcheck's lines."""
    return name.encode("latin-1").decode(errors="replace")


def _run(  # noqa: PLR0913 - one call, its bounds and who reads
    access: Access,
    database: str,
    encoding: str,
    deadline: timedelta,
    jobs: int,
    reader: _Reader,
) -> Outcome:
    words = (
        str(access.programs / "pg_amcheck"),
        "--verbose",
        "--no-password",
        "--heapallindexed",
        "--parent-check",
        "--on-error-stop",
        f"--jobs={jobs}",
        access.database(database),
    )
    own = {"LC_ALL": "C", "PGCLIENTENCODING": encoding}
    command = Command(argv=words, user=access.user, env={**access.environment, **own}, deadline=deadline)
    done = run(command, on_line=reader.take)
    reader.end()
    return Outcome(
        exit_code=done.exit_code,
        checked=frozenset(reader.checked),
        damages=tuple(Damage(relation=name, words=words) for name, words in reader.damages.items()),
        tail=done.tail[-3:],
    )


def _ask_again(connection: Connection, relations: Sequence[Relation], outcome: Outcome) -> Outcome:
    """Ask the server itself about relations of which pg_amcheck tells an error: it gives no SQLSTATE."""
    known = {each.name: each for each in relations}
    asked = [
        each.model_copy(update={"sqlstate": _sqlstate(connection, known[each.relation])})
        if each.words.startswith("ERROR:") and each.relation in known and place < _ASKED
        else each
        for place, each in enumerate(outcome.damages)
    ]
    return outcome.model_copy(update={"damages": tuple(asked)})


def _sqlstate(connection: Connection, relation: Relation) -> str:
    (here,) = connection.execute(query("drill_amcheck", "installed")).fetchall()
    call = "SELECT {}.bt_index_parent_check({}::oid::regclass, true)"
    if relation.checked_as == "heap table":
        call = "SELECT count(*) FROM {}.verify_heapam({}::oid::regclass, true, true)"
    statement = sql.SQL(call).format(sql.Identifier(here["schema_name"]), sql.Literal(relation.oid))
    try:
        with postgres.translated(connection.info.dsn):
            connection.execute(statement)
    except DatabaseFailed as error:
        return error.sqlstate
    return ""


def judge(database: str, relations: Sequence[Relation], outcome: Outcome) -> Judgement:
    """Judge what pg_amcheck said of one database, against what the database has."""
    name = f"amcheck {database}"
    tables = {each.name for each in relations if each.checked_as == "heap table"}
    damages = sorted(outcome.damages, key=lambda each: (each.relation not in tables, each.relation))
    groups = _grouped([each for each in damages if each.is_corruption])
    findings = [_corrupt(database, words, names) for words, names in groups.items()]
    doubt = _doubt({each.name for each in relations if each.checked_as}, outcome)
    if groups:
        decisive = refuted(
            name, _EXPECTED, [f"{', '.join(names)}: {words}" for words, names in groups.items()]
        )
    elif doubt:
        decisive = unknown(name, _EXPECTED, doubt)
        findings.append(_unchecked(database, doubt))
    else:
        decisive = passed(name, _EXPECTED, f"{len(outcome.checked)} tables and B-tree indexes")
    return Judgement(checks=(decisive, *_others(name, relations)), findings=bounded(findings, name))


def _doubt(due: set[str], outcome: Outcome) -> str:
    """Say why no damage found is no proof, if so."""
    failed = [f"{each.relation}: {each.words}" for each in outcome.damages if not each.is_corruption]
    missed = sorted(due - outcome.checked)
    if failed:
        return f"the check itself failed for {listed(failed)}"
    if outcome.exit_code:
        return f"pg_amcheck ended with {outcome.exit_code}: {listed(outcome.tail)}"
    if missed or not due:
        return f"pg_amcheck passed over {listed(missed) or 'everything'}"
    return ""


def _grouped(damages: Sequence[Damage]) -> dict[str, list[str]]:
    """Put together what has one cause: a broken page of a table is met by the check of each index as well."""
    groups: dict[str, list[str]] = {}
    for each in damages:
        groups.setdefault(each.words, []).append(each.relation)
    return groups


def _others(name: str, relations: Sequence[Relation]) -> Iterator[Check]:
    """List what amcheck has no test for, as a check that did not run."""
    others = [f"{each.name} ({each.kind})" for each in relations if not each.checked_as]
    if others:
        expected = "indexes of other kinds sound"
        yield unknown(f"{name} other", expected, f"amcheck has no test for {listed(others)}", required=False)


def _corrupt(database: str, words: str, names: Sequence[str]) -> Finding:
    return Finding(
        code="amcheck-corrupt",
        severity=Severity.ERROR,
        message=f"database {database}: {listed(names)} is corrupt in the copy: {words}",
        hint="run pg_amcheck on the source: sound there, the backup is bad; else mend the source at once",
        subject=f"{database}: {names[0]}",
    )


def _unchecked(database: str, why: str) -> Finding:
    return Finding(
        code="amcheck-unchecked",
        severity=Severity.WARNING,
        message=f"database {database} was not checked by amcheck: {why}",
        hint="without it nobody knows whether its tables and indexes are sound; mend this and drill again",
        subject=database,
    )
