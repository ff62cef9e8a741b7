"""What a table is, as data that rebuilds it: columns, constraints, indexes, comments, settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from psycopg import sql
from pydantic import Field

from pgvigil.errors import PreconditionFailed
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgvigil.postgres import Connection


BOUND_CHECK = "pgvigil_bound"


class Numbering(Frozen):
    """A sequence that belongs to a column and goes with it; an identity's has no name of its own here."""

    schema_: str = ""
    name: str = ""
    type: str
    start: int
    increment: int
    minimum: int
    maximum: int
    cache: int
    is_cycled: bool = False


class Column(Frozen):
    """One column; `expression` is its default, or what it is generated from.

    A NOT NULL that is unproven was added without a look at older rows.
    """

    name: str
    type: str
    type_oid: int
    collation: str | None = None
    not_null: bool = False
    not_null_unproven: bool = False
    expression: str | None = None
    generated: str = ""
    identity: str = ""
    storage: str = ""
    compression: str = ""
    statistics: int | None = None
    options: tuple[str, ...] = ()
    numbering: Numbering | None = None
    comment: str | None = None


class Constraint(Frozen):
    """One constraint by its definition; kinds are those of pg_constraint."""

    name: str
    kind: str
    definition: str
    comment: str | None = None

    @property
    def is_unproven(self) -> bool:
        """Whether older rows may break it: it was added without a look at them."""
        return self.definition.endswith((" NOT VALID", " NOT ENFORCED"))


class Index(Frozen):
    """One index that no constraint brings along; `body` is what stands after USING.

    `statistics` has the targets of its columns by their number.
    """

    name: str
    is_unique: bool
    body: str
    comment: str | None = None
    statistics: dict[int, int] = Field(default_factory=dict)


Named = TypeVar("Named", Constraint, Index)


class Grant(Frozen):
    """One privilege, on the table or on one column; no grantee means PUBLIC."""

    grantee: str | None
    privilege: str
    is_grantable: bool = False
    column: str | None = None


class Hook(Frozen):
    """One trigger or rule of the table's own; its definition stands in two parts, around the table's name."""

    name: str
    head: str
    tail: str
    enabled: str = "O"
    comment: str | None = None


class Publication(Frozen):
    """One publication that names the table: of which columns, and of which rows; without either, of all."""

    name: str
    columns: tuple[str, ...] = ()
    condition: str | None = None


class Policy(Frozen):
    """One policy of row security; commands are those of pg_policy, and a role without a name is PUBLIC."""

    name: str
    command: str
    is_permissive: bool
    roles: tuple[str | None, ...]
    visible: str | None = None
    writable: str | None = None
    comment: str | None = None


class Statistics(Frozen):
    """One object of extended statistics; kinds are those of pg_statistic_ext."""

    schema_: str
    name: str
    kinds: tuple[str, ...]
    columns: str
    target: int | None = None
    comment: str | None = None


class Definition(Frozen):
    """What a type is made of that people define: labels of an enum, attributes, constraints of a domain.

    `types` are those of the attributes, or the base of a domain; a new name leaves a label or attribute its
    number in `numbers`, which older manifests have of attributes alone.
    """

    name: str
    kind: str
    parts: tuple[str, ...]
    types: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()

    def means_as(self, now: Definition) -> bool:
        """Tell whether a text that was a value of this type is the same value of the type as it is now."""
        if self.kind != now.kind or self.types != now.types:
            return False
        if self.kind == "e":
            return self.parts == tuple(label for label in now.parts if label in self.parts)
        return self.kind == "d" or self.parts == now.parts or self.numbers == now.numbers

    def namesakes(self, now: Definition) -> tuple[str, ...]:
        """Name the labels whose names others have now, in the same database; none if all were made anew."""
        if self.kind != "e" or set(self.numbers).isdisjoint(now.numbers):
            return ()
        then, here = (dict(zip(each.parts, each.numbers, strict=True)) for each in (self, now))
        return tuple(label for label in then if here.get(label, then[label]) != then[label])

    def __str__(self) -> str:
        return ", ".join(self.parts if self.kind == "e" else (*self.types, *self.parts))


class Shape(Frozen):
    """A whole table without its rows; `owner_lacks` are privileges that its owner was revoked."""

    schema_: str
    name: str
    owner: str
    columns: tuple[Column, ...]
    constraints: tuple[Constraint, ...] = ()
    indexes: tuple[Index, ...] = ()
    grants: tuple[Grant, ...] = ()
    triggers: tuple[Hook, ...] = ()
    policies: tuple[Policy, ...] = ()
    statistics: tuple[Statistics, ...] = ()
    rules: tuple[Hook, ...] = ()
    publications: tuple[Publication, ...] = ()
    owner_lacks: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    is_unlogged: bool = False
    row_security: bool = False
    force_row_security: bool = False
    replica_identity: str = "d"
    replica_index: str | None = None
    cluster_index: str | None = None
    comment: str | None = None
    left_out: tuple[str, ...] = ()
    types: tuple[Definition, ...] = ()
    partition_by: str = ""

    @property
    def stored_columns(self) -> tuple[Column, ...]:
        """The columns that COPY takes: those that are not generated."""
        return tuple(column for column in self.columns if not column.generated)

    @property
    def computed_columns(self) -> tuple[Column, ...]:
        """The generated columns whose values stand in the table."""
        return tuple(column for column in self.columns if column.generated == "s")

    @property
    def table(self) -> sql.Identifier:
        """The table's name, quoted."""
        return sql.Identifier(self.schema_, self.name)


def read_shape(session: Connection, oid: int) -> Shape:
    """Read a table's shape; raises PreconditionFailed when it is gone."""
    asked = {"oid": oid}
    head = session.execute(query("archive", "table"), asked).fetchone()
    if head is None:
        raise PreconditionFailed(f"the table with OID {oid} is gone", hint="plan again")
    marked = session.execute(query("archive", "marked_indexes"), asked).fetchall()[0]
    columns = tuple(Column(**row) for row in session.execute(query("archive", "columns"), asked))
    return Shape(
        schema_=head["schema"],
        name=head["name"],
        owner=head["owner"],
        columns=columns,
        types=read_types(session, columns),
        constraints=tuple(
            Constraint(**row) for row in session.execute(query("archive", "constraints"), asked)
        ),
        indexes=tuple(Index(**row) for row in session.execute(query("archive", "indexes"), asked)),
        grants=tuple(Grant(**row) for row in session.execute(query("partitions", "grants"), asked)),
        triggers=tuple(Hook(**row) for row in session.execute(query("archive", "triggers"), asked)),
        policies=tuple(Policy(**row) for row in session.execute(query("archive", "policies"), asked)),
        statistics=tuple(Statistics(**row) for row in session.execute(query("archive", "statistics"), asked)),
        rules=tuple(Hook(**row) for row in session.execute(query("archive", "rules"), asked)),
        publications=tuple(
            Publication(**row) for row in session.execute(query("archive", "publications"), asked)
        ),
        owner_lacks=tuple(head["owner_lacks"]),
        options=tuple(head["options"]),
        is_unlogged=head["persistence"] == "u",
        row_security=head["row_security"],
        force_row_security=head["force_row_security"],
        replica_identity=head["replica_identity"],
        replica_index=marked["replica"],
        cluster_index=marked["cluster"],
        comment=head["comment"],
        left_out=tuple(row["what"] for row in session.execute(query("archive", "left_out"), asked)),
        partition_by=head["partition_by"],
    )


def read_types(session: Connection, columns: Sequence[Column]) -> tuple[Definition, ...]:
    """Read how the types are defined that columns are made of, as far as people defined them."""
    names = sorted({column.type for column in columns})
    rows = session.execute(query("archive", "types"), {"names": names})
    return tuple(Definition(**row) for row in rows)


def read_numbers(session: Connection, oid: int) -> dict[str, int]:
    """Read the numbers of a table's columns, which a new name does not change."""
    rows = session.execute(query("archive", "numbers"), {"oid": oid})
    return {row["name"]: row["number"] for row in rows}


def renamed(shape: Shape, name: str) -> Shape:
    """Give a table and its indexes other names; a CHECK keeps its own, by which it is known above."""
    owned = [each.name for each in shape.constraints if each.kind in "pux"]
    owned += [each.name for each in shape.indexes]
    names = {old: f"{name}_{number}" for number, old in enumerate(owned)}
    changes = {
        "name": name,
        "constraints": tuple(_called(each, names) for each in shape.constraints),
        "indexes": tuple(_called(each, names) for each in shape.indexes),
        "replica_index": names.get(shape.replica_index or ""),
        "cluster_index": names.get(shape.cluster_index or ""),
    }
    return shape.model_copy(update=changes)


def _called(each: Named, names: Mapping[str, str]) -> Named:
    return each.model_copy(update={"name": names.get(each.name, each.name)})


def bound_checks(own: Shape, condition: str) -> tuple[str, ...]:
    """Name the CHECKs that say the same as the bound: ours, which a concurrent detach made, and people's."""
    wanted = _bare(condition)
    return tuple(
        each.name
        for each in own.constraints
        if each.kind == "c" and (each.name == BOUND_CHECK or _bare(each.definition) == wanted)
    )


def _bare(text: str) -> str:
    return "".join(text.removeprefix("CHECK ").split()).strip("()")
