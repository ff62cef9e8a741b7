"""Making a partition ahead: built beside its table, then attached, so that nobody's writes wait."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive.ddl import bound_clause, grant_statement, partition_by, with_options
from pgvigil.archive.shape import Grant
from pgvigil.errors import Busy, DatabaseFailed, PreconditionFailed
from pgvigil.lock import LOCK_NOT_AVAILABLE
from pgvigil.partitions.beside import await_readers, look, proven, readers
from pgvigil.partitions.catalog import identifier
from pgvigil.partitions.detach import STILL_REFERENCED
from pgvigil.partitions.envelope import CANCELED, WAITED, bounded, explain_wait, hasten, tell
from pgvigil.sql import query

if TYPE_CHECKING:
    from typing import LiteralString

    from pgvigil.partitions.beside import Default
    from pgvigil.partitions.facts import Creation, Table, Twig
    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection

CHECK_VIOLATION = "23514"


def make(session: Connection, dsn: str, policy: PartitionPolicy, table: Table, creation: Creation) -> int:
    """Make one partition and return how many rows came out of DEFAULT into it.

    Nobody waits longer than `policy.block` for it. Raises PreconditionFailed when the table is another than
    planned, and where rows cannot be moved out of DEFAULT; Busy, naming who is in the way.
    """
    default = _look(session, policy, table, creation)
    try:
        with proven(session, dsn, policy, default) if default and not default.rows else nullcontext():
            return bounded(session, dsn, policy, lambda: _create(session, policy, table, creation, default))
    except DatabaseFailed as error:
        raise _explain(session, error, table, creation, default) from error


def _look(session: Connection, policy: PartitionPolicy, table: Table, creation: Creation) -> Default | None:
    """Look at DEFAULT, while nobody waits, for what would have to move; refuse what would take too long."""
    if not table.default_oid:
        return None
    default = look(session, policy, table.default_oid, _within(table, creation))
    if default.rows and not default.is_quick:
        raise _too_slow(creation, default, "to look through it alone takes more than a quarter of 'block'")
    if default.rows:
        _refuse_followers(session, table, creation)
        await_readers(session, policy, f"{default.rows} rows of {creation.bound}, moved out of DEFAULT,")
    return default


def _create(
    session: Connection, policy: PartitionPolicy, table: Table, creation: Creation, default: Default | None
) -> int:
    """Build a partition and attach it, in one transaction under SHARE UPDATE EXCLUSIVE on the table.

    With a DEFAULT partition writers must wait while it is attached: one that was routed to DEFAULT already
    would otherwise fail.
    """
    with session.transaction():
        session.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(table.owner)))
        _check(session, table)
        _build(session, table, creation)
        for name in (creation.name, *(twig.name for twig in creation.twigs)):
            _inherit_settings(session, table, identifier(name))
        if default:
            return _take_over(session, policy, table, creation, default)
        _attach(session, table, creation)
    return 0


def _take_over(
    session: Connection, policy: PartitionPolicy, table: Table, creation: Creation, default: Default
) -> int:
    """Move the rows of the new range out of DEFAULT and attach it, all within `policy.block`.

    Where rows move, readers wait as well, and before they look for partitions: one that knew of DEFAULT
    alone, and waited for that, would find it without the rows.
    """
    began = time.monotonic()
    _lock(session, table, "ACCESS EXCLUSIVE" if default.rows else "EXCLUSIVE")
    _check(session, table)
    hasten(session, policy, began)
    moved = _drain_default(session, table, creation)
    if moved:
        hasten(session, policy, began)
        _lock(session, table, "ACCESS EXCLUSIVE")
    hasten(session, policy, began)
    _attach(session, table, creation)
    if moved:
        _refuse_readers(session, began + policy.block.total_seconds())
    return moved


def _lock(session: Connection, table: Table, mode: LiteralString) -> None:
    session.execute(sql.SQL("LOCK TABLE {} IN {} MODE").format(identifier(table.name), sql.SQL(mode)))


def _refuse_readers(session: Connection, deadline: float) -> None:
    """Wait for whoever began meanwhile; as this role, for to the owner other roles' sessions show no age."""
    session.execute("SET LOCAL ROLE NONE")
    if held := readers(session, deadline):
        raise DatabaseFailed(f"a transaction began meanwhile: {tell(held[0])}", sqlstate=LOCK_NOT_AVAILABLE)


def _attach(session: Connection, table: Table, creation: Creation) -> None:
    session.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
            identifier(table.name), identifier(creation.name), bound_clause(creation.bound)
        )
    )


def _explain(
    session: Connection, error: DatabaseFailed, table: Table, creation: Creation, default: Default | None
) -> DatabaseFailed | PreconditionFailed:
    """Say what kept a partition from being made."""
    if default and error.sqlstate == STILL_REFERENCED:
        return PreconditionFailed(
            f"rows of {creation.bound} are in the DEFAULT partition, and are referred to: {error.message}",
            hint=f"{', '.join(table.referenced_by)}: delete the referring rows, or move both by hand",
        )
    if default and error.sqlstate == CHECK_VIOLATION:
        return Busy(
            f"rows of {creation.bound} came into the DEFAULT partition meanwhile: {error.message}",
            hint="the next run moves them",
        )
    if default and default.rows and error.sqlstate == CANCELED:
        return _too_slow(creation, default, error.message)
    if error.sqlstate in WAITED:
        oids = [table.oid, *([table.default_oid] if table.default_oid else [])]
        return explain_wait(session, error, oids, f"making '{creation.name}'")
    return error


def _too_slow(creation: Creation, default: Default, why: str) -> PreconditionFailed:
    return PreconditionFailed(
        f"the DEFAULT partition has {default.rows} rows of {creation.bound}, which cannot become a partition "
        f"of its own within 'block': {why}",
        hint="these rows stay where they are and are found there; run once with a longer 'block' while few "
        "people write, or delete from DEFAULT what nobody needs",
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
    options = () if creation.partition_by else settings["options"] or ()
    session.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY EXCLUDING COMMENTS){}{}{}").format(
            child, identifier(table.name), partition_by(creation.partition_by), with_options(options), place
        )
    )
    for twig in creation.twigs:
        _grow(session, twig, place)


def _grow(session: Connection, twig: Twig, place: sql.Composable) -> None:
    """Make a table below a partition that is not attached yet, like one below another."""
    model = session.execute(query("archive", "table"), {"oid": twig.like}).fetchone()
    if model is None or model["partition_by"] != twig.partition_by:
        raise PreconditionFailed(
            f"the table with OID {twig.like}, the model of '{twig.name}', is gone or another now",
            hint="plan again",
        )
    session.execute(
        sql.SQL("CREATE TABLE {} PARTITION OF {} {}{}{}{}").format(
            identifier(twig.name),
            identifier(twig.below),
            bound_clause(twig.bound),
            partition_by(twig.partition_by),
            with_options(model["options"]),
            place,
        )
    )


def _drain_default(session: Connection, table: Table, creation: Creation) -> int:
    """Move the rows of the new range out of DEFAULT; writers wait, and who reads from now on sees each once.

    To others nothing was deleted: no trigger fires, and foreign keys whose rows would go as well forbid it.
    """
    row = session.execute(query("partitions", "standing"), {"oid": table.default_oid}).fetchone()
    assert row is not None  # noqa: S101 - the table was just checked
    default = sql.Identifier(row["schema"], row["name"])
    session.execute("SET CONSTRAINTS ALL IMMEDIATE")
    triggers = session.execute(query("partitions", "on_delete"), {"oid": table.default_oid}).fetchall()
    for trigger in triggers:
        _switch(session, trigger, "DISABLE TRIGGER")
    moved = _move(session, table, creation, default)
    if moved:
        _refuse_followers(session, table, creation)
    for trigger in triggers:
        _switch(session, trigger, _ENABLE[trigger["enabled"]])
    return moved


_ENABLE: dict[str, LiteralString] = {
    "O": "ENABLE TRIGGER",
    "A": "ENABLE ALWAYS TRIGGER",
    "R": "ENABLE REPLICA TRIGGER",
}


def _switch(session: Connection, trigger: dict[str, str], how: LiteralString) -> None:
    table = sql.Identifier(trigger["schema"], trigger["table"])
    name = sql.Identifier(trigger["name"])
    session.execute(sql.SQL("ALTER TABLE ONLY {} {} {}").format(table, sql.SQL(how), name))


def _refuse_followers(session: Connection, table: Table, creation: Creation) -> None:
    """Raise PreconditionFailed where others would see the moving of a row as its end.

    Rows that refer to it may go or change. Subscribers are told of its deletion, but not that it comes back:
    decoding sees the new partition as it is at that moment, a table for itself that nobody publishes.
    """
    asked = {"oid": table.default_oid}
    if published := session.execute(query("partitions", "subscribed"), asked).fetchall():
        raise PreconditionFailed(
            f"rows of {creation.bound} are in the DEFAULT partition, and to move them would delete them at "
            f"the subscribers of {', '.join(row['name'] for row in published)}",
            hint="ALTER PUBLICATION … SET (publish = 'insert, update') for one run while nobody deletes, or "
            "take these rows out of DEFAULT by hand",
        )
    followers = session.execute(query("partitions", "followers"), asked).fetchall()
    if followers:
        raise PreconditionFailed(
            f"rows of {creation.bound} are in the DEFAULT partition, and to move them would delete or change "
            f"those that refer to them: {', '.join(row['name'] for row in followers)}",
            hint="make these foreign keys ON DELETE NO ACTION, or move the rows by hand",
        )


def _within(table: Table, creation: Creation) -> sql.Composed:
    return sql.SQL("{key} >= {lower} AND {key} < {upper}").format(
        key=sql.Identifier(table.key), lower=sql.Literal(creation.lower), upper=sql.Literal(creation.upper)
    )


def _move(session: Connection, table: Table, creation: Creation, default: sql.Identifier) -> int:
    """Move the rows as this role, from which no policy hides any: to the owner one may."""
    session.execute("SET LOCAL ROLE NONE; SET LOCAL row_security = off")
    columns = sql.SQL(", ").join(
        sql.Identifier(item["name"])
        for item in session.execute(query("archive", "columns"), {"oid": table.default_oid})
        if not item["generated"]
    )
    moved = session.execute(
        sql.SQL(
            "WITH moved AS (DELETE FROM {default} WHERE {within} RETURNING {columns})"
            " INSERT INTO {child} ({columns}) SELECT {columns} FROM moved"
        ).format(
            default=default,
            within=_within(table, creation),
            columns=columns,
            child=identifier(creation.name),
        )
    )
    session.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(table.owner)))
    return moved.rowcount


def _inherit_settings(session: Connection, table: Table, child: sql.Identifier) -> None:
    """Give a partition what PostgreSQL does not copy from its table."""
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
