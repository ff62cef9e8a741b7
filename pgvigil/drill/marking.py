"""The source's part of a drill: every database marked and hashed, the target fixed, its WAL stored."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.drill import untouched
from pgvigil.drill.facts import Target
from pgvigil.drill.judgement import passed, unknown
from pgvigil.drill.point import ask
from pgvigil.drill.source import MarkedDatabase, mark_databases, read_cluster
from pgvigil.drill.state import OWED, Drill, Marked, Plan
from pgvigil.drill.witness import beat, end_segment, fix_target
from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.reports import Finding, Severity
from pgvigil.runs import finding_of
from pgvigil.sql import query
from pgvigil.wal.heartbeat import Beat, Look, await_arrival, is_hopeless
from pgvigil.wal.names import parse_lsn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgvigil.drill.facts import Heartbeat, Mark
    from pgvigil.drill.source import Cluster
    from pgvigil.postgres import Connection

    Hear = Callable[[Any], None]

_TOGETHER = 16  # databases that are read before a mark which they may share
_LOOKS = 5  # for databases that appeared meanwhile: where they never end, the copy will have one unmarked


def mark(drill: Drill, plan: Plan, *, on_progress: Hear) -> Marked:
    """Mark every database of the source and fix the target; of a point of the past nothing is known.

    Waits until the repository holds the target's WAL; raises PreconditionFailed when it does not come.
    """
    listing = untouched.read(drill.pgbackrest, plan.choice.repo)
    if not plan.choice.proves_equality:
        return _past(drill, plan, listing)
    run = drill.run
    _tell_unreadable(drill, plan.cluster)
    with run.step("mark source", {"databases": list(plan.cluster.databases)}) as noted:
        with postgres.connect(drill.settings.dsn, run.name) as session:
            marked: list[MarkedDatabase] = []
            for found in _databases(session, plan.cluster):
                left = tuple(found)
                marked = [each for each in marked if each.name not in found]  # of others, which are gone
                while left:
                    present = beat(session, f"pgvigil {run.id} present")
                    newest = _mark(drill, plan, left[-_TOGETHER:], on_progress)
                    marked += [replace(each, oid=found[each.name]) for each in newest]
                    left = _without(left[:-1], newest)
            target = fix_target(session, plan.choice.target_kind, _last(newest), present, f"pgvigil {run.id}")
            timeline = ask(session, query("drill_source", "timeline"))["timeline"]
            target = target.model_copy(update={"timeline": timeline})
            segment = end_segment(session)
        noted |= {"target": target.value, "lsn": target.lsn, "segment": segment}
    run.facts["target"] = target
    arrival = _await(drill, plan, segment, target.absent or target.present or present)
    return Marked(target, tuple(marked), listing, datetime.now(UTC), arrival)


def _databases(session: Connection, cluster: Cluster) -> Iterator[dict[str, int]]:
    """Give the databases that are known, by name, and then those that appeared while these were marked.

    One that was dropped and made again has its name from the other, and is new.
    """
    known = {name: cluster.oids[name] for name in cluster.databases}
    yield known
    for _ in range(_LOOKS):
        there = read_cluster(session)
        new = {name: there.oids[name] for name in there.databases if known.get(name) != there.oids[name]}
        if not new:
            return
        yield new
        known |= new


def _tell_unreadable(drill: Drill, cluster: Cluster) -> None:
    """Tell of databases whose rows nobody can compare, because nobody can enter them."""
    for name in cluster.closed:
        why = f"database '{name}' lets nobody in, so what it holds cannot be compared"
        hint = "ALTER DATABASE … ALLOW_CONNECTIONS true for the time of the drill, or drop it"
        drill.run.checks.append(unknown(f"rows {name}", OWED["rows"], why))
        drill.run.findings.append(
            Finding(code="database-closed", severity=Severity.WARNING, message=why, hint=hint, subject=name)
        )
    for name in cluster.half_dropped:
        why = f"a DROP DATABASE of '{name}' was broken off: nothing of it can be used; drop it again"
        drill.run.checks.append(unknown(f"rows {name}", OWED["rows"], why, required=False))


def _mark(drill: Drill, plan: Plan, names: tuple[str, ...], on_progress: Hear) -> tuple[MarkedDatabase, ...]:
    """Mark the last database, and those that share its mark; that it cannot be is told."""
    drill.lock.check()
    name = names[-1]
    try:
        marked = mark_databases(
            drill.settings.dsn,
            names,
            drill.policy,
            drill.run.name,
            seed=plan.choice.seed,
            on_progress=on_progress,
        )
    except (PreconditionFailed, DatabaseFailed) as error:
        drill.run.findings.append(finding_of(error, name))
        drill.run.checks.append(unknown(f"rows {name}", OWED["rows"], error.message))
        return ()
    for each in marked:
        drill.note("hash source", each.content.seconds, each.content.bytes_read)
    return marked


def _without(names: tuple[str, ...], marked: Sequence[MarkedDatabase]) -> tuple[str, ...]:
    done = {each.name for each in marked}
    return tuple(name for name in names if name not in done)


def _last(marked: Sequence[MarkedDatabase]) -> Mark | None:
    """Return the mark that comes last in WAL."""
    return max((each.content.mark for each in marked), key=lambda mark: parse_lsn(mark.lsn), default=None)


def _await(drill: Drill, plan: Plan, segment: str, last: Heartbeat) -> float:
    """Wait until the chosen repository holds the segment; return the seconds from the last commit on."""
    repo, dsn, name = plan.choice.repo, drill.settings.dsn, drill.run.name
    path = f"archive/{drill.stanza}/{plan.archive_id}/{segment[:16]}"

    def files(wanted: str) -> list[str]:
        return [file for file in drill.pgbackrest.ls(repo, path) if file.startswith(wanted)]

    # what the files hold is proven by the restore that reads them
    look = {repo: Look(files, carries=lambda _: True)}
    waited = await_arrival(
        Beat(segment=segment, committed_at=last.committed_at),
        look,
        lambda: is_hopeless(dsn, name, segment),
        drill.policy.archive_wait,
    )
    if repo not in waited.latency:
        raise PreconditionFailed(
            f"the target's WAL segment {segment} is not in repository {repo} after {waited.waited:.0f} s",
            hint="see why archiving is late: verify-wal-archive tells; or raise drill.archive_wait",
        )
    return waited.latency[repo]


def _past(drill: Drill, plan: Plan, listing: untouched.Listing) -> Marked:
    """Take a point of the past as the target: it can be proven that it is reached, not what is there."""
    kind, value = plan.choice.target_kind, plan.choice.target_value or ""
    stop = plan.backup.lsn.stop if plan.backup.lsn else "0/0"
    is_further = kind == "lsn" and parse_lsn(value) > parse_lsn(stop)
    target = Target(kind=kind, value=value, lsn=value if is_further else stop)
    drill.run.facts["target"] = target
    for name in ("rows", "catalogue", "sequences", "witnesses"):
        why = "a point of the past was asked for: nobody knows what it must hold"
        drill.run.checks.append(unknown(name, OWED[name], why, required=False))
    drill.run.checks.append(passed("asked", "a point of the past", f"{kind} {value}"))
    return Marked(target, (), listing, datetime.now(UTC))
