"""Which relations of a database have content to compare, and which cannot be compared, each with its cure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.drill.facts import Table, Unproven
from pgvigil.errors import DatabaseFailed
from pgvigil.lock import LOCK_NOT_AVAILABLE
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.postgres import Connection


_LEFT_OUT = (
    "what its indexes or statistics compute leans on {stranger}, so it must be read by COPY, which gives no"
    " materialized view and no generated column: let a superuser own that"
)


class Listed(Frozen):
    """A table to be hashed: how large it is with its TOAST, and what its columns were when it was listed.

    With `is_guarded` what its indexes or statistics compute leans on a role that is no superuser, so that no
    statement on it may be planned: see `unplanned`.
    """

    table: Table
    size: int
    columns: str
    is_textual: bool = False
    is_view: bool = False
    is_guarded: bool = False


class Doubt(Frozen):
    """A table whose content at the mark is not known for sure: equality proves it, a difference nothing."""

    oid: int
    relation: str
    reason: str


class Inventory(Frozen):
    """The relations of one database, seen by one transaction; `types` is a fingerprint of its own types."""

    database: str
    tables: tuple[Listed, ...]
    unproven: tuple[Unproven, ...]
    types: str


def list_tables(connection: Connection, database: str, *, skip_locked: bool = False) -> Inventory:
    """List ordinary tables, materialized views, leaves of partitioned tables and the large objects.

    The connection should be one that `digest.pin` has prepared. `skip_locked` is for a copy whose replay
    stands still: it keeps for ever the locks of a transaction that had not ended. Raises DatabaseFailed.
    """
    tables, unproven = [], []
    rows = connection.execute(query("drill_source", "tables"), {"skip_locked": skip_locked}).fetchall()
    strangers = find_strangers(connection, [row["oid"] for row in rows])
    for row in rows:
        stranger = strangers.get(row["oid"], "")
        listed = _listed(row, is_guarded=bool(stranger))
        reason, by_design = _obstacle(row, stranger)
        if reason:
            told = Unproven(database=database, relation=str(listed.table), reason=reason, by_design=by_design)
            unproven.append(told.model_copy(update={"oid": listed.table.oid}))
        else:
            tables.append(listed)
    return Inventory(
        database=database,
        tables=tuple(tables),
        unproven=tuple(unproven),
        types=read_types(connection),
    )


def list_marked(connection: Connection, database: str) -> Inventory:
    """List as `list_tables` under the snapshot of a mark; what stays locked is told as unproven.

    No fence holds a view that is being refreshed, and to ask for its size waits until that has ended.
    """
    try:
        with postgres.savepoint(connection):
            return list_tables(connection, database)
    except DatabaseFailed as error:
        if error.sqlstate != LOCK_NOT_AVAILABLE:
            raise
    return list_tables(connection, database, skip_locked=True)


def find_strangers(connection: Connection, oids: Sequence[int]) -> dict[int, str]:
    """Return of these tables those that may not be planned for, each with one of the things why."""
    rows = connection.execute(query("drill_source", "strangers"), {"oids": list(oids)}).fetchall()
    return {row["oid"]: row["stranger"] for row in rows}


def read_types(connection: Connection) -> str:
    """Return a fingerprint of the labels of all enums and the attributes of all composite types."""
    row = connection.execute(query("drill_source", "types")).fetchone() or {}
    return str(row["types"])


def _listed(row: dict[str, Any], *, is_guarded: bool) -> Listed:
    table = Table(
        oid=row["oid"],
        schema_name=row["schema_name"],
        name=row["name"],
        filenode=row["filenode"],
        blocks=row["blocks"] or 0,
        has_large_objects=row["has_large_objects"],
    )
    return Listed(
        table=table,
        size=row["bytes"] or 0,
        columns=row["columns"],
        is_textual=row["is_textual"],
        is_view=row["kind"] == "m",
        is_guarded=is_guarded,
    )


def _obstacle(row: dict[str, Any], stranger: str) -> tuple[str, bool]:
    """Say why a relation cannot be compared, and whether that is by its own design; empty if it can."""
    is_left_out = bool(stranger) and (row["kind"] == "m" or row["is_generated"])
    obstacles = (
        (row["kind"] == "f", "foreign table: its rows live on another server", True),
        (row["persistence"] == "u", "unlogged: no WAL, so no restore brings its rows back", True),
        (row["persistence"] == "t", "temporary: it ends with its session", True),
        (row["is_locked"], "locked by a transaction that was changing it at the mark: drill again", False),
        (row["is_unpopulated"], "materialized view without data", True),
        (row["blocks"] is None, "dropped while it was listed", False),
        (not row["is_readable"], "not readable: GRANT pg_read_all_data, as infra/roles.sql does", False),
        (
            row["is_filtered"],
            "row security hides rows: ALTER ROLE … BYPASSRLS, as infra/roles.sql does",
            False,
        ),
        (is_left_out, _LEFT_OUT.format(stranger=stranger), False),
    )
    return next(((reason, by_design) for holds, reason, by_design in obstacles if holds), ("", False))
