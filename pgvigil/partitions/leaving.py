"""The steps that take a partition out: detach, archive, prove, drop; each goes on from what it finds."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from pgvigil.archive import copying, proving
from pgvigil.archive.place import Place, partition_folder, require_room
from pgvigil.archive.preflight import require_copyable
from pgvigil.errors import DatabaseFailed, PgvigilError, PreconditionFailed, StorageFailed
from pgvigil.partitions import detach as detaching
from pgvigil.partitions import drop as dropping
from pgvigil.partitions import ledger
from pgvigil.partitions.catalog import identifier, read_entries
from pgvigil.partitions.envelope import WAITED, bounded, explain_wait
from pgvigil.partitions.facts import Departure, Entry, Outcome, Plan
from pgvigil.partitions.managing import add, check_holds, check_store_clock, done, look, note, tell
from pgvigil.reports import Check, Severity, Verdict, conclude

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from pgvigil.archive.manifest import Manifest, Stored
    from pgvigil.archive.stream import Progress
    from pgvigil.partitions.managing import Managed
    from pgvigil.postgres import Connection

LEAVING = ("leaving", "fenced", "archived")


def detach(managed: Managed, made: Plan, departure: Departure) -> Departure | None:
    """Detach one partition and fence it; returns it with its entry, or None when it is gone."""
    table, _ = look(managed)
    if departure.entry is None:
        _preflight(managed, made, departure)
    entry = announce(managed, made, departure)
    if entry is None:
        return None
    with managed.session() as session:
        now = detaching.standing(session, departure, made.oid)
        if now == "gone":
            _vanished(managed, departure, entry)
            return None
        is_fenced = entry.fence is not None and ledger.read_fence(session, departure.relation) == entry.fence
    if now == "detached" and is_fenced and not _is_altered(managed, made, departure, entry):
        return departure.model_copy(update={"entry": entry, "is_attached": False})
    if now != "detached" and (entry.fence is not None or not departure.is_attached):
        raise PreconditionFailed(f"'{departure.name}' was attached again meanwhile", hint="plan again")
    if entry.fence is not None:
        entry = renew(managed, entry, is_fenced=is_fenced)
    managed.check_lock()
    intent = {"partition": str(departure.name), "method": departure.method}
    with managed.run.step("detach", intent) as noted, managed.session() as session:
        detaching.detach(session, managed.dsn, table, departure, managed.policy)
        noted["id"] = str(_fence(session, managed, departure, entry))
    done(managed, "detach", departure.name.name, departure.bound, detail=departure.method)
    return departure.model_copy(update={"entry": _entry(managed, departure), "is_attached": False})


def _is_altered(managed: Managed, made: Plan, departure: Departure, entry: Entry) -> bool:
    """Tell whether a table that is due to be dropped is defined otherwise than its proven copy says."""
    if departure.drop != "now" or not departure.is_archived:
        return False
    place = Place.of(managed.policy, managed.cluster, managed.database, made.table, entry)
    found = _find_copy(managed, place)
    with managed.session() as session:
        return found is not None and not dropping.is_as_copied(session, entry, found.manifest)


def announce(managed: Managed, made: Plan, departure: Departure) -> Entry | None:
    """Note the departure before it begins; None for a partition that is gone. Idempotent.

    Raises PreconditionFailed for a partition that is not as planned.
    """
    if known := _find_entry(managed, departure):
        return known
    with managed.session() as session:
        ledger.require(session)
        now = detaching.standing(session, departure, made.oid)
    if now == "gone":
        return None
    if now == "detached":
        raise PreconditionFailed(f"'{departure.name}' was detached meanwhile", hint="plan again")
    managed.check_lock()
    id_ = uuid4()
    intent = {"partition": str(departure.name), "oid": departure.relation, "id": str(id_)}
    with managed.run.step("announce", intent), managed.session() as session:
        ledger.begin(session, id_, departure, made.oid)
    return _entry(managed, departure)


def _preflight(managed: Managed, made: Plan, departure: Departure) -> None:
    """Refuse what could not be stored as the policy says, before anything is taken out of the table."""
    check_store_clock(managed)
    own = departure.name
    where = partition_folder(managed.policy, managed.cluster, managed.database, made.table, own)
    require_room(where, (own.schema_, own.name), parquet=managed.policy.parquet is not None)
    with managed.session(patient=True) as session:
        require_copyable(session, departure.relation)
        if managed.policy.parquet is not None:
            copying.preflight(session, departure.relation, managed.policy.parquet)


def _find_entry(managed: Managed, departure: Departure) -> Entry | None:
    with managed.session() as session:
        entries = read_entries(session, departure.parent)
    return next((e for e in entries if e.relation == departure.relation and e.state in LEAVING), None)


def _entry(managed: Managed, departure: Departure) -> Entry:
    found = _find_entry(managed, departure)
    if found is None:
        raise PreconditionFailed(f"the work state of '{departure.name}' is gone", hint="plan again")
    return found


def _vanished(managed: Managed, departure: Departure, entry: Entry) -> None:
    """Forget a table that somebody dropped, and tell whether a proven copy of it exists."""
    with managed.run.step("forget", {"partition": str(departure.name)}), managed.session() as session:
        ledger.end(session, entry.id)
    tell(
        managed,
        "vanished",
        f"'{departure.name}' was dropped by somebody else; "
        + (f"its proven copy is {entry.manifest}" if entry.manifest else "no copy of it was proven"),
        "see the server's log for who dropped it",
        Severity.WARNING if entry.manifest else Severity.ERROR,
    )


def renew(managed: Managed, entry: Entry, *, is_fenced: bool = False) -> Entry:
    """Let a table be fenced and copied anew: its fence was opened, or it was altered behind it."""
    _refence(managed, "fence again", entry, {})
    if is_fenced:
        told = "definition-changed", f"the definition of '{entry.name}' changed since its copy was made"
    else:
        told = "fence-opened", f"the fence around '{entry.name}' was opened since it was raised"
    hint = "see who altered the table, its triggers or its name, or attached it again"
    tell(managed, told[0], f"{told[1]}: it is fenced and copied anew", hint)
    fresh: dict[str, object] = {
        "state": "leaving",
        "fence": None,
        "manifest": None,
        "manifest_sha256": None,
        "leaves": {},
    }
    return entry.model_copy(update=fresh)


def _refence(managed: Managed, step: str, entry: Entry, facts: dict[str, str]) -> None:
    intent = {"partition": str(entry.name), "id": str(entry.id), **facts}
    with managed.run.step(step, intent), managed.session() as session:
        bounded(session, managed.dsn, managed.policy, partial(ledger.refence, session, entry))


def _fence(session: Connection, managed: Managed, departure: Departure, entry: Entry) -> UUID:
    table = identifier(departure.name)
    try:
        return bounded(
            session,
            managed.dsn,
            managed.policy,
            lambda: ledger.raise_fence(session, entry.id, departure.relation, table),
        )
    except DatabaseFailed as error:
        if not error.transient and error.sqlstate != "57014":
            raise
        raise explain_wait(
            session, error, [departure.relation], f"the fence around '{departure.name}'"
        ) from error


def archive(
    managed: Managed, made: Plan, departure: Departure, *, on_progress: Callable[[Progress], None]
) -> copying.Copy:
    """Copy one fenced table to the store; a copy that is committed already is taken as it is."""
    entry = _entry(managed, departure)  # with the leaves that an earlier try has finished since
    if entry.id != _require_entry(departure).id or entry.fence is None:
        raise PreconditionFailed(f"'{departure.name}' is to be fenced anew", hint="plan again")
    place = Place.of(managed.policy, managed.cluster, managed.database, made.table, entry)
    copy = _find_copy(managed, place) or _copy(managed, departure, place, on_progress)
    tell_remains(managed, made, entry)
    return copy


def _copy(
    managed: Managed, departure: Departure, place: Place, on_progress: Callable[[Progress], None]
) -> copying.Copy:
    managed.check_lock()
    began = time.monotonic()
    intent = {"partition": str(departure.name), "to": place.folder, "bytes": departure.size}
    with managed.run.step("archive", intent) as noted, managed.session(patient=True) as session:
        with managed.session(patient=True) as second:
            sessions = copying.Sessions(export=session, digest=second, dsn=managed.dsn)
            finished = partial(_note_leaf, managed, place.entry)
            copy = copying.make(sessions, managed.store, place, managed.run.id, on_progress, finished)
        noted |= {"rows": copy.manifest.digest.rows, "digest": copy.manifest.digest.value}
        noted["objects"] = [leaf.stored.rows.model_dump(mode="json") for leaf in copy.manifest.leaves]
    return replace(copy, seconds=time.monotonic() - began)


def tell_remains(managed: Managed, made: Plan, entry: Entry) -> None:
    """Name objects of a partition that belong to no copy; nothing proves them nobody's, so they stay."""
    where = partition_folder(managed.policy, managed.cluster, managed.database, made.table, entry.name)
    with managed.session() as session:
        own = {each.id for each in read_entries(session, entry.parent)}
    for each in copying.remains(managed.store, where, own):
        tell(
            managed,
            "copy-remains",
            f"{each.folder} has {each.objects} objects of {each.size} bytes and no manifest: a copy of "
            f"'{entry.name}' that was never proven, and that no work state knows",
            "if no clone of this database archives to the same place, delete them; what Object Lock holds, "
            "when its time is over",
        )


def _find_copy(managed: Managed, place: Place) -> copying.Copy | None:
    try:
        return copying.find(managed.store, place)
    except StorageFailed as error:
        if error.context.get("s3_code") == "ManifestAltered":
            _copy_anew(managed, place.entry, place.manifest, [place.manifest])
        raise


def prove(
    managed: Managed, departure: Departure, copy: copying.Copy, *, on_progress: Callable[[Progress], None]
) -> Manifest | None:
    """Read the copy back and compare; then, and only then, commit its manifest. None when refuted.

    A committed copy is read back again before its table is dropped; until then its size is looked at.
    """
    entry = _require_entry(departure)
    if copy.is_committed and departure.drop != "now":
        proving.require(managed.store, copy.place.manifest, copy.sha256)
        if entry.state != "archived":
            with managed.run.step("remember copy", {"manifest": copy.place.manifest}):
                _remember(managed, entry, copy)
        return copy.manifest
    run = managed.run
    proven = _read_back(managed, copy, on_progress)
    run.checks += [check for each in proven for check in _told(departure, copy, each)]
    if conclude([check for each in proven for check in each.checks]) is not Verdict.VERIFIED:
        damaged = [uri for each in proven for uri in each.damaged]
        if copy.is_committed and damaged:
            _copy_anew(managed, entry, copy.place.manifest, damaged)
        else:
            _forget(managed, entry, proven)
        return None
    managed.check_lock()
    with run.step(
        "commit copy", {"partition": str(departure.name), "manifest": copy.place.manifest}
    ) as noted:
        manifest = copy.manifest if copy.is_committed else _commit(managed, departure, copy)
        _remember(managed, entry, copy)
        noted.update(manifest.outline())
    run.facts["manifests"] = (*run.facts.get("manifests", ()), manifest)
    if not copy.is_committed:
        _done_copy(managed, departure, copy, manifest)
    return manifest


def _commit(managed: Managed, departure: Departure, copy: copying.Copy) -> Manifest:
    """Write the manifest, whose hash is on record before; an earlier try may have, and not heard of it."""
    entry = _entry(managed, departure)
    if entry.manifest_sha256:
        ours = _find_copy(managed, replace(copy.place, entry=entry))
        if ours:
            return ours.manifest
    sealed = proving.seal(managed.store, copy)
    with managed.session() as session:
        ledger.sealed(session, entry.id, sealed.sha256)
    return proving.commit(managed.store, sealed)


def _read_back(
    managed: Managed, copy: copying.Copy, on_progress: Callable[[Progress], None]
) -> list[proving.Proven]:
    """Prove the copy by its bytes, and where the policy says so also by loading them."""
    proven = proving.prove(managed.store, copy, managed.run.fleet.s3, on_progress)
    if managed.policy.verify != "reload":
        return proven
    with managed.session(patient=True) as session:
        return [_reloaded(session, managed, copy, each) for each in proven]


def _reloaded(
    session: Connection, managed: Managed, copy: copying.Copy, proven: proving.Proven
) -> proving.Proven:
    if proven.leaf is None or conclude(proven.checks) is not Verdict.VERIFIED:
        return proven
    check = proving.compare_reloaded(session, managed.store, copy, proven.leaf)
    return replace(proven, checks=(*proven.checks, check))


def _told(departure: Departure, copy: copying.Copy, proven: proving.Proven) -> list[Check]:
    """Give the checks their names: the partition's, and in a tree the leaf's."""
    leaf = f"{proven.leaf.name}." if copy.manifest.tree and proven.leaf else ""
    return [check.model_copy(update={"id": f"{departure.name}.{leaf}{check.id}"}) for check in proven.checks]


def _forget(managed: Managed, entry: Entry, proven: list[proving.Proven]) -> None:
    """Let the next run make again what is not as it was sent."""
    bad = [
        each.leaf.relation for each in proven if each.leaf and conclude(each.checks) is not Verdict.VERIFIED
    ]
    with managed.session() as session:
        ledger.forget_leaves(session, entry.id, bad)


def _copy_anew(managed: Managed, entry: Entry, manifest: str, damaged: list[str]) -> None:
    """Let the next run make another copy: the table still stands, and this copy of it is no good any more."""
    _refence(managed, "copy anew", entry, {"damaged": manifest})
    tell(
        managed,
        "copy-damaged",
        f"proven and damaged since: {', '.join(damaged)}; '{entry.name}' stands and is copied anew",
        f"see in the bucket's log who wrote over it, then delete that copy, {manifest} included",
        Severity.ERROR,
    )


def _note_leaf(managed: Managed, entry: Entry, relation: int, stored: Stored) -> None:
    with managed.session() as session:
        ledger.note_leaf(session, entry.id, relation, stored)


def _remember(managed: Managed, entry: Entry, copy: copying.Copy) -> None:
    with managed.session() as session:
        ledger.archived(session, entry.id, copy.place.manifest)


def _done_copy(managed: Managed, departure: Departure, copy: copying.Copy, manifest: Manifest) -> None:
    outcome = Outcome(
        table=managed.policy.table,
        partition=departure.name.name,
        action="archive",
        bound=departure.bound,
        rows=manifest.digest.rows,
        bytes=manifest.size,
        manifest=copy.place.manifest,
        seconds=round(copy.seconds, 3),
        detail=f"digest {manifest.digest.value[-30:]}",
    )
    add(managed, outcome)


def drop(managed: Managed, departure: Departure, made: Plan) -> None:
    """Drop one table whose copy this run proved, if the policy says now; else say what it waits for."""
    entry = _entry(managed, departure)
    if departure.drop != "now":
        _not_dropped(managed, departure, departure.kept)
        return
    if managed.policy.drop != "proven" and _copy_of(entry) not in _planned(made):
        why = "its copy was made anew after the plan: it waits once more, for its time or an approval"
        _not_dropped(managed, departure, why)
        return
    manifest = proving.require(managed.store, entry.manifest, entry.manifest_sha256)
    check_store_clock(managed)
    managed.check_lock()
    intent = {"partition": str(departure.name), "oid": departure.relation, "manifest": entry.manifest}
    with managed.run.step("drop", intent), managed.session() as session:
        try:
            bounded(
                session,
                managed.dsn,
                managed.policy,
                lambda: dropping.drop(session, departure, entry, manifest, partial(check_holds, managed)),
            )
        except DatabaseFailed as error:
            raise _undroppable(session, error, departure) from error
    note(
        managed.run,
        f"{departure.name}.dropped",
        Verdict.VERIFIED,
        "unchanged since its copy was made, under the drop's own lock",
        "fence held, dropped",
    )
    done(managed, "drop", departure.name.name, departure.bound, manifest=entry.manifest or "")


def _undroppable(session: Connection, error: DatabaseFailed, departure: Departure) -> PgvigilError:
    if error.sqlstate == "2BP01":
        return PreconditionFailed(
            f"'{departure.name}' cannot be dropped: {error.message}",
            hint="views, functions or foreign keys depend on it: drop them, or set drop to keep",
        )
    if error.sqlstate in WAITED:
        return explain_wait(session, error, [departure.relation], f"the drop of '{departure.name}'")
    return error


def _planned(made: Plan) -> set[tuple[UUID, str | None]]:
    """Return the copies for which a plan lets tables go: a fence that opened since has led to another one."""
    return {_copy_of(each.entry) for each in made.departures if each.entry and each.drop == "now"}


def _copy_of(entry: Entry) -> tuple[UUID, str | None]:
    return entry.id, entry.manifest_sha256


def _not_dropped(managed: Managed, departure: Departure, why: str) -> None:
    done(managed, "keep", departure.name.name, departure.bound, detail=why)


def _require_entry(departure: Departure) -> Entry:
    if departure.entry is None or departure.entry.fence is None:
        raise PreconditionFailed(f"'{departure.name}' is not fenced", hint="plan again")
    return departure.entry
