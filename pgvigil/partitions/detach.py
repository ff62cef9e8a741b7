"""Taking a partition out of its table, whatever state an earlier try has left it in."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from psycopg import sql

from pgvigil.archive.shape import BOUND_CHECK, bound_checks, read_shape
from pgvigil.errors import Busy, DatabaseFailed, PreconditionFailed
from pgvigil.lock import LOCK_NOT_AVAILABLE
from pgvigil.partitions.catalog import identifier
from pgvigil.partitions.envelope import CANCELED, WAITED, bounded, explain_wait
from pgvigil.partitions.references import require_quick
from pgvigil.postgres import translated
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.partitions.facts import Departure, Table
    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection

Standing = Literal["attached", "pending", "detached", "gone"]

POLL_SECONDS = 0.5
NOT_A_PARTITION = "42P01"
STILL_REFERENCED = "23503"


def standing(session: Connection, departure: Departure, parent: int) -> Standing:
    """Read where a partition is now; raises PreconditionFailed when its OID has become another table."""
    row = session.execute(query("partitions", "standing"), {"oid": departure.relation}).fetchone()
    if row is None:
        return "gone"
    _check(row, departure, parent)
    if not row["is_partition"]:
        return "detached"
    return "pending" if row["is_pending"] else "attached"


def _check(row: dict[str, Any], departure: Departure, parent: int) -> None:
    found = (row["schema"], row["name"])
    wanted = (departure.name.schema_, departure.name.name)
    if found != wanted:
        raise PreconditionFailed(
            f"OID {departure.relation} is now '{'.'.join(found)}', planned as '{departure.name}'",
            hint="somebody renamed or replaced it; rename it back, or remove its row in pgvigil.departure",
        )
    if row["is_partition"] and row["parent"] != parent:
        raise PreconditionFailed(f"'{departure.name}' is a partition of another table now", hint="plan again")
    if row["is_partition"] and row["bound"] != departure.bound:
        raise PreconditionFailed(
            f"'{departure.name}' has bound {row['bound']}, planned with {departure.bound}", hint="plan again"
        )


def detach(
    session: Connection, dsn: str, table: Table, departure: Departure, policy: PartitionPolicy
) -> None:
    """Bring a partition to the state `detached`; raises Busy, naming who holds it up.

    Idempotent: a pending detach is finished, one that a session still works on is waited for.
    """
    await_others(session, departure, policy)
    now = standing(session, departure, table.oid)
    own = _bound_checks(session, departure)
    if now == "attached":
        _begin(session, dsn, table, departure, policy)
        now = standing(session, departure, table.oid)
    if now == "pending":
        _finalize(session, dsn, table, departure, policy)
    for name in _bound_checks(session, departure) - own:
        _call_ours(session, dsn, departure, name)


def _bound_checks(session: Connection, departure: Departure) -> set[str]:
    return set(bound_checks(read_shape(session, departure.relation), departure.condition))


def _call_ours(session: Connection, dsn: str, departure: Departure, check: str) -> None:
    """Give the CHECK of a concurrent detach a name that people give to none of theirs.

    Who reads the table by its own name may keep it from that: then it is taken for theirs, and comes back.
    """
    rename = sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}").format(
        identifier(departure.name), sql.Identifier(check), sql.Identifier(BOUND_CHECK)
    )
    with suppress(DatabaseFailed), translated(dsn):
        session.execute(rename)


def await_others(session: Connection, departure: Departure, policy: PartitionPolicy) -> None:
    """Wait for a session that still works on this detach: the server goes on when its client has died."""
    deadline = time.monotonic() + policy.wait.total_seconds()
    while rows := session.execute(query("partitions", "detaching"), {"name": departure.name.name}).fetchall():
        if time.monotonic() >= deadline:
            raise Busy(
                f"pid {rows[0]['pid']} '{rows[0]['application_name']}' has been detaching '{departure.name}' "
                f"for {float(rows[0]['seconds']):.0f} s",
                hint="wait for it, or end it with pg_terminate_backend; the next run finishes what it began",
            )
        time.sleep(POLL_SECONDS)


def _begin(
    session: Connection, dsn: str, table: Table, departure: Departure, policy: PartitionPolicy
) -> None:
    parent, child = identifier(table.name), identifier(departure.name)
    if departure.method == "blocking":
        require_quick(session, policy, departure)
        statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(parent, child)
    else:
        _await_quiet(session, table, departure, policy)
        statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {} CONCURRENTLY").format(parent, child)
    what = f"the detach of '{departure.name}'"

    def attempt() -> None:
        if standing(session, departure, table.oid) == "attached":
            session.execute(statement)

    try:
        bounded(session, dsn, policy, attempt)
    except DatabaseFailed as error:
        if error.sqlstate == CANCELED and standing(session, departure, table.oid) == "pending":
            return  # it only waited for others, which kept nobody from the table: it is finished next
        _explain(session, error, table, departure, what)


def _await_quiet(session: Connection, table: Table, departure: Departure, policy: PartitionPolicy) -> None:
    """Wait until no old transaction holds the table: once begun, a detach is pending until they end."""
    deadline = time.monotonic() + policy.wait.total_seconds()
    oids = [table.oid, departure.relation]
    asked = {"oids": oids, "older": policy.block}
    while session.execute(query("partitions", "lockers"), asked).fetchone():
        if time.monotonic() >= deadline:
            away = DatabaseFailed("somebody holds the table", sqlstate=LOCK_NOT_AVAILABLE)
            raise explain_wait(session, away, oids, f"the detach of '{departure.name}'")
        time.sleep(POLL_SECONDS)


def _finalize(
    session: Connection, dsn: str, table: Table, departure: Departure, policy: PartitionPolicy
) -> None:
    """Finish a pending detach; while it waits for old snapshots it holds up its own readers alone."""
    statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {} FINALIZE").format(
        identifier(table.name), identifier(departure.name)
    )

    def attempt() -> None:
        if standing(session, departure, table.oid) == "pending":
            session.execute(statement)

    try:
        bounded(session, dsn, policy, attempt)
    except DatabaseFailed as error:
        _explain(session, error, table, departure, f"the pending detach of '{departure.name}'")


def _explain(
    session: Connection, error: DatabaseFailed, table: Table, departure: Departure, what: str
) -> None:
    if error.sqlstate == NOT_A_PARTITION and standing(session, departure, table.oid) == "detached":
        return  # another session's detach overtook this one
    if error.sqlstate in WAITED:
        raise explain_wait(session, error, [table.oid, departure.relation], what) from error
    if error.sqlstate == STILL_REFERENCED:
        raise PreconditionFailed(
            f"{', '.join(table.referenced_by)} refer to rows of '{departure.name}': {error.message}",
            hint="archive or delete the referring rows first",
        ) from error
    raise error
