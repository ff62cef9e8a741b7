"""The steps of restore_partition in their order: each does its work and writes into the run's ledger."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive import restoring
from pgvigil.archive.ddl import (
    add_foreign_key,
    bound_clause,
    condition_clause,
    constraint_comment,
    drop_bound_check,
    foreign_keys,
)
from pgvigil.archive.manifest import Manifest, read_manifest
from pgvigil.archive.place import MANIFEST, partition_of, table_folder
from pgvigil.archive.shape import read_numbers, read_shape, read_types
from pgvigil.archive.stream import Progress
from pgvigil.errors import ConfigError, DatabaseFailed, ObjectMissing, PreconditionFailed, StorageFailed
from pgvigil.partitions import beside, ledger
from pgvigil.partitions.catalog import identifier
from pgvigil.partitions.envelope import WAITED, bounded, explain_wait, unlimited
from pgvigil.partitions.facts import Entry, Name
from pgvigil.partitions.leaving import LEAVING
from pgvigil.partitions.managing import look, tables
from pgvigil.postgres import milliseconds, translated
from pgvigil.reports import Check, Finding, Proof, Severity, Verdict, conclude
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from pgvigil.archive.manifest import Node, Origin
    from pgvigil.archive.shape import Constraint, Shape
    from pgvigil.objectstore import StoredObject
    from pgvigil.partitions.facts import Partition, Table
    from pgvigil.partitions.managing import Managed
    from pgvigil.postgres import Connection
    from pgvigil.runs import Run

DRILL_SCHEMA = "pg_temp"
PROOF = "restore of a partition"
CHECK_VIOLATION = "23514"
REFERENCE_MISSING = "23503"


class _DrillOverError(Exception):
    """Ends the transaction of a drill, so that it leaves nothing."""


@dataclass(frozen=True)
class Archived:
    """One proven copy, and the table that it belongs to."""

    managed: Managed
    table: Table
    uri: str
    manifest: Manifest

    @property
    def name(self) -> Name:
        """The partition's name."""
        return Name(schema_=self.manifest.shape.schema_, name=self.manifest.shape.name)


def find(run: Run, partition: str) -> Archived:
    """Find the newest copy of a partition: by its name, by schema.name, or by its manifest's address.

    Newest is what the manifests call so: the store's own times change when an object is moved. An address
    finds a copy wherever it is, and whatever its table is called today. Without a name it is one of all,
    each month another, so that a monthly drill goes round. Raises ConfigError.
    """
    managed = tables(run, None)
    if partition.startswith("s3://") and partition.endswith(f"/{MANIFEST}"):
        found = _at(managed, partition)
    else:
        found = _choose(run, _candidates(managed), partition)
    _tell(run, found)
    return found


def _at(managed: Sequence[Managed], uri: str) -> Archived:
    """Read the copy at an address, and find its table: by OID if this is its server, or by its name."""
    manifest = read_manifest(managed[0].store, uri)
    looked = [(each, look(each)[0]) for each in managed]
    same = [each for each in looked if _is_origin(*each, manifest.origin)]
    same = same or [each for each in looked if each[1].name == _parent(manifest)]
    if not same and len(looked) > 1:
        raise ConfigError(
            f"{uri} is a copy of a partition of '{_parent(manifest)}', which is none of "
            + ", ".join(each.policy.table for each in managed),
            hint="add its table to partitions in the fleet file, under the name that it has today",
        )
    return Archived(*(same or looked)[0], uri, manifest)


def _is_origin(managed: Managed, table: Table, origin: Origin) -> bool:
    """Tell whether rows come from this very table, whatever it was called then."""
    if table.oid != origin.parent_relation:
        return False
    with managed.session() as session:
        return _is_home(session, managed, origin)


def _is_home(session: Connection, managed: Managed, origin: Origin) -> bool:
    """Tell whether rows come from this very database, where numbers of the catalog mean what they meant."""
    here = session.execute(query("archive", "origin")).fetchall()[0]
    return (here["system_id"], managed.database) == (origin.system_id, origin.database)


def _parent(manifest: Manifest) -> Name:
    return Name(schema_=manifest.origin.parent_schema, name=manifest.origin.parent)


def _choose(run: Run, candidates: Sequence[_Listed], partition: str) -> Archived:
    wanted = [found for found in candidates if not partition or partition in found.words]
    if not wanted:
        known = sorted({str(found.name) for found in candidates})
        raise ConfigError(
            f"no copy of '{partition or 'any partition'}' is in the archive",
            hint=f"there are {', '.join(known[-20:]) or 'none'}; a copy elsewhere, or of a table that was "
            "renamed, is found by the address of its manifest, which the audit log has",
        )
    if not partition:
        return _read(min(wanted, key=_of_the_month))
    named = {(found.managed.policy.table, found.name) for found in wanted}
    if len(named) > 1:
        raise ConfigError(
            f"'{partition}' may be {', '.join(sorted(str(name) for _, name in named))}",
            hint="name it as schema.name, or by the address of its manifest",
        )
    newest, *others = sorted(map(_read, wanted), key=_age, reverse=True)
    run.facts["other_copies"] = tuple(f"{each.uri}, of {each.manifest.exported_at}" for each in others)
    return newest


def _age(found: Archived) -> tuple[datetime, datetime, str]:
    return found.manifest.exported_at, found.manifest.proven_at, found.uri


def find_of_the_month(managed: Iterable[Managed]) -> Archived | None:
    """Find one copy of all in the archives of these tables, each month another; None where there is none."""
    candidates = _candidates(managed)
    return _read(min(candidates, key=_of_the_month)) if candidates else None


def _candidates(managed: Iterable[Managed]) -> list[_Listed]:
    return [found for each in managed if each.policy.archive for found in _copies(each)]


@dataclass(frozen=True)
class _Listed:
    managed: Managed
    table: Table
    item: StoredObject
    name: Name

    @property
    def words(self) -> set[str]:
        return {self.name.name, str(self.name)}


def _of_the_month(found: _Listed) -> str:
    return hashlib.sha256(f"{found.table.now:%Y-%m} {found.item.uri}".encode()).hexdigest()


def _copies(managed: Managed) -> Iterator[_Listed]:
    table, _ = look(managed)
    folder = table_folder(managed.policy, managed.cluster, managed.database, table.name)
    for item in managed.store.list(folder):
        if own := partition_of(folder, item.uri):
            yield _Listed(managed, table, item, Name(schema_=own[0], name=own[1]))


def _read(chosen: _Listed) -> Archived:
    manifest = read_manifest(chosen.managed.store, chosen.item.uri)
    return Archived(chosen.managed, chosen.table, chosen.item.uri, manifest)


def _tell(run: Run, found: Archived) -> None:
    manifest = found.manifest
    run.facts |= {
        "partition": manifest.name,
        "manifest": found.uri,
        "exported_at": manifest.exported_at,
        "rows": manifest.digest.rows,
        "bound": manifest.origin.bound,
    }
    _note(run, "manifest", "its own checksum, and everything that a rebuild needs", found.uri)


def _note(run: Run, name: str, expected: str, actual: str) -> None:
    run.checks.append(Check(id=name, verdict=Verdict.VERIFIED, expected=expected, actual=actual))


def _find(run: Run, code: str, message: str, hint: str = "", severity: Severity = Severity.WARNING) -> None:
    run.findings.append(Finding(code=code, severity=severity, message=message, hint=hint))


# --- plan ---------------------------------------------------------------------------------------------


def plan(found: Archived, *, attach: bool, keep: bool) -> None:
    """Say what will be done, and refuse what would double a range or overwrite a table."""
    steps = [f"build {each.name} from {each.stored.rows.uri} and prove it" for each in found.manifest.leaves]
    if not keep:
        steps.append("undo it all: this is a drill")
    else:
        _refuse_doubles(found, attach=attach)
        steps += [f"add foreign key {each.name} to {node.name}" for node, each in _references(found)]
    if keep and attach:
        steps.append(f"attach it to {found.table.name} {found.manifest.origin.bound}")
    found.managed.run.facts["steps"] = tuple(steps)


def _refuse_doubles(found: Archived, *, attach: bool) -> None:
    table, axis = look(found.managed)
    here = _standing(found)
    if here is not None and _resumable(found, table, here) is None:
        state = next((e.state for e in table.entries if e.relation == here), None)
        raise PreconditionFailed(
            f"there is a relation '{found.name}' already"
            + (", detached and not dropped yet" if state in LEAVING else ""),
            hint="drop or rename it first"
            if state not in LEAVING
            else "it needs no bringing back: attach it again by hand, and the next roll takes its fence down",
        )
    wanted = axis.parse(found.manifest.origin.bound)
    for each in table.partitions if attach else ():
        if each.oid != here and each.range and wanted and _overlap(each, wanted.lower, wanted.upper):
            raise PreconditionFailed(
                f"{found.manifest.origin.bound} is held by partition '{each.name}' already",
                hint="bring it back with attach=false and compare the two",
            )


def _overlap(each: Partition, lower: int | None, upper: int | None) -> bool:
    assert each.range is not None  # noqa: S101 - the caller looked
    starts_before = upper is None or each.range.lower is None or each.range.lower < upper
    ends_after = lower is None or each.range.upper is None or each.range.upper > lower
    return starts_before and ends_after


def _standing(found: Archived) -> int | None:
    asked = {"schema": found.name.schema_, "name": found.name.name}
    with found.managed.session() as session:
        row = session.execute(query("partitions", "relation"), asked).fetchone()
    return row["oid"] if row else None


def _resumable(found: Archived, table: Table, oid: int) -> Entry | None:
    """Find the note of an earlier run that built this table from this very copy."""
    return next(
        (
            e
            for e in table.entries
            if e.relation == oid and e.state == "returning" and e.manifest == found.uri
        ),
        None,
    )


# --- build --------------------------------------------------------------------------------------------


def rebuild(found: Archived, *, keep: bool, on_progress: Callable[[Progress], None]) -> bool:
    """Build and prove the table, and keep it or undo it; tells whether it was as archived.

    A table that an earlier run built and proved, and then died, is compared again: others could write to it.
    """
    managed, run = found.managed, found.managed.run
    table, _ = look(managed)
    if keep:
        with managed.session() as session:
            ledger.require(session)
    here = _standing(found)
    if keep and here is not None and _resumable(found, table, here):
        with managed.session(patient=True) as session, session.transaction():
            return _is_unchanged(session, found)
    managed.check_lock()
    intent = {"partition": str(found.name), "manifest": found.uri, "keep": keep}
    with run.step("rebuild", intent) as noted:
        checks = build(found, keep=keep, on_progress=on_progress)
        noted["checks"] = [f"{check.id}: {check.verdict}" for check in checks]
    verdict = _judge(run, checks)
    if not keep and verdict is Verdict.VERIFIED:
        run.facts["became"] = "gone again: a drill leaves nothing"
    return verdict is Verdict.VERIFIED


def _judge(run: Run, checks: list[Check]) -> Verdict:
    """Take what was compared into the report; the last comparison is the one that counts."""
    run.checks += checks
    verdict = conclude(checks)
    run.proofs[:] = [each for each in run.proofs if each.name != PROOF]
    run.proofs.append(Proof(name=PROOF, verdict=verdict))
    return verdict


def _is_unchanged(session: Connection, found: Archived) -> bool:
    """Compare the table again with its copy, and keep writers off it until the transaction ends."""
    managed = found.managed
    lock = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(identifier(found.name))

    def keep_writers_off() -> None:
        with session.transaction():
            session.execute(lock)

    bounded(session, managed.dsn, managed.policy, keep_writers_off)
    unlimited(session, managed.policy)
    if _judge(managed.run, restoring.compare_again(session, found.manifest)) is Verdict.VERIFIED:
        return True
    _find(
        managed.run,
        "changed-since",
        f"'{found.name}' was rebuilt and proven, and somebody changed it since: it is left as it is",
        "see who wrote to it; to bring it back as it was archived, drop or rename it and run again",
        Severity.ERROR,
    )
    return False


def build(found: Archived, *, keep: bool, on_progress: Callable[[Progress], None]) -> list[Check]:
    """Build and prove the table in one transaction, or undo it all; tells what was compared."""
    try:
        return _rebuild(found, keep=keep, on_progress=on_progress)
    except restoring.NotAsArchivedError as error:
        return error.checks
    except StorageFailed as error:
        if not isinstance(error, ObjectMissing) and error.context.get("s3_code") != "ContentAltered":
            raise
        return [_broken(found, error)]


def _broken(found: Archived, error: StorageFailed) -> Check:
    """Call a copy refuted whose rows are gone or cannot be read as what was stored."""
    told = (
        f"{each.stored.rows.size} bytes with sha256 {each.stored.rows.sha256}"
        for each in found.manifest.leaves
    )
    expected = "; ".join(told)
    return Check(id="content", verdict=Verdict.REFUTED, expected=expected, actual=error.message)


def _rebuild(found: Archived, *, keep: bool, on_progress: Callable[[Progress], None]) -> list[Check]:
    managed, manifest = found.managed, found.manifest
    total = max(1, manifest.text_size)

    def show(done: int) -> None:
        percent = min(100.0, 100 * done / total)
        on_progress(Progress(percent=percent, text=f"loaded {percent:.0f} %"))

    proven: list[Check] = []

    def finish(checks: list[Check]) -> None:
        proven.extend(checks)
        if not keep:
            raise _DrillOverError
        ledger.returning(session, _new_entry(session, found))

    for node in manifest.nodes:
        for what in node.shape.left_out:
            _lost(managed.run, found, what, f"the copy has no more of it than that '{node.name}' had it")
    if any(leaf.shape.computed_columns and not leaf.stored.generated for leaf in manifest.leaves):
        _find(
            managed.run,
            "generated-unproven",
            f"generated columns of '{found.name}' are computed anew, not proven: it has no digest of them",
            severity=Severity.INFO,
        )
    with managed.session(patient=True) as session:
        _compare_types(session, found)
        order = _order(session, found, keep=keep)
        with suppress(_DrillOverError):
            restoring.rebuild(session, managed.store, order, show, finish, partial(_lost, managed.run, found))
    return proven


def _compare_types(session: Connection, found: Archived) -> None:
    """Tell of types that are defined otherwise since; raises PreconditionFailed where values would differ."""
    shape, run = found.manifest.shape, found.managed.run
    is_home = _is_home(session, found.managed, found.manifest.origin)
    here = {each.name: each for each in read_types(session, shape.columns)}
    for then in shape.types:
        now = here.get(then.name)
        is_renumbered = now is not None and is_home and then.numbers not in {(), now.numbers}
        if now is None or ((then.parts, then.types) == (now.parts, now.types) and not is_renumbered):
            continue
        what = f"type '{then.name}' was ({then}) when '{found.name}' was archived, and is ({now}) now"
        namesakes = then.namesakes(now) if is_home else ()
        if namesakes:
            what += f", where another label is called {', '.join(map(repr, namesakes))}"
        elif is_renumbered and then.parts == now.parts:
            what += ", made anew"
        if namesakes or not then.means_as(now):
            raise PreconditionFailed(
                f"{what}: archived values would be others, or none",
                hint="give the type its old definition for a while, or load the copy by hand into a table "
                "with a type of its own: the manifest has the ddl, see docs/partitions.md",
            )
        _find(
            run,
            "type-changed",
            what,
            "see that values mean the same; one that a domain refuses now comes back while it lacks its new "
            "constraint, which can be added again as NOT VALID",
        )


def _lost(run: Run, found: Archived, what: str, why: str) -> None:
    _find(
        run,
        "not-rebuilt",
        f"'{found.name}' comes back without its {what}: {why}",
        "make what it leans on again, or leave it; its definition is in the manifest's ddl",
    )


def _order(session: Connection, found: Archived, *, keep: bool) -> restoring.Order:
    if not keep:
        # Among temporary tables no name of the drill can meet one of the user's, and no right is needed.
        return restoring.Order(found.manifest, as_owners=False, schema=DRILL_SCHEMA)
    strangers = [owner for owner in _owners(found.manifest) if not _may_become(session, owner)]
    for owner in strangers:
        _find(
            found.managed.run,
            "owner-away",
            f"'{found.name}' belonged to role '{owner}', as which pgvigil cannot act: it is pgvigil's now",
            f'GRANT "{owner}" TO pgvigil, or ALTER TABLE … OWNER TO whoever shall have it',
        )
    return restoring.Order(found.manifest, as_owners=not strangers)


def _owners(manifest: Manifest) -> list[str]:
    return sorted({node.shape.owner for node in manifest.nodes})


def _may_become(session: Connection, role: str) -> bool:
    row = session.execute(query("partitions", "may_become"), {"role": role}).fetchone()
    return bool(row and row["may"])


def _new_entry(session: Connection, found: Archived) -> Entry:
    asked = {"schema": found.name.schema_, "name": found.name.name}
    row = session.execute(query("partitions", "relation"), asked).fetchone()
    assert row is not None  # noqa: S101 - it was built in this transaction
    return Entry(
        id=found.manifest.id,
        state="returning",
        relation=row["oid"],
        name=found.name,
        parent=found.table.oid,
        bound=found.manifest.origin.bound,
        condition=found.manifest.origin.condition,
        since=found.table.now,
        manifest=found.uri,
    )


# --- settle -------------------------------------------------------------------------------------------


def _references(found: Archived) -> list[tuple[Node, Constraint]]:
    """Give the foreign keys in the order of their making: a partitioned table takes over its partitions'."""
    nodes = reversed(found.manifest.nodes)
    return [(node, each) for node in nodes for each in foreign_keys(node.shape)]


def refer(found: Archived) -> tuple[str, ...]:
    """Add the foreign keys and check them without blocking; returns those whose rows refer to nothing."""
    references = _references(found)
    if not references:
        return ()
    managed = found.managed
    broken: list[str] = []
    with (
        managed.run.step("foreign keys", {"partition": str(found.name)}),
        managed.session(patient=True) as session,
    ):
        for node, key in references:
            if node.is_leaf or not broken:
                broken += _refer(session, managed, node.shape, key)
    for name in broken:
        _find(
            managed.run,
            "reference-lost",
            f"rows of '{found.name}' refer by '{name}' to rows that are gone",
            "the key is there, NOT VALID; delete or repair these rows, then validate it",
        )
    return tuple(broken)


def _refer(session: Connection, managed: Managed, shape: Shape, key: Constraint) -> list[str]:
    """Add and check one foreign key; returns its name when rows refer to nothing."""
    asked = {"schema": shape.schema_, "name": shape.name, "key": key.name}
    state = session.execute(query("partitions", "key_state"), asked).fetchone()
    if state is None:
        add = add_foreign_key(key, shape)
        bounded(session, managed.dsn, managed.policy, partial(session.execute, add))
        for comment in constraint_comment(key, shape.table):
            session.execute(comment)
        unlimited(session, managed.policy)
    is_proven = bool(state and state["is_proven"]) or bool(shape.partition_by) or key.is_unproven
    return [] if is_proven or _validate(session, managed, shape.table, key.name) else [key.name]


def _oid(session: Connection, found: Archived) -> int:
    asked = {"schema": found.name.schema_, "name": found.name.name}
    row = session.execute(query("partitions", "relation"), asked).fetchone()
    if row is None:
        raise PreconditionFailed(f"'{found.name}' is gone again", hint="run again")
    oid: int = row["oid"]
    return oid


def _validate(session: Connection, managed: Managed, table: sql.Identifier, name: str) -> bool:
    statement = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(table, sql.Identifier(name))
    try:
        with translated(managed.dsn):
            session.execute(statement)
    except DatabaseFailed as error:
        if error.sqlstate != REFERENCE_MISSING:
            raise
        return False
    return True


def settle(found: Archived, broken: tuple[str, ...], *, attach: bool) -> None:
    """Make the table a partition again, or leave it standing for itself. Idempotent."""
    managed, run = found.managed, found.managed.run
    managed.check_lock()
    if attach and broken:
        raise PreconditionFailed(
            f"'{found.name}' cannot be attached: its rows refer to rows that are gone ({', '.join(broken)})",
            hint="it stands for itself now; repair the rows, then run again with attach=true",
        )
    intent = {"partition": str(found.name)}
    step = run.step("attach" if attach else "leave standing", intent)
    run.facts["became"] = "a table for itself"
    with step as noted, managed.session(patient=True) as session:
        if attach:
            noted["is_attached"] = _attach(session, found)
        else:
            ledger.returned(session, found.manifest.id)
    if noted.get("is_attached"):
        run.facts["became"] = f"a partition of {found.table.name}"
        _note(run, "attached", found.manifest.origin.bound, "a partition again")


def _attach(session: Connection, found: Archived) -> bool:
    """Attach the table, fitted to its parent and compared again; tells whether it was still as archived.

    What only adds to it is committed before. What takes its columns away is done with the ATTACH, so that a
    run that dies in between leaves everything that the next one compares.
    """
    managed = found.managed
    table = identifier(found.name)
    oid = _oid(session, found)
    if _is_attached(session, found, oid):  # by an attempt whose answer was lost
        return True
    renamed = _follow_names(session, found, oid)
    own, parent = read_shape(session, oid), read_shape(session, found.table.oid)
    adaption = restoring.Adaption(table, own, parent)
    condition = found.manifest.origin.condition
    restoring.adapt(session, managed.dsn, adaption, condition, own)
    managed.run.facts["adapted"] = (
        renamed + tuple(adaption.told) + _refer_as_table(session, managed, own, parent)
    )
    try:
        with managed.session(patient=True) as second, ExitStack() as after, session.transaction():
            if not _is_unchanged(session, found):
                return False
            _wait_idle(session, managed)
            after.enter_context(_beside_default(second, found, condition))
            _tell_lost(session, found, adaption.lost)
            attach = partial(_attach_now, session, found, adaption.drops)
            bounded(session, managed.dsn, managed.policy, attach)
    except DatabaseFailed as error:
        raise _unattachable(session, error, found, oid) from error
    return True


def _is_attached(session: Connection, found: Archived, oid: int) -> bool:
    row = session.execute(query("partitions", "standing"), {"oid": oid}).fetchall()[0]
    return bool(row["is_partition"]) and row["parent"] == found.table.oid and not row["is_pending"]


def _wait_idle(session: Connection, managed: Managed) -> None:
    """Let the transaction last while another session looks through DEFAULT."""
    name, span = "idle_in_transaction_session_timeout", milliseconds(managed.policy.deadline)
    session.execute("SELECT set_config(%s, %s, true)", (name, span))


@contextmanager
def _beside_default(session: Connection, found: Archived, condition: str) -> Iterator[None]:
    """Let the block attach beside a DEFAULT partition that has no row of the range, as seen beforehand."""
    managed, oid = found.managed, found.table.default_oid
    if not oid:
        yield
        return
    default = beside.look(session, managed.policy, oid, condition_clause(condition))
    if default.rows:
        raise PreconditionFailed(
            f"'{found.name}' cannot be attached: DEFAULT has {default.rows} rows of its range",
            hint="they were written since; it stands for itself now: bring both together, then run again",
        )
    with beside.proven(session, managed.dsn, managed.policy, default):
        yield


def _follow_names(session: Connection, found: Archived, oid: int) -> tuple[str, ...]:
    """Rename the columns that have another name in the parent since; by its number a column is known."""
    origin = found.manifest.origin
    if not _is_origin(found.managed, found.table, origin):
        return ()
    now = read_numbers(session, found.table.oid)
    names = {number: name for name, number in now.items()}
    told = []
    for place, column in enumerate(found.manifest.shape.columns, start=1):
        own = read_numbers(session, oid)
        here = next((name for name, number in own.items() if number == place), column.name)
        wanted = names.get(origin.parent_columns.get(column.name, 0))
        if wanted is None and column.name in now and column.name in origin.parent_columns:
            _find(
                found.managed.run,
                "column-anew",
                f"column '{column.name}' was dropped since, and another has its name: the values that come "
                "back are of the one before",
                "see whether they mean the same; if not, detach the partition and clear the column",
            )
        if wanted is None or wanted == here:
            continue
        if wanted in own:
            raise PreconditionFailed(
                f"column '{here}' is called '{wanted}' in the table now, and another had that name",
                hint="bring the partition back with attach=false, rename the columns, attach it by hand",
            )
        session.execute(
            sql.SQL("ALTER TABLE {} RENAME COLUMN {} TO {}").format(
                identifier(found.name), sql.Identifier(here), sql.Identifier(wanted)
            )
        )
        told.append(f"column '{here}' is called '{wanted}' since: it is renamed")
    return tuple(told)


def _tell_lost(session: Connection, found: Archived, columns: Sequence[str]) -> None:
    """Tell how many archived values find no place in the table any more."""
    for name in columns:
        count = sql.SQL("SELECT count({}) AS n FROM {}").format(sql.Identifier(name), identifier(found.name))
        values = session.execute(count).fetchall()[0]["n"]
        if values:
            _find(
                found.managed.run,
                "values-left-out",
                f"{values} values of column '{name}' of '{found.name}' find no place: the table has no such "
                "column now",
                "they stay in the archive; attach=false brings the whole table back",
            )


def _refer_as_table(session: Connection, managed: Managed, own: Shape, parent: Shape) -> tuple[str, ...]:
    """Add and check the foreign keys that the table gained since: ATTACH would check them under its locks."""
    have = {each.definition.removesuffix(" NOT VALID") for each in foreign_keys(own)}
    added = [each for each in foreign_keys(parent) if each.definition not in have]
    for key in added:
        if _refer(session, managed, own, key):
            raise PreconditionFailed(
                f"foreign key '{key.name}' was added since, and rows refer to rows that are gone",
                hint="the table stands for itself now; repair the rows, then run again with attach=true",
            )
    return tuple(f"foreign key '{key.name}' was added since: every row passed it" for key in added)


def _attach_now(session: Connection, found: Archived, drops: Sequence[sql.Composed]) -> None:
    table = identifier(found.name)
    with session.transaction():
        for drop in drops:
            session.execute(drop)
        session.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
                identifier(found.table.name), table, bound_clause(found.manifest.origin.bound)
            )
        )
        session.execute(drop_bound_check(table))
        ledger.returned(session, found.manifest.id)


def _unattachable(
    session: Connection, error: DatabaseFailed, found: Archived, oid: int
) -> DatabaseFailed | PreconditionFailed:
    if error.sqlstate == CHECK_VIOLATION:
        return PreconditionFailed(
            f"'{found.name}' cannot be attached: {error.message}",
            hint="rows of this range were written since, into the DEFAULT partition: move them first",
        )
    if error.sqlstate in WAITED:
        return explain_wait(session, error, [found.table.oid, oid], f"the attach of '{found.name}'")
    return error
