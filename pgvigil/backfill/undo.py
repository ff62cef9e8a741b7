"""The way back: rows get what they held before, newest image first, unless somebody changed them since."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pgvigil.backfill import catalog, ledger, statements
from pgvigil.backfill.remedy import persist
from pgvigil.backfill.session import Bounds
from pgvigil.errors import ConfigError, DatabaseFailed, PreconditionFailed
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.backfill.facts import Leaf, Target
    from pgvigil.backfill.ledger import Ledger, State
    from pgvigil.backfill.session import Session
    from pgvigil.policies.backfills import BackfillPolicy

_ROWS = 1000
_TOLD = 20


class Layer(Frozen):
    """Images of one table, one after the other, that hold the same columns by the same key."""

    relation: int
    key_columns: tuple[str, ...]
    columns: tuple[str, ...]
    first: int
    images: int


class Undone(Frozen):
    """What an undo did; `kept` are the keys of some rows that others had changed, deleted or moved since."""

    images: int = 0
    restored: int = 0
    kept: tuple[str, ...] = ()
    left: int = 0

    def __add__(self, other: Undone) -> Undone:
        return Undone(
            images=self.images + other.images,
            restored=self.restored + other.restored,
            kept=(self.kept + other.kept)[:_TOLD],
            left=self.left + other.left,
        )


@dataclass(frozen=True)
class Way:
    """What every step back needs: the session, the token, the table and the policy."""

    session: Session
    held: Ledger
    progress: str
    policy: BackfillPolicy
    target: Target

    def leaf(self, layer: Layer) -> Leaf | None:
        """Return the table of a layer, None when it is no longer part of it."""
        return next((leaf for leaf in self.target.leaves if leaf.oid == layer.relation), None)


def undo(session: Session, state: State, policy: BackfillPolicy) -> Undone:
    """Give rows back what they held and forget the backfill; after a kill, the next undo goes on.

    Images of tables that are no longer part of it are left. Raises Busy while it runs, ConfigError and
    PreconditionFailed where images do not fit the table any more; then nothing was changed.
    """
    with session.transaction() as connection:
        target = catalog.read_target(connection, policy)
    way = Way(session, ledger.seize(session, state.name), json.dumps(state.progress), policy, target)
    try:
        done = sum((_undo_layer(way, layer) for layer in _layers(way)), Undone())
        with session.transaction() as connection:
            connection.execute(query("backfill", "forget"), {"name": state.name})
        return done
    finally:
        with suppress(DatabaseFailed), session.transaction() as connection:
            way.held.let_go(connection, way.progress)


def _layers(way: Way) -> list[Layer]:
    """Read which images there are, the newest layer first; raises for what does not fit the table."""
    values = {"name": way.held.name}
    with way.session.transaction() as connection:
        rows = connection.execute(query("backfill", "image_layers"), values).fetchall()
        nulls = connection.execute(query("backfill", "image_nulls"), values).fetchall()
    layers = [Layer.model_validate(row) for row in rows]
    for layer in layers:
        _require_fit(way, layer)
    _require_nullable(way, {row["column"]: row["images"] for row in nulls})
    return layers


def _require_fit(way: Way, layer: Layer) -> None:
    leaf = way.leaf(layer)
    if leaf is None:
        return
    key = tuple(column.name for column in leaf.key)
    if key != layer.key_columns:
        raise ConfigError(
            f"the images of '{leaf.label}' were kept by key ({', '.join(layer.key_columns)}), "
            f"which is walked by ({', '.join(key)}) now",
            hint=f"set 'key: [{', '.join(layer.key_columns)}]' in the fleet file, then undo again",
        )
    for column in set(layer.columns) - {column.name for column in way.target.columns}:
        raise ConfigError(
            f"images of '{leaf.label}' hold column '{column}', which the table has no more",
            hint="rename it back, or restore it from pgvigil.backfill_image by hand",
        )


def _require_nullable(way: Way, nulls: dict[str, int]) -> None:
    for column in way.target.columns:
        if column.not_null and column.name in nulls:
            raise PreconditionFailed(
                f"{nulls[column.name]} rows held NULL in column '{column.name}', which is NOT NULL now",
                hint=f"ALTER TABLE … ALTER COLUMN {column.name} DROP NOT NULL, then undo again",
            )


def _undo_layer(way: Way, layer: Layer) -> Undone:
    """Undo one layer in short transactions, each with its images."""
    leaf = way.leaf(layer)
    if leaf is None:
        return Undone(left=layer.images)
    statement = statements.restore(way.target, leaf, layer.columns)
    values = {"name": way.held.name, "relation": leaf.oid, "first": layer.first, "most": _ROWS}
    done = Undone()
    while True:
        some = persist(partial(_undo_some, way, statement, values), way.policy.outage)
        if not some.images:
            return done
        done += some


def _undo_some(way: Way, statement: Any, values: dict[str, Any]) -> Undone:
    bounds = Bounds(statement=way.policy.batch.longest, search_path=way.policy.search_path)
    with way.session.transaction(bounds) as connection:
        row = connection.execute(statement, values).fetchone()
        way.held.renew(connection, way.progress)
    assert row  # noqa: S101 - an aggregate always answers
    return Undone(images=row["images"], restored=row["done"], kept=tuple(row["kept"] or ()))
