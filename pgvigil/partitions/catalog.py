"""Reading a partitioned table from the catalog, and the work state that goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from pgvigil.errors import ConfigError, PreconditionFailed
from pgvigil.partitions.axis import Range, make_axis
from pgvigil.partitions.facts import Entry, Member, Name, Partition, Table
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.partitions.axis import Axis
    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection


def read_table(session: Connection, policy: PartitionPolicy) -> tuple[Table, Axis]:
    """Read table, partitions and work state in one snapshot, with no lock above ACCESS SHARE.

    Raises ConfigError where the policy does not fit the table, PreconditionFailed where pgvigil may not
    work on it.
    """
    with session.transaction():
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        head = session.execute(query("partitions", "table"), {"table": policy.table}).fetchone()
        axis = _check(head, policy)
        assert head is not None  # noqa: S101 - _check looked
        asked = {"oid": head["oid"], "key": head["key"]}
        children = session.execute(query("partitions", "children"), asked).fetchall()
        names = session.execute(query("partitions", "names"), {"schema": head["schema"]})
        taken = frozenset(row["name"] for row in names)
        entries = read_entries(session, head["oid"])
        oids = [row["oid"] for row in children] + [each.relation for each in entries]
        below = _below(session, oids, head["key"])
        found = Table(
            oid=head["oid"],
            name=Name(schema_=head["schema"], name=head["name"]),
            key=head["key"],
            key_type=head["key_type"],
            owner=head["owner"],
            default_oid=head["default_oid"],
            referenced_by=tuple(head["referenced_by"]),
            followed=tuple(head["followed"]),
            now=head["now"],
            version_num=head["version_num"],
            partitions=tuple(_partition(row, axis, below) for row in children),
            entries=entries,
            taken_names=taken,
            below=below,
        )
        if axis.kind == "integer":
            position, beyond = _read_position(session, found)
        else:
            position, beyond = axis.now(found.now), None
    return found.model_copy(update={"position": position, "beyond": beyond}), axis


def find_table(session: Connection, policy: PartitionPolicy) -> int:
    """Return the OID of the policy's table; raises ConfigError where there is none."""
    row = session.execute(query("partitions", "oid"), {"table": policy.table}).fetchone()
    if row is None or row["oid"] is None:
        raise _absent(policy)
    return int(row["oid"])


def _absent(policy: PartitionPolicy) -> ConfigError:
    return ConfigError(
        f"there is no table '{policy.table}'",
        hint='write schema.table as SQL does, with quotes where it needs them: public."Mixed"',
    )


def _check(head: dict[str, Any] | None, policy: PartitionPolicy) -> Axis:
    if head is None:
        raise _absent(policy)
    _check_partitioning(head, policy)
    if head["in_recovery"]:
        raise PreconditionFailed(
            f"'{policy.table}' is on a standby", hint="correct the cluster's dsn: it must name the primary"
        )
    if not head["may_alter"]:
        raise PreconditionFailed(
            f"this role may not alter '{policy.table}', which belongs to '{head['owner']}'",
            hint=f'let the owner do: GRANT "{head["owner"]}" TO pgvigil',
        )
    return make_axis(policy, head["key_type"])


def _check_partitioning(head: dict[str, Any], policy: PartitionPolicy) -> None:
    if not head["is_partitioned"]:
        raise ConfigError(f"'{policy.table}' is not partitioned", hint="correct partitions in the fleet file")
    if head["strategy"] != "r" or head["key_columns"] != 1:
        raise ConfigError(
            f"'{policy.table}' is not partitioned by range of one column",
            hint="only such tables can be rolled; take it out of the fleet file",
        )
    if head["key"] != policy.key:
        raise ConfigError(
            f"'{policy.table}' is partitioned by '{head['key']}', the policy says '{policy.key}'",
            hint="correct key in the fleet file; a key that is an expression cannot be rolled",
        )


def _below(session: Connection, oids: list[int], key: str) -> dict[int, tuple[Member, ...]]:
    """Read what is below partitions that are partitioned themselves, by the OID of the uppermost."""
    found: dict[int, tuple[Member, ...]] = {}
    for row in session.execute(query("partitions", "below"), {"oids": oids, "key": key}):
        name = Name(schema_=row.pop("schema"), name=row.pop("name"))
        root = row.pop("root")
        found[root] = (*found.get(root, ()), Member(name=name, **row))
    return found


def _partition(row: dict[str, Any], axis: Axis, below: dict[int, tuple[Member, ...]]) -> Partition:
    return Partition(
        oid=row["oid"],
        name=Name(schema_=row["schema"], name=row["name"]),
        kind=row["kind"],
        bound=row["bound"] or "",
        condition=row["condition"],
        is_pending=row["is_pending"],
        size=row["size"] + sum(each.size for each in below.get(row["oid"], ())),
        rows=row["rows"],
        partition_by=row["partition_by"],
        is_timeless=row["is_timeless"],
        range=axis.parse(row["bound"] or ""),
    )


def read_entries(session: Connection, parent: int) -> tuple[Entry, ...]:
    """Read the work state of a table's partitions; none where pgvigil never worked."""
    row = session.execute(query("partitions", "ledger_exists")).fetchone()
    if not row or not row["found"]:
        return ()
    if not row["is_current"]:
        raise PreconditionFailed(
            f"the work state in database '{session.info.dbname}' is that of an older release",
            hint="run infra/target.sql here again, as superuser or owner of the database",
        )
    return tuple(_entry(row) for row in session.execute(query("partitions", "ledger"), {"oid": parent}))


def _entry(row: dict[str, Any]) -> Entry:
    name = Name(schema_=row.pop("schema"), name=row.pop("name"))
    return Entry(name=name, **row)


def _read_position(session: Connection, table: Table) -> tuple[int | None, int | None]:
    """Read the newest key by which the table tells its time, and the newest of all if it is another.

    What lies in DEFAULT, or in a range without an end, tells no time where others have one: a single
    mistyped number would make all the rest old.
    """
    newest = _newest(session, table, Range(lower=None, upper=None))
    ranges = [each.range for each in table.partitions if each.range and not each.is_pending]
    ended = sorted((each for each in ranges if each.upper is not None), key=_end, reverse=True)
    if newest is None or not ended or any(each.covers(newest) for each in ended):
        return newest, None
    found = (_newest(session, table, each) for each in ended)
    return next((key for key in found if key is not None), None), newest


def _end(each: Range) -> int:
    return each.upper or 0


def _newest(session: Connection, table: Table, within: Range) -> int | None:
    key = sql.Identifier(table.key)
    limits = [(sql.SQL(">="), within.lower), (sql.SQL("<"), within.upper)]
    wheres = [
        sql.SQL("{} {} {}").format(key, sign, sql.Literal(each)) for sign, each in limits if each is not None
    ]
    statement = sql.SQL("SELECT max({})::text AS newest FROM {} WHERE {}").format(
        key, identifier(table.name), sql.SQL(" AND ").join([sql.SQL("true"), *wheres])
    )
    row = session.execute(statement).fetchone()
    return int(row["newest"]) if row and row["newest"] is not None else None


def identifier(name: Name) -> sql.Identifier:
    """Quote a schema and a name."""
    return sql.Identifier(name.schema_, name.name)


def read_drift(session: Connection, oid: int) -> list[tuple[str, tuple[str, ...]]]:
    """Name the partitions that differ from their table, and in what."""
    rows = session.execute(query("partitions", "drift"), {"oid": oid}).fetchall()
    return [(row["name"], tuple(row["differs"])) for row in rows if row["differs"]]
