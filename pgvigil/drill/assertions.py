"""Whether what the users say of their data is true in the copy: SQL of the fleet file, as their own role."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg.rows import tuple_row

from pgvigil import postgres
from pgvigil.drill.copy import ROLE_OPTIONS
from pgvigil.drill.judgement import Judgement, join, passed, refuted, unknown
from pgvigil.errors import DatabaseFailed
from pgvigil.postgres import sql
from pgvigil.reports import Finding, Frozen, Severity
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from pgvigil.drill.amcheck import Access
    from pgvigil.policies.drill import Assertion
    from pgvigil.postgres import Connection

_EXPECTED = "one row with true"
_LONGEST_ANSWER = 100  # characters
_ADMISSION = (
    sql.SQL("ALTER ROLE {role} LOGIN CONNECTION LIMIT -1"),
    sql.SQL("GRANT CONNECT ON DATABASE {database} TO {role}"),
    # none, as in this session of a superuser: the host may lack a library that the role is set to load
    sql.SQL("ALTER ROLE {role} IN DATABASE {database} SET session_preload_libraries FROM CURRENT"),
)
_DAMAGE = ("XX", "58")  # PostgreSQL appendix A: corruption and internal errors, files that are gone


class Answer(Frozen):
    """What one assertion came out as: `true`, or how it did not."""

    code: str
    said: str = ""

    @property
    def is_known(self) -> bool:
        """Tell an answer from an error that leaves the question open."""
        return self.code != "assertion-failed-to-run"


def check(
    access: Access, application_name: str, assertions: Sequence[Assertion], statement_timeout: timedelta
) -> Judgement:
    """Run every assertion in the copy, read only, each in a session of its own."""
    return join(
        judge(assertion, ask(access, application_name, assertion, statement_timeout))
        for assertion in assertions
    )


def ask(access: Access, application_name: str, assertion: Assertion, statement_timeout: timedelta) -> Answer:
    """Run one assertion as its role, with the settings that the role has in that database."""
    role = assertion.role or ""
    dsn = access.database(assertion.database)
    try:
        with postgres.connect(dsn, application_name) as session:
            if not session.execute(query("drill_assertions", "role"), {"role": role}).fetchall():
                return Answer(code="assertion-role-missing", said=f"role {role} is not in the copy")
            _admit(session, role, assertion.database)
        dsn = postgres.conninfo(dsn, user=role, options=ROLE_OPTIONS)
        with (
            postgres.connect(dsn, application_name, statement_timeout=statement_timeout) as connection,
            _as_a_client(connection),
        ):
            return _ask(connection, assertion)
    except DatabaseFailed as error:
        if error.sqlstate.startswith(_DAMAGE):
            return Answer(code="assertion-met-damage", said=error.message)
        return Answer(code="assertion-failed-to-run", said=error.message)


def _admit(session: Connection, role: str, database: str) -> None:
    """Let the role log in to the copy, though it may be one that only others become.

    A superuser who takes on a role has it taken off again by the first function that says RESET.
    """
    for statement in _ADMISSION:
        session.execute(statement.format(role=sql.Identifier(role), database=sql.Identifier(database)))


@contextmanager
def _as_a_client(connection: Connection) -> Iterator[None]:
    """Open a read-only transaction with what role and database are set to, where we set something else."""
    with connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        for name in ("search_path", "timezone", "datestyle", "intervalstyle"):
            connection.execute(sql.SQL("RESET {}").format(sql.Identifier(name)))
        yield


def _ask(connection: Connection, assertion: Assertion) -> Answer:
    # Prepared, so that the server refuses a second command.
    cursor = connection.cursor(row_factory=tuple_row).execute(assertion.sql.encode(), prepare=True)
    return _answer(cursor.fetchmany(2) if cursor.description else [])


def _answer(rows: Sequence[tuple[Any, ...]]) -> Answer:
    if not rows:
        return Answer(code="assertion-no-row", said="no row")
    if len(rows) > 1 or len(rows[0]) != 1:
        return Answer(code="assertion-not-one", said=f"{len(rows[0])} columns, {len(rows)} rows or more")
    (value,) = rows[0]
    if value is True:
        return Answer(code="true", said="true")
    if value is None:
        return Answer(code="assertion-null", said="NULL")
    if value is False:
        return Answer(code="assertion-false", said="false")
    return Answer(code="assertion-not-boolean", said=f"{type(value).__name__} {value}"[:_LONGEST_ANSWER])


def judge(assertion: Assertion, answer: Answer) -> Judgement:
    """Judge one answer: only true passes; an error leaves it open, anything else refutes."""
    name = f"assertion {assertion.database} {assertion.name}"
    if answer.code == "true":
        return Judgement(checks=(passed(name, _EXPECTED, f"true, as {assertion.role}"),))
    check = unknown(name, _EXPECTED, answer.said)
    if answer.is_known:
        check = refuted(name, _EXPECTED, [answer.said])
    return Judgement(checks=(check,), findings=(_finding(assertion, answer),))


def _finding(assertion: Assertion, answer: Answer) -> Finding:
    return Finding(
        code=answer.code,
        severity=Severity.ERROR,
        message=f"database {assertion.database}: assertion '{assertion.name}', as {assertion.role}: "
        f"expected {_EXPECTED}, found {answer.said}",
        hint=f"run its SQL on the source as {assertion.role}: true there, the copy is wrong",
        subject=f"{assertion.database}: {assertion.name}",
    )
