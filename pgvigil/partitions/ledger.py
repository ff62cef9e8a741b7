"""The work state in the user's database, and the fence that keeps writers off a detached table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from psycopg import sql

from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.postgres import translated
from pgvigil.sql import query

if TYPE_CHECKING:
    from uuid import UUID

    from pgvigil.partitions.facts import Departure, Entry
    from pgvigil.postgres import Connection

TRIGGERS = ("pgvigil_no_write", "pgvigil_no_truncate")


def prepare(session: Connection, dsn: str) -> None:
    """Create schema, table and trigger function where they are not there yet. Idempotent."""
    missing = [
        make
        for look, make in (
            ("ledger_schema_exists", "ledger_schema"),
            ("ledger_exists", "ledger_table"),
            ("ledger_function_exists", "ledger_trigger_function"),
        )
        if not _found(session, look)
    ]
    try:
        with translated(dsn), session.transaction():
            for make in missing:
                session.execute(query("partitions", make))
    except DatabaseFailed as error:
        raise PreconditionFailed(
            f"the work state cannot be kept in this database: {error.message}",
            hint="let pgvigil create its schema: GRANT CREATE ON DATABASE … TO pgvigil",
        ) from error


def _found(session: Connection, name: str) -> bool:
    row = session.execute(query("partitions", name)).fetchone()
    return bool(row and row["found"])


def begin(session: Connection, id_: UUID, departure: Departure, parent: int) -> None:
    """Note that a partition is about to leave, so that the next run finds it whatever happens."""
    row = {
        "id": id_,
        "relation": departure.relation,
        "schema": departure.name.schema_,
        "name": departure.name.name,
        "parent": parent,
        "bound": departure.bound,
        "condition": departure.condition,
    }
    with session.transaction():
        session.execute(query("partitions", "ledger_forget_return"), {"relation": departure.relation})
        session.execute(query("partitions", "ledger_begin"), row)


def end(session: Connection, id_: UUID) -> None:
    """Forget a partition that has arrived. Idempotent."""
    session.execute(query("partitions", "ledger_end"), {"id": id_})


def archived(session: Connection, id_: UUID, manifest: str) -> None:
    """Note where the proven copy is."""
    session.execute(query("partitions", "ledger_archived"), {"id": id_, "manifest": manifest})


def raise_fence(session: Connection, id_: UUID, relation: int, table: sql.Identifier) -> None:
    """Keep every writer off a table from now on, and note how that was done; in one transaction.

    Creating a trigger waits for all who write, prepared transactions included. The triggers fire ALWAYS,
    so that replication is kept off as well. What undoes them leaves another row version in the catalog.
    """
    with session.transaction():
        _create_triggers(session, table)
        fence = read_fence(session, relation)
        if fence is None or len(fence["triggers"] or ()) != len(TRIGGERS):
            raise PreconditionFailed(
                f"{table.as_string(None)} is not the table with OID {relation} any more", hint="plan again"
            )
        session.execute(query("partitions", "ledger_fenced"), {"id": id_, "fence": json.dumps(fence)})


def _create_triggers(session: Connection, table: sql.Identifier) -> None:
    drop_fence(session, table)
    kinds = (("INSERT OR UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT"))
    for name, (events, each) in zip(TRIGGERS, kinds, strict=True):
        trigger = sql.Identifier(name)
        session.execute(
            sql.SQL(
                "CREATE TRIGGER {} BEFORE {} ON {} FOR EACH {} EXECUTE FUNCTION pgvigil.refuse_write()"
            ).format(trigger, _WORDS[events], table, _WORDS[each])
        )
        session.execute(sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(table, trigger))


_WORDS = {
    "INSERT OR UPDATE OR DELETE": sql.SQL("INSERT OR UPDATE OR DELETE"),
    "TRUNCATE": sql.SQL("TRUNCATE"),
    "ROW": sql.SQL("ROW"),
    "STATEMENT": sql.SQL("STATEMENT"),
}


def drop_fence(session: Connection, table: sql.Identifier) -> None:
    """Let writers in again. Idempotent."""
    for name in TRIGGERS:
        session.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(name), table))


def read_fence(session: Connection, relation: int) -> dict[str, Any] | None:
    """Read what must be unchanged for the fence to have held; None for a table that is gone."""
    row = session.execute(query("partitions", "fence"), {"oid": relation}).fetchone()
    fence: dict[str, Any] | None = row["fence"] if row else None
    return fence


def refence(session: Connection, old: UUID, new: UUID) -> None:
    """Begin anew with a table whose fence was opened: what was copied of it proves nothing any more."""
    session.execute(query("partitions", "ledger_renew"), {"old": old, "new": new})


def returning(session: Connection, entry: Entry) -> None:
    """Note a table that was rebuilt from its copy, in the transaction that builds it."""
    row = entry.model_dump(exclude={"name", "since", "detached_at", "fence", "state"})
    names = {"schema": entry.name.schema_, "name": entry.name.name}
    noted = session.execute(query("partitions", "ledger_returning"), {**row, **names}).fetchone()
    if noted is None:
        raise PreconditionFailed(
            f"the table that '{entry.name}' was copied from is detached, but not dropped yet",
            hint="it needs no bringing back: attach it again by hand",
        )


def returned(session: Connection, id_: UUID) -> None:
    """Note that it is a partition again."""
    session.execute(query("partitions", "ledger_returned"), {"id": id_})
