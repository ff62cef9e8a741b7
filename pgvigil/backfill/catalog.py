"""What the catalog says of a backfill's table, and by which key each part of it is walked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgvigil.backfill.facts import Column, KeyColumn, Leaf, Target
from pgvigil.errors import ConfigError
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.policies.backfills import BackfillPolicy
    from pgvigil.postgres import Connection

CTID = (KeyColumn(name="ctid", type="tid"),)
_ORDINARY, _PARTITIONED, _FOREIGN = "r", "p", "f"


def read_target(connection: Connection, policy: BackfillPolicy) -> Target:
    """Read the table, its parts and their keys; raises ConfigError for what cannot be walked or written."""
    row = resolve(connection, policy.table)
    columns = tuple(Column(**c) for c in _rows(connection, "columns", relation=row["oid"]))
    leaves = tuple(
        _leaf(connection, policy, leaf) for leaf in _rows(connection, "leaves", relation=row["oid"])
    )
    if not leaves:
        raise ConfigError(f"table '{policy.table}' has no partition", hint="create one, then run it again")
    target = Target(
        oid=row["oid"], schema_name=row["schema"], name=row["name"], columns=columns, leaves=leaves
    )
    _check_columns(target, policy, row["partition_key"])
    _check_images(target, policy)
    return target


def _check_images(target: Target, policy: BackfillPolicy) -> None:
    """Refuse a way back where rows cannot be told apart: a ctid may be another row's by then."""
    for leaf in target.leaves:
        if policy.before_images and leaf.index is None:
            raise ConfigError(
                f"'{leaf.label}' has no usable unique index, so no way back to its rows would be sure",
                hint="give it one of NOT NULL columns that are not written, or leave out before_images",
            )


def resolve(connection: Connection, name: str) -> dict[str, Any]:
    """Find a table by its name; raises ConfigError unless it is an ordinary or partitioned one."""
    found = _rows(connection, "resolve", table=name)
    if not found:
        raise ConfigError(
            f"there is no table '{name}'",
            hint="write it as schema.table, quoted as in SQL where the name needs that",
        )
    row = found[0]
    if row["kind"] not in {_ORDINARY, _PARTITIONED} or row["persistence"] == "t":
        raise ConfigError(
            f"'{name}' is no table that can be walked (relkind {row['kind']})", hint="name a table"
        )
    return row


def _rows(connection: Connection, block: str, **parameters: Any) -> list[dict[str, Any]]:
    return connection.execute(query("backfill", block), parameters).fetchall()


def _leaf(connection: Connection, policy: BackfillPolicy, row: dict[str, Any]) -> Leaf:
    if row["kind"] != _ORDINARY:
        raise ConfigError(
            f"'{row['schema']}.{row['name']}' is part of '{policy.table}' and no ordinary table",
            hint="detach a foreign table first; it cannot be walked",
        )
    index, key = _key(connection, policy, row)
    rows = row["rows"] if row["rows"] >= 0 else row["bytes"] / 100  # never analyzed
    return Leaf(
        oid=row["oid"],
        schema_name=row["schema"],
        name=row["name"],
        rows=int(rows),
        size=row["bytes"],
        block_size=row["block_size"],
        fillfactor=row["fillfactor"],
        is_partition=row["is_partition"],
        takes_turns=bool(index) and not policy.into and not indexed(connection, policy, row["oid"]),
        key=key,
        index=index,
    )


def indexed(connection: Connection, policy: BackfillPolicy, relation: int) -> list[str]:
    """Name the indexes that hold what is written, each with the column."""
    found = _rows(connection, "indexed", relation=relation, columns=list(policy.targets))
    return [f"{row['index']} ({row['column']})" for row in found]


def _key(
    connection: Connection, policy: BackfillPolicy, row: dict[str, Any]
) -> tuple[str | None, tuple[KeyColumn, ...]]:
    """Choose the wanted key, else one that is not written, the primary first; without any, ctid."""
    found = [
        (each["index"], tuple(KeyColumn(**column) for column in each["columns"]))
        for each in _rows(connection, "keys", relation=row["oid"])
    ]
    names = [tuple(column.name for column in columns) for _, columns in found]
    if policy.key is not None:
        if policy.key not in names:
            raise ConfigError(
                f"'{row['schema']}.{row['name']}' has no usable unique index on ({', '.join(policy.key)})",
                hint="it must be whole, valid and of NOT NULL columns in one direction; there are: "
                + ("; ".join(f"({', '.join(n)})" for n in names) or "none"),
            )
        return found[names.index(policy.key)]
    written = set(policy.targets) if not policy.into else set()
    usable = [pair for pair, columns in zip(found, names, strict=True) if not written & set(columns)]
    return usable[0] if usable else (None, CTID)


def _check_columns(target: Target, policy: BackfillPolicy, partition_key: list[str]) -> None:
    if policy.into:
        return
    known = {column.name: column for column in target.columns}
    for name in (*policy.targets, *policy.not_null):
        if name not in known:
            raise ConfigError(
                f"table '{target.label}' has no column '{name}'", hint=f"it has: {', '.join(known)}"
            )
    for name in policy.targets:
        if known[name].is_generated:
            raise ConfigError(f"column '{name}' of '{target.label}' is generated", hint="leave it out")
        if name in partition_key:
            raise ConfigError(
                f"column '{name}' of '{target.label}' decides the partition: rows would move during the walk",
                hint="copy into a new table with 'into' instead",
            )
    for name in (column.name for leaf in target.leaves for column in leaf.key):
        if name in policy.targets:
            raise ConfigError(
                f"column '{name}' of '{target.label}' is in the key by which the rows are walked over",
                hint="name another unique index in 'key'",
            )
