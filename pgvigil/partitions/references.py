"""Foreign keys that refer to a partition: looked at before its detach, which looks again under its locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from pgvigil.archive.ddl import condition_clause
from pgvigil.errors import PreconditionFailed
from pgvigil.partitions.catalog import identifier
from pgvigil.partitions.envelope import is_quick, unlimited
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.partitions.facts import Departure
    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection


def require_quick(session: Connection, policy: PartitionPolicy, departure: Departure) -> None:
    """Raise PreconditionFailed where rows refer to the partition, or to see that none does takes too long.

    Under ACCESS EXCLUSIVE the detach joins each referring table with the partition, and cannot be told that
    this was done. So the same is done here, where it keeps nobody waiting.
    """
    keys = session.execute(query("partitions", "references"), {"oid": departure.relation}).fetchall()
    unlimited(session, policy)
    if not keys or is_quick(policy, lambda: _look(session, departure, keys)):
        return
    tables = ", ".join(key["table"] for key in keys)
    raise PreconditionFailed(
        f"to see that no row of {tables} refers to '{departure.name}' takes more than a quarter of 'block' "
        f"({policy.block}), and the detach does it while everybody waits for the table",
        hint="; ".join(f"index {key['table']} ({', '.join(key['columns'])})" for key in keys)
        + "; or run once with a longer 'block' while few people work",
    )


def _look(session: Connection, departure: Departure, keys: list[dict[str, Any]]) -> None:
    for key in keys:
        with session.transaction():
            session.execute("SELECT set_config('work_mem', current_setting('maintenance_work_mem'), true)")
            found = session.execute(_statement(departure, key)).fetchall()
        if found:
            raise PreconditionFailed(
                f"{key['table']} refer to rows of '{departure.name}' ({key['name']})",
                hint="archive or delete the referring rows first",
            )


def _statement(departure: Departure, key: dict[str, Any]) -> sql.Composed:
    """Compose what PostgreSQL asks at a detach (RI_PartitionRemove_Check)."""
    equal = [
        sql.SQL("ours.{} OPERATOR({}.{}) theirs.{}").format(
            sql.Identifier(own), sql.Identifier(schema), sql.SQL(operator), sql.Identifier(column)
        )
        for own, schema, operator, column in zip(
            key["own"], key["schemas"], key["operators"], key["columns"], strict=True
        )
    ]
    return sql.SQL(
        "SELECT FROM {only}{table} AS theirs JOIN (SELECT * FROM {partition} WHERE {condition}) AS ours"
        " ON {equal} LIMIT 1"
    ).format(
        only=sql.SQL("" if key["is_partitioned"] else "ONLY "),
        table=sql.Identifier(key["schema"], key["relation"]),
        partition=identifier(departure.name),
        condition=condition_clause(departure.condition),
        equal=sql.SQL(" AND ").join(equal),
    )
