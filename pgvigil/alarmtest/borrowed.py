"""A stage on a scratch copy of a user's own repository: the copy is damaged, the original only read."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pgvigil.alarmtest.repository import Repository
from pgvigil.alarmtest.stage import STILL, Stage, duplicate, own_directory
from pgvigil.backup.survey import posix_repositories, read_options
from pgvigil.errors import ConfigError, PreconditionFailed
from pgvigil.lock import hold_stanza
from pgvigil.sandbox import Sandbox, down, up
from pgvigil.wal.server import read_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pgvigil.fleet import ClusterSettings, Fleet

APPLICATION = "pgvigil alarm-test"
PARTS = ("archive", "backup")


@contextmanager
def borrowed_stage(fleet: Fleet, cluster: str, scratch: Path | None = None) -> Iterator[Stage]:
    """Copy a cluster's repository to scratch, and remove copy and all after the block.

    `scratch` is a directory with room for the stanza, without one the policy's for drills. While the copy
    is taken the stanza is held, so that no backup of ours changes it. The audit log of the cases is in a
    sandbox, and never the user's. Raises ConfigError and PreconditionFailed where it cannot be copied.
    """
    settings = fleet.cluster(cluster)
    source = _source(settings)
    with own_directory(_scratch(settings, scratch)) as place:
        _require_apart(source.root, place)
        _require_room(source, place)
        with _sandbox() as box:
            moments = _take(settings, source, place / "repo")
            yield Stage(
                box=box,
                healthy=Repository(place / "repo", source.stanza),
                subject=cluster,
                fleet=_fleet(settings, cluster, box),
                configuration=f"[global]\nlog-level-console=warn\nlog-level-file=off\n\n[{source.stanza}]\n",
                is_users=True,
                moments=moments,
            )


@contextmanager
def _sandbox() -> Iterator[Sandbox]:
    with own_directory() as place:
        box = up(place / "box", empty=True)
        try:
            yield box
        finally:
            down(box.directory)


def _source(settings: ClusterSettings) -> Repository:
    """Find the first repository of the stanza that is a directory here; raises ConfigError without one."""
    options = read_options(settings.pgbackrest)
    overriding = sorted(name for name in os.environ if name.startswith("PGBACKREST_REPO"))
    if overriding:
        raise ConfigError(
            f"{overriding[0]} is set and would lead pgbackrest away from the copy",
            hint="unset it for this command",
        )
    found = posix_repositories(options)
    for repo, root in sorted(found.items()):
        if options.get(f"repo{repo}-cipher-type", "none") == "none":
            return Repository(root, settings.pgbackrest.stanza)
    raise ConfigError(
        f"stanza '{settings.pgbackrest.stanza}' has no repository that is an unencrypted directory here",
        hint="without --cluster the alarm test plays in a sandbox",
    )


def _scratch(settings: ClusterSettings, scratch: Path | None) -> Path:
    place = scratch or settings.drill.scratch
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(
            f"'{place}' is no directory that can be written to", hint="name another with --scratch"
        )
    return place


def _require_apart(root: Path, place: Path) -> None:
    ours, theirs = place.resolve(), root.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise PreconditionFailed(
            f"'{place}' lies in the repository '{root}', expected a place apart from it",
            hint="name another directory with --scratch",
        )


def _require_room(source: Repository, place: Path) -> None:
    """Raise PreconditionFailed unless the disk keeps a tenth free beside the copy."""
    needed = sum(
        path.lstat().st_size
        for part in PARTS
        for path in (source.root / part / source.stanza).rglob("*")
        if path.is_file()
    )
    disk = shutil.disk_usage(place)
    if disk.free < needed + disk.total // 10:
        raise PreconditionFailed(
            f"'{place}' has {disk.free} bytes free; the copy takes {needed}, and a tenth of the disk "
            f"of {disk.total} stays free",
            hint="name a directory on another disk with --scratch",
        )


def _take(settings: ClusterSettings, source: Repository, target: Path) -> tuple[Any, Any]:
    """Copy the stanza, and return the server as it was before and after."""
    dsn, stanza = settings.dsn, source.stanza
    with hold_stanza(dsn, stanza, APPLICATION, settings.backup.wait):
        before = read_server(dsn, APPLICATION)
        for part in PARTS:
            folder = (source.root / part / stanza).resolve()
            (target / part).mkdir(parents=True)
            duplicate(folder, target / part / stanza, "--reflink=auto")
        after = read_server(dsn, APPLICATION)
    for path in (target, *(target / part for part in PARTS)):
        path.chmod(0o755)
    _require_own(source, target)
    return before, after


def _require_own(source: Repository, target: Path) -> None:
    """Raise PreconditionFailed where anything of the copy is the original's: a link out, a shared file."""
    for part in PARTS:
        copied, original = target / part / source.stanza, source.root / part / source.stanza
        for path in copied.rglob("*"):
            is_out = path.is_symlink() and not path.resolve().is_relative_to(copied)
            there = original / path.relative_to(copied)
            if is_out or (path.is_file() and there.exists() and path.samefile(there)):
                raise PreconditionFailed(
                    f"'{path.relative_to(target)}' of the copy would be the original's",
                    hint="the repository has links that lead out of it: it cannot be tried this way",
                )


def _fleet(settings: ClusterSettings, cluster: str, box: Sandbox) -> dict[str, Any]:
    """Give the user's words for the cluster, with an audit log of the sandbox's."""
    own = settings.model_dump(mode="json", exclude_unset=True, exclude={"databases", "drill"})
    own["wal"] = own.get("wal", {}) | STILL
    audit = {"dsn": box.ops_admin_dsn, "spool": str(box.directory / "spool")}
    return {"audit": audit, "clusters": {cluster: own}}
