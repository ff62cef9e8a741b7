"""The directory of one drill: claimed with an owner file before anything else, refused where it could hurt.

A directory is ours when it has an owner file, and only then is anything in it ended or removed. It
appears complete (written beside, then renamed) and vanishes the other way round, so that a run that is
killed anywhere leaves something that `reap` understands.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import secrets
import shutil
import socket
import tempfile
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from pydantic import Field

from pgvigil import liveness
from pgvigil.drill import copyprocesses, refusals
from pgvigil.drill.place import OWNER, SOCKET, Owner, Place, read_owner
from pgvigil.errors import Busy, PgvigilError, PreconditionFailed
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.drill.place import Request

CLAIM_PATIENCE = 10.0  # seconds to wait for another claim, which takes milliseconds
_POLL = 0.05
LONGEST_SOCKET = 107  # bytes of sockaddr_un.sun_path without its closing zero
_NAME = re.compile(r"^(?P<stanza>.+)-[0-9a-f]{8}$")
_DRAFT = re.compile(r"^\..+-[0-9a-f]{8}\.draft$")


class Reaped(Frozen):
    """A directory that was removed, and why."""

    directory: Path
    stanza: str
    run_id: UUID | None = None
    reason: Literal["its run is dead", "its deadline has passed", "it was never finished"]
    processes: int = Field(default=0, description="that still ran and were ended")


class Left(Frozen):
    """A directory that was left alone, and why."""

    directory: Path
    reason: str
    owner: Owner | None = None


class Reaping(Frozen):
    """What a reaper did."""

    reaped: tuple[Reaped, ...] = ()
    left: tuple[Left, ...] = ()


def claim(request: Request, now: datetime) -> tuple[Place, Reaping]:
    """Remove what dead drills of the stanza left, then make a directory of our own and return it.

    Nothing is written before every refusal was considered. Raises PreconditionFailed, whose
    `context["refusal"]` names the kind, and Busy when a drill of the stanza is alive.
    """
    refusals.refuse(request)
    _make_scratch(request.scratch)
    refusals.check_access(request)
    reaping = _reap(request.scratch, now, request.stanza)
    _check_alone(request, reaping)
    refusals.check_room(request)
    return _create(request), reaping


def keep(place: Place, until: datetime) -> Owner:
    """Record that the copy outlives its run until a deadline, after which any reaper removes it."""
    owner = read_owner(place.directory)
    if owner is None:
        raise PreconditionFailed(f"'{place.directory}' has no {OWNER}", hint="it is not a drill's: leave it")
    kept = owner.model_copy(update={"keep_until": until})
    _write_owner(place.directory, kept)
    return kept


def remove(place: Place) -> int:
    """End every process of a copy and remove all of it; returns how many still ran. Idempotent.

    Raises PreconditionFailed for what the file system does not let go, and Busy.
    """
    if not place.directory.exists():
        return 0
    try:
        with _locked(place.directory):
            ended = copyprocesses.end(place.directory, place.data)
            copyprocesses.release_memory(place.data)
            _remove_sockets(place)
            _remove_tree(place.directory)
    except OSError as error:
        raise refusals.refused(
            "access",
            f"'{place.directory}' could not be removed: {error}",
            "see what holds it; the next drill, or reap-drills, removes what is left",
        ) from error
    return ended


def reap(scratch: Path, now: datetime) -> Reaping:
    """Remove the copies of dead runs and those past their deadline; living and kept ones stay.

    Idempotent, and can itself be killed anywhere: the next reaper goes on.
    """
    return _reap(scratch, now, None)


def _make_scratch(scratch: Path) -> None:
    if scratch.exists():
        return
    try:
        _make_open(scratch)
    except OSError as error:
        raise refusals.refused(
            "access", f"cannot create scratch '{scratch}': {error.strerror}", "create it for pgvigil's user"
        ) from error


def _make_open(directory: Path) -> None:
    """Create a directory that others may enter, whatever the umask says."""
    directory.mkdir()
    directory.chmod(0o755)


def _check_alone(request: Request, reaping: Reaping) -> None:
    for left in reaping.left:
        if left.owner and left.owner.stanza == request.stanza and left.owner.keep_until is None:
            raise Busy(
                f"a drill of stanza '{request.stanza}' has '{left.directory}': {left.owner}; {left.reason}",
                hint="wait for it to end, or end it",
            )


# --- making -----------------------------------------------------------------------------------------


def _create(request: Request) -> Place:
    place = Place(directory=request.directory, sockets=_choose_sockets(request), user=request.user)
    owner = Owner(
        run_id=request.run_id,
        stanza=request.stanza,
        system_id=request.system_id,
        sockets=place.sockets,
        user=request.user,
    )
    with _locked(request.scratch, CLAIM_PATIENCE):
        # Somebody may have claimed since we looked.
        _check_alone(request, _look(request.scratch, datetime.now(UTC), request.stanza)[1])
        refusals.check_vacant(request)
        draft = _draft(request.directory)
        _make_open(draft)
        _write_owner(draft, owner)
        draft.rename(request.directory)
        _sync(request.scratch)
    try:
        _furnish(place)
    except OSError as error:
        remove(place)
        raise refusals.refused(
            "access", f"cannot furnish '{place.directory}': {error}", "see owner, mode and free space there"
        ) from error
    return place


def _draft(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.draft")


def _choose_sockets(request: Request) -> Path:
    """Choose a directory for the socket: a short one elsewhere, recorded, if scratch's cannot be spelled.

    It is too long for the kernel, or has a comma, at which every libpq parts one host from the next.
    """
    inside = request.directory / "socket"
    if len(os.fsencode(inside / SOCKET)) <= LONGEST_SOCKET and "," not in str(inside):
        return inside
    return Path(tempfile.gettempdir()) / f"pgvigil-{secrets.token_hex(8)}"


def _furnish(place: Place) -> None:
    for path in (place.conf, place.log):
        _make_open(path)
    for path in (place.data, place.tablespaces, place.sockets, place.tools):
        path.mkdir(mode=0o700)
    for name in ("lock", "log", "spool"):
        (place.tools / name).mkdir(mode=0o700)
    if place.user:
        given = (place.data, place.tablespaces, place.sockets, place.tools, *place.tools.iterdir())
        for path in given:
            shutil.chown(path, place.user)


def _write_owner(directory: Path, owner: Owner) -> None:
    draft = directory / f"{OWNER}.draft"
    with draft.open("w", encoding="utf-8") as file:
        file.write(owner.model_dump_json(indent=2))
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    draft.replace(directory / OWNER)
    _sync(directory)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(directory: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a directory against every other claim or removal; the kernel frees it when its holder dies."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(handle, directory, time.monotonic() + patience)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, directory: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise Busy(
                    f"another run works on '{directory}' at this moment", hint="try again when it is done"
                ) from error
        time.sleep(_POLL)


# --- reaping ----------------------------------------------------------------------------------------


def _reap(scratch: Path, now: datetime, stanza: str | None) -> Reaping:
    dead, left = _look(scratch, now, stanza)
    finished = _finish_drafts(scratch)
    reaped, missed = list(finished.reaped), [*finished.left, *left.left]
    for item, owner in dead:
        try:
            ended = remove(owner.place(item.directory))
        except PgvigilError as error:
            missed.append(Left(directory=item.directory, reason=error.message))
        else:
            reaped.append(item.model_copy(update={"processes": ended}))
    return Reaping(reaped=tuple(reaped), left=tuple(missed))


def _look(scratch: Path, now: datetime, stanza: str | None) -> tuple[list[tuple[Reaped, Owner]], Reaping]:
    """Part the directories into those to remove and those to leave."""
    dead, left = [], []
    for entry in refusals.entries(scratch):
        owner = read_owner(entry)
        if not _NAME.match(entry.name) or (owner and stanza not in {None, owner.stanza}):
            continue
        if owner is None:
            left.append(Left(directory=entry, reason=f"it has no {OWNER}, so it is not a drill's"))
        elif reason := _fate(owner, now):
            item = Reaped(directory=entry, stanza=owner.stanza, run_id=owner.run_id, reason=reason)
            dead.append((item, owner))
        else:
            left.append(Left(directory=entry, reason=_life(owner), owner=owner))
    return dead, Reaping(left=tuple(left))


def _fate(owner: Owner, now: datetime) -> Literal["its run is dead", "its deadline has passed"] | None:
    """Say why a directory is to go; a run that cannot be seen from here counts as living."""
    if owner.keep_until is not None:
        return "its deadline has passed" if owner.keep_until <= now else None
    here = liveness.pid_space()
    if not here or owner.pid_space != here:
        rebooted = owner.host == socket.gethostname() and _boot(owner.pid_space) != _boot(here)
        return "its run is dead" if rebooted else None
    return "its run is dead" if liveness.process_is_gone(owner.pid, owner.process_started) else None


def _boot(pid_space: str) -> str:
    return pid_space.partition("/")[0]


def _life(owner: Owner) -> str:
    if owner.keep_until:
        return f"it is kept until {owner.keep_until:%F %T} UTC"
    if owner.pid_space == liveness.pid_space():
        return "its run is alive"
    return f"its run was on {owner.host}, whose processes cannot be seen from here"


def _finish_drafts(scratch: Path) -> Reaping:
    """Remove what was killed while it appeared or vanished: nothing but an owner file is in it."""
    drafts = [entry for entry in refusals.entries(scratch) if _DRAFT.match(entry.name)]
    if not drafts:
        return Reaping()
    reaped, left = [], []
    with suppress(Busy), _locked(scratch):  # whoever holds it may be making one
        for entry in drafts:
            name = entry.name.removeprefix(".").removesuffix(".draft")
            stanza = name.rpartition("-")[0]
            try:
                _remove_draft(entry)
            except OSError as error:
                left.append(Left(directory=entry, reason=f"it could not be removed: {error}"))
            else:
                reaped.append(Reaped(directory=scratch / name, stanza=stanza, reason="it was never finished"))
    return Reaping(reaped=tuple(reaped), left=tuple(left))


def _remove_sockets(place: Place) -> None:
    """Remove a socket directory outside of ours, if it is what was recorded: no link, and of our users."""
    if place.sockets.is_relative_to(place.directory):
        return
    with suppress(FileNotFoundError):
        stat = place.sockets.lstat()
        owners = {os.geteuid(), _uid(place.user)}
        if not place.sockets.is_symlink() and stat.st_uid in owners:
            shutil.rmtree(place.sockets)


def _uid(user: str | None) -> int:
    return pwd.getpwnam(user).pw_uid if user else os.geteuid()


def _remove_tree(directory: Path) -> None:
    """Remove everything, the owner file last; links are removed, never followed."""
    for entry in directory.iterdir():
        if entry.name == OWNER:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    draft = _draft(directory)
    directory.rename(draft)
    _remove_draft(draft)


def _remove_draft(draft: Path) -> None:
    for name in (f"{OWNER}.draft", OWNER):
        (draft / name).unlink(missing_ok=True)
    try:
        draft.rmdir()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
