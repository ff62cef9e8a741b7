"""The flows' own proofs as the alarm test runs them: without Prefect, on a scene, to a report.

They are the steps of flows/ in the same order. Of nightly_backup it is the proof, of the newest backup that
is there: what it takes itself is nothing that could have been damaged before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pgvigil.alarmtest.scene import Archived
from pgvigil.backup import prove as backup_proof
from pgvigil.backup.facts import BackupReport, Line
from pgvigil.backup.survey import survey
from pgvigil.drill import archived, finish, marking, prepare, proving
from pgvigil.drill.choose import Wanted
from pgvigil.drill.report import DrillReport
from pgvigil.errors import PreconditionFailed
from pgvigil.partitions import leaving, returning
from pgvigil.partitions import operation as partitions
from pgvigil.partitions.facts import RestoreReport, RollReport
from pgvigil.partitions.managing import hold_table, tables
from pgvigil.pgbackrest import PgBackRest
from pgvigil.runs import conduct
from pgvigil.wal import operation as wal
from pgvigil.wal.archive import Archive
from pgvigil.wal.facts import WalReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgvigil.alarmtest.damages import Flow
    from pgvigil.alarmtest.scene import Scene
    from pgvigil.drill.copy import Copy
    from pgvigil.drill.state import Drill, Marked, Plan
    from pgvigil.reports import Report
    from pgvigil.runs import Run
    from pgvigil.wal.server import Server

DATABASE = "shop"
REPO = 1  # a copy is the only repository of its configuration


def nothing(_: object) -> None:
    """Hear it and do nothing."""


def run(flow: Flow, scene: Scene, strike: Callable[[Scene], None]) -> Report:
    """Do the damage and the flow's proof, and return its report; `strike` is called once.

    A roll is struck between the copying and the reading back; every other flow finds the damage there.
    """
    if flow == "roll_partitions":
        return roll(scene, strike)
    strike(scene)
    return _PROOFS[flow](scene)


def prove_archive(scene: Scene) -> WalReport:
    """Do what flows/verify_wal_archive.py does."""

    def steps(run: Run) -> None:
        archive = _archive(run, scene)
        world = wal.look(archive)
        mark = wal.beat(archive, world)
        for repo in world.repos:
            wal.prove(archive, repo, mark, on_progress=nothing)
        wal.show(archive)

    return conduct(WalReport, "verify_wal_archive", scene.cluster, steps)


def _archive(run: Run, scene: Scene) -> Archive:
    found = wal.open_archive(run)
    if not scene.moments:
        return found
    before, after = scene.moments
    # `look` asks first, then each listing is taken between two answers.
    moments = (moment for moment in (before, *[before, after] * 100))
    return Copied(found.run, found.settings, found.pgbackrest, moments)


@dataclass(frozen=True)
class Copied(Archive):
    """An archive as it was copied, while the server went on: the server is what it was around the copying."""

    moments: Iterator[Server]

    def server(self) -> Server:
        """Return the next of the remembered moments."""
        return next(self.moments)


def prove_backup(scene: Scene) -> BackupReport:
    """Judge the newest backup as flows/nightly_backup.py judges the one that it took."""

    def steps(run: Run) -> None:
        settings = run.fleet.cluster(scene.cluster)
        pgbackrest = PgBackRest(settings.pgbackrest)
        world = survey(settings, pgbackrest, run.name)
        backups = world.stanza.backups(REPO)
        if not backups:
            raise PreconditionFailed("the repository lists no backup", hint="take one first")
        line = Line(repo=REPO, type=backups[-1].type, reason="the newest there is")
        proven = backup_proof.prove(pgbackrest, world, line, backups[-1], 0.0, "")
        run.checks += proven.checks
        run.findings += proven.findings
        run.facts["backups"] = (proven.facts,)

    return conduct(BackupReport, "nightly_backup", scene.cluster, steps)


def drill(scene: Scene) -> DrillReport:
    """Do what flows/restore_drill.py does, with the newest set."""

    def steps(run: Run) -> None:
        wanted = Wanted(recovery_target="name", backup_set="latest")
        with prepare.hold(run, wanted) as drill:
            plan = prepare.plan(drill)
            with prepare.claim(drill, plan) as place:
                marked = marking.mark(drill, plan, on_progress=nothing)
                copy = proving.restore(drill, plan, place, on_line=nothing, on_progress=nothing)
                if copy:
                    _prove_copy(drill, plan, marked, copy)
                finish.check_untouched(drill, plan, marked)
                finish.measure(drill, plan)

    return conduct(DrillReport, "restore_drill", scene.cluster, steps)


def _prove_copy(drill: Drill, plan: Plan, marked: Marked, copy: Copy) -> None:
    for halt in proving.halts(marked):
        with proving.recover(drill, plan, marked, copy, halt, on_progress=nothing) as recovered:
            if not recovered.is_there:
                return
            for database in halt.databases:
                proving.compare_database(drill, copy, database, on_progress=nothing)
            proving.compare_cluster(drill, copy, halt)
            if halt.is_last:
                proving.promote(drill, copy)
                files = proving.examine(drill, copy)
                archived.prove(drill, copy, on_progress=nothing)
    proving.scan(drill, copy, files)


def bring_back(scene: Scene) -> RestoreReport:
    """Do what flows/restore_partition.py does, as a drill that leaves nothing."""

    def steps(run: Run) -> None:
        found = returning.find(run, scene.partition.uri)
        with hold_table(found.managed):
            returning.plan(found, attach=False, keep=False)
            returning.rebuild(found, keep=False, on_progress=nothing)

    return conduct(RestoreReport, "restore_partition", f"{scene.cluster}/{DATABASE}", steps)


def roll(scene: Scene, strike: Callable[[Scene], None] = nothing) -> RollReport:
    """Do what flows/roll_partitions.py does with old partitions, struck before each copy is read back."""

    def steps(run: Run) -> None:
        for managed in tables(run, None):
            with hold_table(managed) as held:
                made = partitions.plan(held)
                partitions.finish(held, made)
                partitions.release(held, made)
                for creation in made.creations:
                    partitions.create(held, creation)
                for departure in made.departures:
                    detached = leaving.detach(held, made, departure)
                    if detached is None:
                        continue
                    copy = leaving.archive(held, made, detached, on_progress=nothing)
                    strike(replace(scene, archived=Archived(held.store, copy.place.manifest, copy.manifest)))
                    if leaving.prove(held, detached, copy, on_progress=nothing):
                        leaving.drop(held, detached, made)
                partitions.conclude_table(held, made)

    return conduct(RollReport, "roll_partitions", f"{scene.cluster}/{DATABASE}", steps)


_PROOFS: dict[Flow, Callable[[Scene], Report]] = {
    "verify_wal_archive": prove_archive,
    "nightly_backup": prove_backup,
    "restore_drill": drill,
    "restore_partition": bring_back,
}
