"""Where the alarm test plays: a sandbox with a healthy repository, or a scratch copy of a user's own."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pgvigil.alarmtest import proofs
from pgvigil.alarmtest.repository import Repository
from pgvigil.alarmtest.scene import Archived, Scene
from pgvigil.archive.manifest import read_manifest
from pgvigil.errors import ToolFailed, VersionUnsupported
from pgvigil.fleet import load_fleet
from pgvigil.objectstore import connect
from pgvigil.processes import Command, run
from pgvigil.reports import Verdict, headline
from pgvigil.sandbox import Sandbox, down, operate, up
from pgvigil.sandbox.model import STANZA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pgvigil.alarmtest.damages import Damage, Flow
    from pgvigil.wal.server import Server

DATABASE = "shop"
# Nothing of a case may depend on a server that archives elsewhere, nor on what a case before it proved.
STILL = {"heartbeat": False, "second_opinion": False}
_NOISE = "SELECT pg_logical_emit_message(false, 'alarm', string_agg(md5(n::text), ''))"
_KEPT = {"stage": "14 months", "control": "13 months", "damage": "12 months"}  # of the sample's fifteen


@dataclass(frozen=True)
class Stage:
    """A healthy repository of which each case gets a copy, and the fleet file that leads there.

    `configuration` is pgBackRest's, without the place of the repository. `is_users` says whose it is; the
    sandbox keeps the audit log of the cases in both kinds. `moments` are the user's server before and after
    the copying.
    """

    box: Sandbox
    healthy: Repository
    subject: str
    fleet: Mapping[str, Any]
    configuration: str
    is_users: bool = False
    archived: Archived | None = None
    moments: tuple[Server, ...] = ()

    @property
    def cases(self) -> Path:
        """Where a case has its files while it lasts."""
        return self.healthy.root.parent / "case"

    @contextmanager
    def case(self, flow: Flow, damage: Damage | None = None) -> Iterator[Scene]:
        """Give a copy for one case, a control without a damage; whatever it did is gone afterwards."""
        place = self.cases
        place.mkdir()
        place.chmod(0o755)  # whatever the umask: the servers' user reads the copy
        try:
            duplicate(self.healthy.root, place / "repo", "--link")  # so nothing may be written into
            scene = self._scene(place, damage)
            with _environment({"PGVIGIL_FLEET": str(scene.fleet_file)}), _restored(self.archived):
                if flow == "restore_drill" or (damage and damage.in_sandbox):
                    _live(self.box).symlink_to(scene.config)
                yield scene
        finally:
            self._end(place)

    def _end(self, place: Path) -> None:
        if not self.is_users:
            _live(self.box).unlink(missing_ok=True)
            operate.await_archived(self.box)
        shutil.rmtree(place)

    def _scene(self, place: Path, damage: Damage | None) -> Scene:
        config, fleet_file = place / "pgbackrest.conf", place / "fleet.yaml"
        place_of_repository = f"[global]\nrepo1-path={place / 'repo'}\n"
        config.write_text(self.configuration.replace("[global]\n", place_of_repository), encoding="utf-8")
        config.chmod(0o644)
        fleet = copy.deepcopy(dict(self.fleet))
        cluster = fleet["clusters"][self.subject]
        cluster["pgbackrest"]["config"] = str(config)
        fleet["audit"]["reports"] = f"file://{place}/reports"
        if not self.is_users:
            _keep(fleet, _KEPT["damage" if damage else "control"])
        fleet_file.write_text(yaml.safe_dump(fleet), encoding="utf-8")
        return Scene(
            cluster=self.subject,
            repository=replace(self.healthy, root=place / "repo"),
            config=config,
            fleet_file=fleet_file,
            box=None if self.is_users else self.box,
            archived=self.archived,
            moments=self.moments,
        )


def _live(box: Sandbox) -> Path:
    """Where the sandbox's server looks for a second repository to archive into."""
    return box.directory / "live.conf"


def _keep(fleet: dict[str, Any], months: str) -> None:
    (policy,) = fleet["clusters"]["demo"]["databases"][DATABASE]["partitions"]
    policy["keep"] = months


def duplicate(source: Path, target: Path, *how: str) -> None:
    """Copy a directory with owners, modes and times, by `cp -a` and the options of `how`."""
    done = run(Command(argv=("cp", "-a", *how, "--", str(source), str(target))), on_line=lambda _: None)
    if done.exit_code:
        raise ToolFailed(
            f"cp of '{source}' to '{target}' ended with {done.exit_code}: {' / '.join(done.tail[-3:])}",
            hint="look at rights, and at room on that disk",
        )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a block, as after sourcing a sandbox's env."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _restored(archived: Archived | None) -> Iterator[None]:
    """Put the archived partition's objects back after a block."""
    uris = (archived.uri, archived.rows) if archived else ()
    kept = {uri: archived.store.get(uri) for uri in uris if archived}
    try:
        yield
    finally:
        for uri, content in kept.items():
            if archived:
                archived.store.put(uri, content)


@contextmanager
def sandbox_stage(directory: Path | None = None) -> Iterator[Stage]:
    """Build a healthy repository in a sandbox of its own, and remove both after the block.

    In it are two fulls and an incr, WAL before, between and after them, a promotion, and one archived
    partition.
    """
    with own_directory(directory) as place:
        box = up(place / "box")
        try:
            _require_stanza(box)
            with _environment(box.environment):
                yield _build(box)
        finally:
            down(box.directory)


def _require_stanza(box: Sandbox) -> None:
    if not box.archives:
        raise VersionUnsupported(
            f"pgbackrest here does not know the PostgreSQL in '{box.postgres_bin}': no backup, no damage",
            hint="upgrade pgbackrest, or name a cluster that it backs up with --cluster",
        )


@contextmanager
def own_directory(parent: Path | None = None) -> Iterator[Path]:
    """Make a directory that the servers' user can enter, and remove it after the block."""
    place = Path(tempfile.mkdtemp(prefix="pgvigil-alarm-", dir=parent or "/tmp"))  # noqa: S108 - as sandboxes
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _build(box: Sandbox) -> Stage:
    operate.use_directory_repository(box)
    operate.pgbackrest(box, "stanza-create")
    _archive_into_cases(box)
    for kind, is_promoted in (("full", False), ("full", True), ("incr", False)):
        _write(box, 2)
        if is_promoted:
            operate.promote(box)
            _write(box, 2)
        operate.pgbackrest(
            box, f"--type={kind}", "--repo1-retention-full=9", "--log-level-console=off", "backup"
        )
    _write(box, 5)
    operate.await_archived(box)
    fleet = yaml.safe_load(box.fleet_file.read_text(encoding="utf-8"))
    fleet["clusters"]["demo"]["wal"] = STILL
    conf = box.pgbackrest_conf.read_text(encoding="utf-8").splitlines(keepends=True)
    configuration = "".join(line for line in conf if not line.startswith("repo1-path="))
    stage = Stage(box, Repository(box.directory / "repo", STANZA), "demo", fleet, configuration)
    return replace(stage, archived=_archive_a_partition(stage))


def _write(box: Sandbox, segments: int) -> None:
    """Fill segments with some pages of noise each."""
    for _ in range(segments):
        operate.sql(box, f"{_NOISE} FROM generate_series(1, 3000) AS n; SELECT pg_switch_wal()")


def _archive_into_cases(box: Sandbox) -> None:
    """Let the server archive into the case's repository too while one is live, and never into that alone."""
    (row,) = operate.sql(box, "SHOW archive_command")
    whole, live = row["archive_command"], _live(box)
    also = whole.replace(str(box.pgbackrest_conf), str(live))
    operate.configure(box, archive_command=f"{whole} && {{ test ! -e {live} || {also}; }}")


def _archive_a_partition(stage: Stage) -> Archived:
    """Roll once as an operator would, and take what it archived."""
    fleet = copy.deepcopy(dict(stage.fleet))
    _keep(fleet, _KEPT["stage"])
    fleet["audit"]["reports"] = f"file://{stage.box.directory}/reports"
    stage.box.fleet_file.write_text(yaml.safe_dump(fleet), encoding="utf-8")
    with _environment({"PGVIGIL_FLEET": str(stage.box.fleet_file)}):
        scene = Scene(stage.subject, stage.healthy, stage.box.pgbackrest_conf, stage.box.fleet_file)
        report = proofs.roll(scene)
    uris = [outcome.manifest for outcome in report.outcomes if outcome.action == "archive"]
    if report.verdict is not Verdict.VERIFIED or not uris:
        raise ToolFailed(
            f"the sandbox archived no partition: {headline(report)}",
            hint="'pgvigil run roll-partitions demo/shop' in a sandbox shows why",
        )
    store = connect(load_fleet(stage.box.fleet_file).s3)
    return Archived(store, uris[0], read_manifest(store, uris[0]))
