"""Making a partition ahead: built beside its table, then attached, so that nobody's writes wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive.ddl import bound_clause, grant_statement, with_options
from pgvigil.archive.shape import Grant
from pgvigil.errors import PreconditionFailed
from pgvigil.partitions.catalog import identifier
from pgvigil.partitions.envelope import CANCELED
from pgvigil.sql import query

if TYPE_CHECKING:
    from typing import LiteralString

    from pgvigil.errors import DatabaseFailed
    from pgvigil.partitions.facts import Creation, Table
    from pgvigil.postgres import Connection


def create(session: Connection, table: Table, creation: Creation) -> int:
    """Make one partition in one transaction and return how many rows came out of DEFAULT into it.

    It takes SHARE UPDATE EXCLUSIVE on the table. With a DEFAULT partition writers must wait meanwhile:
    one that was routed to DEFAULT already would otherwise fail. The session's timeouts bound that.
    Raises PreconditionFailed when the table is another than planned.
    """
    parent, child = identifier(table.name), identifier(creation.name)
    with session.transaction():
        session.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(table.owner)))
        if table.default_oid:
            session.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(parent))
        _check(session, table)
        _build(session, table, creation)
        moved = _drain_default(session, table, creation) if table.default_oid else 0
        session.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
                parent, child, bound_clause(creation.bound)
            )
        )
        _inherit_settings(session, table, creation)
    return moved


def explain(error: DatabaseFailed, table: Table, creation: Creation) -> DatabaseFailed | PreconditionFailed:
    """Say what kept a partition from being made."""
    if error.sqlstate != CANCELED or not table.default_oid:
        return error
    return PreconditionFailed(
        f"the rows of {creation.bound} could not be taken out of the DEFAULT partition in time: "
        f"{error.message}",
        hint="move them in small batches first, or raise 'block' for one run while few people write",
    )


def _check(session: Connection, table: Table) -> None:
    row = session.execute(query("partitions", "table"), {"table": _literal_name(table)}).fetchone()
    found = (row["oid"], row["default_oid"], row["key"]) if row else None
    if found != (table.oid, table.default_oid, table.key):
        raise PreconditionFailed(
            f"'{table.name}' is not the table that was planned: OID, DEFAULT partition and key are {found}, "
            f"planned for {(table.oid, table.default_oid, table.key)}",
            hint="plan again",
        )


def _literal_name(table: Table) -> str:
    return identifier(table.name).as_string(None)


def _build(session: Connection, table: Table, creation: Creation) -> None:
    child = identifier(creation.name)
    settings = session.execute(query("partitions", "settings"), {"oid": table.oid, "child": 0}).fetchone()
    assert settings is not None  # noqa: S101 - the table was just checked
    place: sql.Composable = sql.SQL("")
    if settings["tablespace"]:
        place = sql.SQL(" TABLESPACE {}").format(sql.Identifier(settings["tablespace"]))
    session.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY EXCLUDING COMMENTS){}{}").format(
            child, identifier(table.name), with_options(settings["options"] or ()), place
        )
    )


def _drain_default(session: Connection, table: Table, creation: Creation) -> int:
    """Move the rows of the new range out of DEFAULT; writers wait, readers see each row once throughout."""
    row = session.execute(query("partitions", "standing"), {"oid": table.default_oid}).fetchone()
    assert row is not None  # noqa: S101 - the table was just checked
    default = sql.Identifier(row["schema"], row["name"])
    key = sql.Identifier(table.key)
    columns = sql.SQL(", ").join(
        sql.Identifier(item["name"])
        for item in session.execute(query("archive", "columns"), {"oid": table.default_oid})
        if not item["generated"]
    )
    moved = session.execute(
        sql.SQL(
            "WITH moved AS (DELETE FROM {default} WHERE {key} >= {lower} AND {key} < {upper}"
            " RETURNING {columns})"
            " INSERT INTO {child} ({columns}) SELECT {columns} FROM moved"
        ).format(
            default=default,
            key=key,
            lower=sql.Literal(creation.lower),
            upper=sql.Literal(creation.upper),
            columns=columns,
            child=identifier(creation.name),
        )
    )
    return moved.rowcount


def _inherit_settings(session: Connection, table: Table, creation: Creation) -> None:
    """Give a partition what PostgreSQL does not copy from its table."""
    child = identifier(creation.name)
    settings = session.execute(query("partitions", "settings"), {"oid": table.oid, "child": 0}).fetchone()
    assert settings is not None  # noqa: S101 - the table was just checked
    for row in session.execute(query("partitions", "grants"), {"oid": table.oid}).fetchall():
        session.execute(grant_statement(Grant(**row), child))
    for wanted, words in _switches(settings):
        if wanted:
            session.execute(sql.SQL("ALTER TABLE {} {}").format(child, sql.SQL(words)))
    for column, target in settings["statistics"]:
        session.execute(
            sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET STATISTICS {}").format(
                child, sql.Identifier(column), sql.Literal(target)
            )
        )


def _switches(settings: dict[str, object]) -> tuple[tuple[bool, LiteralString], ...]:
    identity = settings["replica_identity"]
    return (
        (bool(settings["row_security"]), "ENABLE ROW LEVEL SECURITY"),
        (bool(settings["force_row_security"]), "FORCE ROW LEVEL SECURITY"),
        (identity == "f", "REPLICA IDENTITY FULL"),
        (identity == "n", "REPLICA IDENTITY NOTHING"),
    )
