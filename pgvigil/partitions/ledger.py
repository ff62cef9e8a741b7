"""The work state in the user's database, and the fence that keeps writers off a detached table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from psycopg import sql

from pgvigil.archive.ddl import drop_bound_check
from pgvigil.errors import PreconditionFailed
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from pgvigil.archive.manifest import Stored
    from pgvigil.partitions.facts import Departure, Entry
    from pgvigil.postgres import Connection

TRIGGERS = ("pgvigil_no_write", "pgvigil_no_truncate")


def require(session: Connection) -> None:
    """Raise PreconditionFailed unless infra/target.sql was run here."""
    row = session.execute(query("partitions", "ledger_is_ours")).fetchone()
    if not row or not row["found"]:
        raise PreconditionFailed(
            f"database '{session.info.dbname}' has no place for the work state, or pgvigil may not write it",
            hint="run infra/target.sql here, as superuser or owner of the database",
        )


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


def sealed(session: Connection, id_: UUID, sha256: str) -> None:
    """Note which manifest is about to be written: no other one counts."""
    session.execute(query("partitions", "ledger_sealed"), {"id": id_, "sha256": sha256})


def raise_fence(session: Connection, id_: UUID, relation: int, table: sql.Identifier) -> UUID:
    """Keep every writer off a table and all below it from now on, and note how; in one transaction.

    Creating a trigger waits for all who write, prepared transactions included. The triggers fire ALWAYS,
    so that replication is kept off as well. What undoes them leaves another row version in the catalog.
    Returns the id of the copy to be made: a new one for each fence, so that no older copy is taken for it.
    """
    new = uuid4()
    with session.transaction():
        # While the triggers wait for writers, nobody attaches a table anywhere below.
        session.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(table))
        for each in _leaves(session, relation):
            _create_triggers(session, each)
        fence = read_fence(session, relation)
        if fence is None or not _is_closed(fence):
            raise PreconditionFailed(
                f"{table.as_string(None)} is not the table with OID {relation} any more", hint="plan again"
            )
        noted = {"old": id_, "new": new, "fence": json.dumps(fence)}
        if session.execute(query("partitions", "ledger_fenced"), noted).fetchone() is None:
            raise PreconditionFailed(f"the work state of {table.as_string(None)} is gone", hint="plan again")
    return new


def _leaves(session: Connection, relation: int) -> list[sql.Identifier]:
    """Name the tables that can hold rows: the table itself, or the leaves below it."""
    rows = session.execute(query("partitions", "leaves"), {"oid": relation}).fetchall()
    return [sql.Identifier(row["schema"], row["name"]) for row in rows]


def _is_closed(fence: dict[str, Any]) -> bool:
    """Tell whether every table that can hold rows has its triggers."""
    tables = [each for each in fence.get("tree", (fence,)) if each["kind"] != "p"]
    return all(len(each["triggers"] or ()) == len(TRIGGERS) for each in tables)


def _create_triggers(session: Connection, table: sql.Identifier) -> None:
    _drop_triggers(session, table)
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


def drop_fence(session: Connection, entry: Entry) -> None:
    """Let writers again into a table, all below it, and what was below it once. Idempotent.

    The CHECK goes as well that its detach had made.
    """
    for relation in {entry.relation, *_fenced(entry.fence)}:
        _open(session, relation)
    row = session.execute(query("partitions", "standing"), {"oid": entry.relation}).fetchone()
    if row is not None:
        session.execute(drop_bound_check(sql.Identifier(row["schema"], row["name"])))


def _fenced(fence: dict[str, Any] | None) -> set[int]:
    return {each["relation"] for each in (fence.get("tree", (fence,)) if fence else ())}


def _open(session: Connection, relation: int) -> None:
    for table in _leaves(session, relation):
        _drop_triggers(session, table)


def _drop_triggers(session: Connection, table: sql.Identifier) -> None:
    for name in TRIGGERS:
        session.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(name), table))


def read_fence(session: Connection, relation: int) -> dict[str, Any] | None:
    """Read what must be unchanged for the fence to have held; None for a table that is gone."""
    rows = session.execute(query("partitions", "fence"), {"oid": relation}).fetchall()
    if len(rows) == 1 and rows[0]["kind"] == "r":
        return dict(rows[0]["fence"])
    return {"tree": [row["fence"] for row in rows]} if rows else None


def note_leaf(session: Connection, id_: UUID, relation: int, stored: Stored) -> None:
    """Note that one table's copy is whole in the store, so that the next run does not make it again."""
    note = {"id": id_, "relation": relation, "stored": stored.model_dump_json()}
    session.execute(query("partitions", "ledger_leaf"), note)


def forget_leaves(session: Connection, id_: UUID, relations: Sequence[int]) -> None:
    """Forget copies that were not what they should be, so that the next run makes them again."""
    names = [str(relation) for relation in relations]
    session.execute(query("partitions", "ledger_forget_leaves"), {"id": id_, "relations": names})


def refence(session: Connection, entry: Entry) -> None:
    """Begin anew with a table whose fence was opened: what was copied of it proves nothing any more.

    The fence comes down from what somebody took out of it.
    """
    with session.transaction():
        for relation in _fenced(entry.fence) - _fenced(read_fence(session, entry.relation)):
            _open(session, relation)
        session.execute(query("partitions", "ledger_renew"), {"id": entry.id})


def returning(session: Connection, entry: Entry) -> None:
    """Note a table that was rebuilt from its copy, in the transaction that builds it."""
    row = entry.model_dump(exclude={"name", "since", "detached_at", "fence", "state", "leaves"})
    names = {"schema": entry.name.schema_, "name": entry.name.name}
    noted = session.execute(query("partitions", "ledger_returning"), {**row, **names}).fetchone()
    if noted is None:
        raise PreconditionFailed(
            f"the table that '{entry.name}' was copied from is detached, but not dropped yet",
            hint="it needs no bringing back: attach it again by hand",
        )


def returned(session: Connection, id_: UUID) -> None:
    """Note that it came back: attached, or to be attached by hand, it is left alone for a while."""
    session.execute(query("partitions", "ledger_returned"), {"id": id_})
