"""A table with every partition below it, as data: what is archived and comes back as one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from psycopg import sql

from pgvigil.archive.ddl import attach_partition, ddl, foreign_key_ddl
from pgvigil.archive.shape import BOUND_CHECK, Shape, read_shape
from pgvigil.errors import PreconditionFailed
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.postgres import Connection


class Branch(Frozen):
    """One table of a tree; `parent` counts from the first, which is the root and has none."""

    relation: int
    parent: int | None = None
    bound: str = ""
    shape: Shape

    @property
    def name(self) -> str:
        """Schema and name."""
        return f"{self.shape.schema_}.{self.shape.name}"

    @property
    def is_leaf(self) -> bool:
        """Whether it holds rows."""
        return not self.shape.partition_by


AnyBranch = TypeVar("AnyBranch", bound=Branch)


def read_tree(session: Connection, oid: int) -> tuple[Branch, ...]:
    """Read a table and all partitions below it, parents first; a plain table is a tree of one.

    Raises PreconditionFailed for what cannot be copied: a foreign table, a detach that is not finished.
    """
    rows = session.execute(query("archive", "tree"), {"oid": oid}).fetchall()
    places = {row["oid"]: place for place, row in enumerate(rows)}
    branches = tuple(
        Branch(
            relation=row["oid"],
            parent=places.get(row["parent"]),
            bound=row["bound"],
            shape=read_shape(session, row["oid"]),
        )
        for row in rows
    )
    for row, branch in zip(rows, branches, strict=True):
        if row["is_pending"] or row["kind"] not in "rp":
            raise PreconditionFailed(
                f"'{branch.name}' below it is "
                + ("half detached" if row["is_pending"] else "a foreign table"),
                hint="finish its detach (ALTER TABLE … DETACH PARTITION … FINALIZE), or take it out by hand",
            )
    return branches


@contextmanager
def held(session: Connection, branch: Branch) -> Iterator[sql.Identifier]:
    """Hold a table for the block in a transaction, and give its name, which is nobody else's meanwhile.

    Raises PreconditionFailed where another table has the name by now.
    """
    table = branch.shape.table
    with session.transaction():
        session.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(table))
        _require_named(session, branch)
        yield table
        _require_named(session, branch)  # no lock on a table hinders the renaming of its schema


def _require_named(session: Connection, branch: Branch) -> None:
    asked = {"schema": branch.shape.schema_, "name": branch.shape.name, "oid": branch.relation}
    if session.execute(query("archive", "is_named"), asked).fetchone() is None:
        raise PreconditionFailed(
            f"'{branch.name}' is not the table with OID {branch.relation} any more", hint="plan again"
        )


def without_bound(branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Leave out the CHECK of its bound that a concurrent detach gives to a tree, and to each table in it.

    A plain table keeps it, to be attached by it again. In a tree its columns may be the wrong ones.
    """
    return branches if len(branches) == 1 else tuple(map(_without_bound, branches))


def _without_bound(branch: Branch) -> Branch:
    kept = tuple(each for each in branch.shape.constraints if each.name != BOUND_CHECK)
    return branch.model_copy(update={"shape": branch.shape.model_copy(update={"constraints": kept})})


def tree_ddl(branches: Sequence[Branch]) -> tuple[str, ...]:
    """Render a whole tree as SQL text: every table, then what ties them together, from the leaves up."""
    upwards = tuple(reversed(branches))
    statements = [statement for each in branches for statement in ddl(each.shape)]
    statements += [
        attach_partition(branches[each.parent].shape.table, each.shape.table, each.bound).as_string(None)
        for each in attachments(branches)
        if each.parent is not None
    ]
    return (*statements, *(statement for each in upwards for statement in foreign_key_ddl(each.shape)))


def attachments(branches: Sequence[AnyBranch]) -> tuple[AnyBranch, ...]:
    """Give what is attached, the deepest first, and a DEFAULT partition after its siblings."""
    depths: list[int] = []
    for each in branches:
        depths.append(0 if each.parent is None else depths[each.parent] + 1)
    ordered = sorted(
        zip(depths, branches, strict=True), key=lambda pair: (-pair[0], pair[1].bound == "DEFAULT")
    )
    return tuple(each for depth, each in ordered if depth)
