"""Whether the copy's catalogue is the source's: every system catalog read whole, row by row, by OID.

A physical copy has the source's OIDs, so rows of the system catalogs are compared as they are: whatever
a server keeps there is compared, also what a newer release adds. All rows that belong to one object, its
columns, comments and dependencies, make one digest; a difference is told by the object's name.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from psycopg.pq import TransactionStatus

from pgvigil.drill.digest import pin
from pgvigil.drill.judgement import AGAIN, Judgement, listed, passed, refuted, unknown
from pgvigil.errors import DatabaseFailed
from pgvigil.postgres import sql, translated
from pgvigil.redaction import redactor
from pgvigil.reports import Check, Finding, Frozen, Severity
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pgvigil.postgres import Connection

Scope = Literal["database", "cluster"]
Outcome = Literal["missing", "extra", "differs", "moved"]

NOT_COMPARED = "hashes of role passwords and secrets of foreign servers and subscriptions are not compared"

_EXPECTED = "every object as it is at the source"
_READ = 10_000  # so many differing objects are sorted by what they belong to
_DETAILED = 50  # so many are looked into, the rest are counted
_LONGEST_VALUE = 120  # characters of a value that a finding shows

# What statistics, VACUUM and rewrites update, often in place; it says nothing about the definition.
# Or what is a secret.
_LEFT_OUT: dict[str, frozenset[str]] = {
    "pg_class": frozenset(
        {
            "relfilenode",
            "relpages",
            "reltuples",
            "relallvisible",
            "relallfrozen",
            "relhasindex",
            "relhasrules",
            "relhastriggers",
            "relhassubclass",
            "relfrozenxid",
            "relminmxid",
        }
    ),
    "pg_index": frozenset({"indcheckxmin"}),
    "pg_database": frozenset({"datfrozenxid", "datminmxid"}),
    "pg_shdepend": frozenset({"dbid"}),  # rows of other databases are not read
    "pg_subscription_rel": frozenset({"srsublsn"}),
    "pg_authid": frozenset({"rolpassword"}),
    "pg_subscription": frozenset({"subconninfo"}),
    "pg_user_mapping": frozenset({"umoptions"}),
}
# Statistics, and content: large objects are compared as a table.
_PASSED_OVER = frozenset({"pg_statistic", "pg_statistic_ext_data", "pg_largeobject"})
# Comments on large objects, and their dependencies, name the catalog of their pages as theirs.
_LARGE_OBJECTS = sql.SQL("'pg_catalog.pg_largeobject'::pg_catalog.regclass::oid")
# What a role without further rights reads instead; a view has no xmin.
_VIEWS = {
    "pg_authid": sql.SQL("pg_catalog.pg_roles"),
    "pg_user_mapping": sql.SQL(
        "(SELECT umid AS oid, umuser, srvid AS umserver FROM pg_catalog.pg_user_mappings)"
    ),
}
# Rows that are part of an object of another catalog, and the column that has its OID.
_PART_OF = {
    "pg_aggregate": ("pg_proc", "aggfnoid"),
    "pg_attribute": ("pg_class", "attrelid"),
    "pg_auth_members": ("pg_authid", "member"),
    "pg_enum": ("pg_type", "enumtypid"),
    "pg_foreign_table": ("pg_class", "ftrelid"),
    "pg_index": ("pg_class", "indexrelid"),
    "pg_inherits": ("pg_class", "inhrelid"),
    "pg_partitioned_table": ("pg_class", "partrelid"),
    "pg_range": ("pg_type", "rngtypid"),
    "pg_sequence": ("pg_class", "seqrelid"),
    "pg_subscription_rel": ("pg_subscription", "srsubid"),
    "pg_ts_config_map": ("pg_ts_config", "mapcfg"),
}
# What shows people the stored expressions of a row.
_DEFINITIONS = {
    "pg_attrdef": sql.SQL("pg_catalog.pg_get_expr(adbin, adrelid)"),
    "pg_constraint": sql.SQL("pg_catalog.pg_get_constraintdef(oid)"),
    "pg_index": sql.SQL("pg_catalog.pg_get_indexdef(indexrelid)"),
    "pg_policy": sql.SQL(
        "pg_catalog.concat_ws(' / ', pg_catalog.pg_get_expr(polqual, polrelid),"
        " pg_catalog.pg_get_expr(polwithcheck, polrelid))"
    ),
    "pg_rewrite": sql.SQL("pg_catalog.pg_get_ruledef(oid)"),
    "pg_trigger": sql.SQL("pg_catalog.pg_get_triggerdef(oid)"),
}


class Address(NamedTuple):
    """An object: the OID of the catalog that defines it, and its own."""

    classid: int
    objid: int


class Item(NamedTuple):
    """All catalog rows of one object as a digest, and whether one was written within the window asked for."""

    digest: int
    touched: bool


class Window(NamedTuple):
    """Transactions from the oldest undecided one to before the next one to begin."""

    oldest: int
    next: int


@dataclass(frozen=True)
class Catalogue:
    """The objects of one database, or of the cluster, under one snapshot; `rows` counts its catalogs'."""

    scope: Scope
    window: Window
    items: Mapping[Address, Item]
    rows: int = 0


class Difference(NamedTuple):
    """An object that is not the same in the copy; `moved`: its definition changed around the mark."""

    address: Address
    outcome: Outcome


class Value(Frozen):
    """One differing column of a catalog row, on both sides; None where the row is not there."""

    catalog: str
    row: str
    column: str
    source: str | None
    copied: str | None

    def __str__(self) -> str:
        """Write it for a finding."""
        where = f"{self.catalog}.{self.column}" if self.column else self.catalog
        row = f" ({self.row})" if self.row else ""
        return f"{where}{row}: {_short(self.source)} at the source, {_short(self.copied)} in the copy"


class Described(Frozen):
    """A differing object by kind and name, and how it differs."""

    kind: str
    name: str
    outcome: Outcome
    values: tuple[Value, ...] = ()

    def __str__(self) -> str:
        """Name it for people."""
        return f"{self.kind} {self.name}"


class _Catalog(NamedTuple):
    """One system catalog as the server describes it; `columns` are names with types."""

    oid: int
    name: str
    shared: bool
    readable: bool
    columns: list[list[str]]
    key: list[str] | None


def read(
    connection: Connection, scope: Scope, *, since: Window | None = None, until: int | None = None
) -> Catalogue:
    """Read the catalogue of the session's database, or what the cluster's databases share.

    With the window of an earlier reading as `since`, items tell whether they were written from then on;
    `until` ends that at a transaction id, for a copy that has written itself: its next one when it stopped
    replaying. Changes nothing and works in recovery; a transaction that is open already should be repeatable
    read, for it is read under its snapshot. Raises DatabaseFailed.
    """
    with frozen(connection):
        window = read_window(connection)
        statement = _digests(_catalogs(connection), scope, _within(since, until or window.next))
        rows = connection.execute(statement).fetchall()
        temporary = {_address(row) for row in connection.execute(query("drill_catalogue", "temporary"))}
    items = {_address(row): Item(int(row["digest"]), row["touched"]) for row in rows}
    kept = {address: item for address, item in items.items() if address not in temporary}
    return Catalogue(scope, window, kept, sum(row["rows"] for row in rows))


def reread(connection: Connection, earlier: Catalogue) -> Catalogue:
    """Read again what was read earlier; where no row came, went or was written since, that still stands."""
    with frozen(connection):
        window = read_window(connection)
        touched = _within(earlier.window, window.next)
        counted = connection.execute(_count(_catalogs(connection), earlier.scope, touched)).fetchone()
        if counted == {"rows": earlier.rows, "touched": False}:
            return replace(earlier, window=window)
        return read(connection, earlier.scope, since=earlier.window)


def read_window(connection: Connection) -> Window:
    """Read which transactions are decided and which id comes next; on a paused copy, where it stopped."""
    (row,) = connection.execute(query("drill_catalogue", "window")).fetchall()
    return Window(row["oldest"], row["next"])


def window_of(readings: tuple[Catalogue, Catalogue]) -> Window | None:
    """Return from when on a change makes a difference prove nothing; None where one reading is exact."""
    before, after = readings
    return None if before is after else before.window


def compare(before: Catalogue, after: Catalogue, copy: Catalogue) -> tuple[Difference, ...]:
    """Compare the copy with the source as it was read before and after the mark.

    An object is good when it equals either reading. One that is not is refuted only if nothing shows that
    it changed in between: both readings are the same, and neither the later one nor the copy has a row of
    it that was written since the first.
    """
    addresses = before.items.keys() | after.items.keys() | copy.items.keys()
    found = (
        _compare(address, before.items.get(address), after.items.get(address), copy.items.get(address))
        for address in sorted(addresses)
    )
    return tuple(difference for difference in found if difference)


def _compare(
    address: Address, before: Item | None, after: Item | None, copied: Item | None
) -> Difference | None:
    digest = copied.digest if copied else None
    first, last = (item.digest if item else None for item in (before, after))
    if digest in {first, last}:
        return None
    is_moved = first != last or any(item.touched for item in (after, copied) if item)
    return Difference(address, "moved" if is_moved else _outcome(first, digest))


def _outcome(first: int | None, digest: int | None) -> Outcome:
    if digest is None:
        return "missing"
    return "extra" if first is None else "differs"


def describe(
    source: Connection, copy: Connection, differences: Sequence[Difference]
) -> tuple[Described, ...]:
    """Name the first differing objects, those that are refuted before those that moved, and say how.

    What is missing, or there, only with the object that it belongs to is not told of. An object that is
    missing, while another of its name is there, was made anew: it differs.
    """
    for session in (source, copy):
        pin(session)
    gravest_first = sorted(differences, key=lambda each: each.outcome == "moved")
    roots = _roots(source, copy, gravest_first[:_READ])
    names = _names(copy, roots) | _names(source, roots)
    catalogs = _catalogs(source)
    told: dict[tuple[str, str], Difference] = {}
    described: dict[tuple[str, str], Described] = {}
    for difference in roots[:_DETAILED]:
        address = difference.address
        kind, name = names.get(address) or _unnamed(catalogs, address)
        twin = told.setdefault((kind, name), difference)
        if twin is not difference and difference.outcome == "moved":
            continue
        is_whole = difference.outcome in {"missing", "extra"} and twin is difference
        values = () if is_whole else _told_values(source, copy, catalogs, (twin.address, address))
        described[kind, name] = Described(
            kind=kind,
            name=name,
            outcome=difference.outcome if twin is difference else "differs",
            values=values,
        )
    return tuple(described.values())


def judge(
    subject: str, compared: int, differences: Sequence[Difference], described: Sequence[Described]
) -> Judgement:
    """Judge a comparison of one database's catalogue, or the cluster's; `compared` counts its objects."""
    name = f"catalogue {subject}"
    bad = [each for each in described if each.outcome != "moved"]
    moved = [str(each) for each in described if each.outcome == "moved"]
    if not compared:
        return Judgement(checks=(unknown(name, _EXPECTED, "no object was compared"),))
    is_equal = all(each.outcome == "moved" for each in differences)
    good = passed(name, _EXPECTED, f"{compared - len(differences)} of {compared} objects are; {NOT_COMPARED}")
    checks = [good if is_equal else refuted(name, _EXPECTED, [f"{each} {_said(each)}" for each in bad])]
    if moved:
        checks.append(_told_moved(name, moved))
    findings = [_finding(subject, each) for each in bad]
    if len(bad) == _DETAILED:  # there may be more
        findings.append(_more(subject, len(differences)))
    return Judgement(checks=tuple(checks), findings=tuple(findings))


def _more(subject: str, many: int) -> Finding:
    return Finding(
        code="catalogue-more",
        severity=Severity.ERROR,
        message=f"catalogue {subject}: {many} catalog entries differ, those of {_DETAILED} objects are told",
        hint="the copy is not what the source was: start with the objects that are told",
        subject=subject,
    )


def _told_moved(name: str, moved: Sequence[str]) -> Check:
    detail = f"changed at the source in the moment of the mark: {listed(moved)}; {AGAIN}"
    return unknown(f"{name} meanwhile", _EXPECTED, detail)


def prove(
    subject: str, readings: tuple[Catalogue, Catalogue, Catalogue], source: Connection, copy: Connection
) -> Judgement:
    """Compare the readings before the mark, after it and of the copy, and judge; sessions give the names."""
    differences = compare(*readings)
    described = describe(source, copy, differences) if differences else ()
    return judge(subject, len(readings[2].items), differences, described)


def read_collations(subject: str, copy: Connection) -> Judgement:
    """Compare the collation versions of the copy's indexes with those of the host that it runs on."""
    name, expected = f"collations {subject}", "the versions by which the indexes were built"
    rows = copy.execute(query("drill_catalogue", "collations")).fetchall()
    other = [row for row in rows if row["indexes"] and row["recorded"] != row["here"]]
    if not other:
        return Judgement(checks=(passed(name, expected, f"{len(rows)} collations in use"),))
    faults = [f"{row['name']} {row['recorded']}, here {row['here']}" for row in other]
    return Judgement(
        checks=(unknown(name, expected, listed(faults), required=False),),
        findings=tuple(_collation_finding(subject, row) for row in other),
    )


def _collation_finding(subject: str, row: Mapping[str, Any]) -> Finding:
    return Finding(
        code="collation-version",
        severity=Severity.WARNING,
        message=f"database {subject}: {row['indexes']} indexes were built with collation {row['name']} "
        f"version {row['recorded']}, this host has {row['here']}",
        hint="text indexes may be wrong on a host like this: restore to the source's OS release, or REINDEX",
        subject=f"{subject}: collation {row['name']}",
    )


def _finding(subject: str, each: Described) -> Finding:
    where = "the cluster" if subject == "cluster" else f"database {subject}"
    details = "; ".join(map(str, each.values[:3]))
    return Finding(
        code=f"catalogue-{each.outcome}",
        severity=Severity.ERROR,
        message=f"{each} in {where} {_said(each)}" + (f": {details}" if details else ""),
        hint="the copy is not what the source was: find out why before trusting this backup",
        subject=f"{subject}: {each}",
    )


def _said(each: Described) -> str:
    return {
        "missing": "is missing in the copy",
        "extra": "is in the copy alone",
        "differs": "differs",
        "moved": "changed meanwhile",
    }[each.outcome]


@contextmanager
def frozen(connection: Connection, exported: str | None = None) -> Iterator[None]:
    """Read under one snapshot, and pinned settings: an exported one, or that of an open transaction."""
    pin(connection)
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        yield
        return
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        if exported:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exported)))
        connection.execute("SET LOCAL enable_seqscan = on")  # rows are read, not what indexes say of them
        yield


def _catalogs(connection: Connection) -> dict[str, _Catalog]:
    rows = connection.execute(query("drill_catalogue", "catalogs")).fetchall()
    return {row["name"]: _Catalog(**row) for row in rows if row["name"] not in _PASSED_OVER}


def _digests(catalogs: Mapping[str, _Catalog], scope: Scope, touched: sql.Composable) -> sql.Composed:
    """Compose the statement that hashes every catalog row and sums up the hashes of each object."""
    parts = [
        _digest_part(each, catalogs, scope, touched) for each in catalogs.values() if _is_of(each, scope)
    ]
    return sql.SQL(
        "SELECT classid, objid, sum(hash) AS digest, bool_or(touched) AS touched, count(*) AS rows"
        " FROM ({}) AS rows GROUP BY classid, objid"
    ).format(sql.SQL(" UNION ALL ").join(parts))


def _count(catalogs: Mapping[str, _Catalog], scope: Scope, touched: sql.Composable) -> sql.Composed:
    """Compose the statement that counts the same rows without reading them, and tells whether one is new."""
    parts = [
        sql.SQL("SELECT count(*) AS rows, bool_or({}) AS touched FROM {} WHERE {}").format(
            touched if each.readable else sql.SQL("false"), _relation(each), _condition(each, scope)
        )
        for each in catalogs.values()
        if _is_of(each, scope)
    ]
    return sql.SQL("SELECT sum(rows)::bigint AS rows, bool_or(touched) AS touched FROM ({}) AS parts").format(
        sql.SQL(" UNION ALL ").join(parts)
    )


def _digest_part(
    catalog: _Catalog, catalogs: Mapping[str, _Catalog], scope: Scope, touched: sql.Composable
) -> sql.Composed:
    classid, objid = _place(catalog, catalogs)
    columns = [_exact(name, kind) for name, kind in _columns(catalog)]
    return sql.SQL(
        "SELECT {}::bigint AS classid, {}::bigint AS objid,"
        ' hashtextextended(ROW({})::text COLLATE "C", {}) AS hash, {} AS touched FROM {} WHERE {}'
    ).format(
        classid,
        objid,
        sql.SQL(", ").join(columns),
        sql.Literal(catalog.oid),
        touched if catalog.readable else sql.SQL("false"),
        _relation(catalog),
        _condition(catalog, scope),
    )


def _detail_part(catalog: _Catalog, catalogs: Mapping[str, _Catalog]) -> sql.Composed:
    """Compose the statement that reads an object's rows of one catalog in readable form."""
    classid, objid = _place(catalog, catalogs)
    scope: Scope = "cluster" if catalog.shared and catalog.name != "pg_shdepend" else "database"
    return sql.SQL(
        "SELECT {} AS catalog, (SELECT to_jsonb(shown) FROM (SELECT {}) AS shown) AS row FROM {}"
        " WHERE {} AND {}::bigint = %(classid)s AND {}::bigint = %(objid)s"
    ).format(
        sql.Literal(catalog.name),
        sql.SQL(", ").join(_shown(catalog)),
        _relation(catalog),
        _condition(catalog, scope),
        classid,
        objid,
    )


def _shown(catalog: _Catalog) -> Iterator[sql.Composable]:
    """Yield a catalog's columns as people read them: names for OIDs, an expression for its stored tree."""
    for name, kind in _columns(catalog):
        if kind != "pg_node_tree":
            yield sql.SQL("{} AS {}").format(_without_secrets(name), sql.Identifier(name))
    if catalog.name in _DEFINITIONS:
        yield sql.SQL("{} AS definition").format(_DEFINITIONS[catalog.name])


def _relation(catalog: _Catalog) -> sql.Composable:
    if not catalog.readable and catalog.name in _VIEWS:
        return sql.SQL("{} AS t").format(_VIEWS[catalog.name])
    return sql.Identifier("pg_catalog", catalog.name)


def _columns(catalog: _Catalog) -> list[list[str]]:
    left_out = _LEFT_OUT.get(catalog.name, frozenset())
    return [column for column in catalog.columns if column[0] not in left_out]


def _is_of(catalog: _Catalog, scope: Scope) -> bool:
    return catalog.shared == (scope == "cluster") or catalog.name == "pg_shdepend"


def _condition(catalog: _Catalog, scope: Scope) -> sql.SQL:
    if catalog.name != "pg_shdepend":
        return sql.SQL("true")
    if scope == "cluster":
        return sql.SQL("dbid = 0")
    return sql.SQL("dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())")


def _place(catalog: _Catalog, catalogs: Mapping[str, _Catalog]) -> tuple[sql.Composable, sql.Composable]:
    """Say to which object a catalog's rows belong; rows of an unknown kind belong to their catalog."""
    names = {name for name, _ in catalog.columns}
    own = sql.Literal(catalog.oid)
    if catalog.name == "pg_db_role_setting":
        return _setting_place(catalogs)
    if catalog.name == "pg_largeobject_metadata":
        return _LARGE_OBJECTS, sql.Identifier("oid")
    if catalog.name in _PART_OF:
        whole, column = _PART_OF[catalog.name]
        return sql.Literal(catalogs[whole].oid), sql.Identifier(column)
    for classid, objid in (("classid", "objid"), ("classoid", "objoid")):
        if {classid, objid} <= names:
            return sql.Identifier(classid), sql.Identifier(objid)
    if "oid" in names:
        return own, sql.Identifier("oid")
    return own, sql.SQL("0")


def _setting_place(catalogs: Mapping[str, _Catalog]) -> tuple[sql.Composable, sql.Composable]:
    """Give a setting to its role, or to its database when it is for all roles."""
    role, database = (sql.Literal(catalogs[name].oid) for name in ("pg_authid", "pg_database"))
    return (
        sql.SQL("CASE setrole WHEN 0 THEN {} ELSE {} END").format(database, role),
        sql.SQL("CASE setrole WHEN 0 THEN setdatabase ELSE setrole END"),
    )


def _exact(name: str, kind: str) -> sql.Composable:
    """Render a column so that it does not depend on names that are defined elsewhere, nor holds a secret."""
    column = sql.Identifier(name)
    if kind == "regproc":
        return sql.SQL("{}::oid").format(column)
    if kind == "aclitem[]":
        return sql.SQL(
            "CASE WHEN {0} IS NOT NULL THEN ARRAY(SELECT a::text FROM pg_catalog.aclexplode({0}) AS a) END"
        ).format(column)
    return _without_secrets(name)


def _without_secrets(name: str) -> sql.Composable:
    column = sql.Identifier(name)
    if name not in {"srvoptions", "fdwoptions"}:
        return column
    return sql.SQL(
        "ARRAY(SELECT o FROM pg_catalog.unnest({0}) AS o WHERE o !~* '^[^=]*(pass|secret|token|key)')"
    ).format(column)


def _within(since: Window | None, until: int) -> sql.Composable:
    """Compose whether a row was written by a transaction of the window; ids below 3 are no transactions."""
    if since is None:
        return sql.SQL("false")
    return sql.SQL("(xmin::text::bigint >= 3 AND ((xmin::text::bigint - {}) & 4294967295) < {})").format(
        sql.Literal(since.oldest), sql.Literal(max(until - since.oldest, 0))
    )


def _address(row: Mapping[str, Any]) -> Address:
    return Address(row["classid"], row["objid"])


def _split(differences: Iterable[Difference]) -> dict[str, list[int]]:
    addresses = [difference.address for difference in differences]
    return {"classes": [a.classid for a in addresses], "objects": [a.objid for a in addresses]}


def _roots(source: Connection, copy: Connection, differences: Sequence[Difference]) -> list[Difference]:
    """Leave out what is missing, or is there, only because the object that it belongs to is."""
    whole = [each for each in differences if each.outcome in {"missing", "extra"}]
    addresses = {each.address for each in whole}
    fallen = {
        _address(row)
        for session in (source, copy)
        for row in session.execute(query("drill_catalogue", "contained"), _split(whole))
        if Address(row["within_class"], row["within"]) in addresses
    }
    roots = [each for each in differences if each.address not in fallen]
    return roots or list(differences)


def _names(session: Connection, differences: Sequence[Difference]) -> dict[Address, tuple[str, str]]:
    """Name objects as far as the session knows them; a lock at the source costs names, not the judgement."""
    try:
        with translated(session.info.dsn):
            rows = session.execute(query("drill_catalogue", "identify"), _split(differences)).fetchall()
    except DatabaseFailed:
        return {}
    return {_address(row): (row["type"], row["identity"]) for row in rows if row["identity"]}


def _unnamed(catalogs: Mapping[str, _Catalog], address: Address) -> tuple[str, str]:
    catalog = next((each.name for each in catalogs.values() if each.oid == address.classid), "object")
    return f"{catalog} row", f"with OID {address.objid}"


def _told_values(
    source: Connection, copy: Connection, catalogs: Mapping[str, _Catalog], pair: tuple[Address, Address]
) -> tuple[Value, ...]:
    """Compare an object's rows if they can be had: a lock at the source must not cost the judgement."""
    try:
        with translated(source.info.dsn):
            return _values(source, copy, catalogs, pair)
    except DatabaseFailed:
        return ()


def _values(
    source: Connection, copy: Connection, catalogs: Mapping[str, _Catalog], pair: tuple[Address, Address]
) -> tuple[Value, ...]:
    """Compare the rows of an object, or of the two that have its name, missing here and there."""
    ours, theirs = (
        next(filter(None, (_rows(session, catalogs, address) for address in pair)), {})
        for session in (source, copy)
    )
    found = [
        value
        for key in sorted(ours.keys() | theirs.keys())
        for value in _row_values(key, ours.get(key), theirs.get(key))
    ]
    return tuple(found)


def _rows(
    session: Connection, catalogs: Mapping[str, _Catalog], address: Address
) -> dict[tuple[str, str], dict[str, Any]]:
    """Read one object's catalog rows, by catalog and key."""
    statement = sql.SQL(" UNION ALL ").join(_detail_part(each, catalogs) for each in catalogs.values())
    rows = session.execute(statement, address._asdict()).fetchall()
    return {(row["catalog"], _key(catalogs[row["catalog"]], row["row"])): row["row"] for row in rows}


def _key(catalog: _Catalog, row: Mapping[str, Any]) -> str:
    """Name one row among those of its object; a column goes by its name."""
    if catalog.name == "pg_attribute":
        return f"{row['attnum']} {row['attname']}"
    return ", ".join(f"{name} {row[name]}" for name in catalog.key or row if name != "oid")


def _row_values(
    key: tuple[str, str], ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None
) -> Iterator[Value]:
    catalog, row = key
    if ours is None or theirs is None:
        yield Value(catalog=catalog, row=row, column="", source=_text(ours), copied=_text(theirs))
        return
    for column in ours.keys() & theirs.keys():
        if ours[column] != theirs[column]:
            yield Value(
                catalog=catalog,
                row=row,
                column=column,
                source=_text(ours[column]),
                copied=_text(theirs[column]),
            )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return redactor()(text)


def _short(text: str | None) -> str:
    if text is None or text == "null":
        return "nothing"
    one_line = " ".join(text.split())
    return f"'{one_line[:_LONGEST_VALUE]}…'" if len(one_line) > _LONGEST_VALUE else f"'{one_line}'"
