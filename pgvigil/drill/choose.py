"""Decide what a drill restores: repository, backup set and target kind, by turns; pure."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from pgvigil.drill.facts import SetKind, TargetKind
from pgvigil.errors import ConfigError, PreconditionFailed
from pgvigil.pgbackrest.info import STANZA_OK
from pgvigil.policies.wal import WalPolicy
from pgvigil.reports import Frozen
from pgvigil.wal.names import lsn_text, parse_lsn, segment_number, segment_timeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.pgbackrest import Backup, StanzaInfo
    from pgvigil.position import Position

Option = TypeVar("Option", bound=int | str)

TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)
SETS: tuple[SetKind, ...] = get_args(SetKind)

# Failed drills in a row after which another goes first once. With one patience for all, what is sound
# would always be tried together with what is broken.
_PATIENCE = {"set_kind": 1, "target_kind": 2, "repo": 3}

_XID = re.compile(r"[0-9]{1,20}")
_LSN = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")
_HINT = "auto, default, time, lsn, xid, name, or a point: time:2026-11-22T03:00:00+00:00, lsn:0/3000000, "
_HINT += "xid:1234, name:before-release"


class Wanted(Frozen):
    """What the operator asks for; everything that is not said takes its turn."""

    recovery_target: str = "auto"
    repo: int | None = None
    backup_set: str | None = None


class Source(Frozen):
    """What the choice needs to know of the source, and what its WAL archive must hold."""

    system_id: int
    timeline: int
    lsn: str
    segment_size: int
    now: datetime
    policy: WalPolicy = WalPolicy()


def source_of(server: Position, policy: WalPolicy) -> Source:
    """Take what the choice needs off the server's own facts and the WAL policy."""
    return Source(
        system_id=server.system_id,
        timeline=server.timeline,
        lsn=server.lsn or "0/0",
        segment_size=server.segment_size,
        now=server.now,
        policy=policy,
    )


class Tried(Frozen):
    """What an earlier drill restored, and whether that proved it."""

    repo: int
    set_kind: SetKind
    target_kind: TargetKind
    at: datetime
    proven: bool


class Candidate(Frozen):
    """A backup that was considered; `refused` says why it was passed over, empty if it was not."""

    repo: int
    label: str
    refused: str = ""


class Choice(Frozen):
    """What is restored, to which kind of target, and why.

    `target_value` None: the drill makes the point itself and compares all content there. A value is a
    point of the past: the drill proves that it can be reached, but nobody knows what it must hold.
    """

    repo: int
    label: str
    set_kind: SetKind
    target_kind: TargetKind
    target_value: str | None = None
    seed: int
    reason: str
    candidates: tuple[Candidate, ...] = ()

    @property
    def proves_equality(self) -> bool:
        """Whether the content at the target can be known."""
        return self.target_value is None

    @property
    def target(self) -> str:
        """The target as people write it."""
        return self.target_kind if self.target_value is None else f"{self.target_kind} {self.target_value}"


class _Point(Frozen):
    """A target as it was asked for: nothing, a kind, or a kind with a value."""

    kind: TargetKind | None = None
    value: str | None = None
    at: datetime | None = None
    lsn: int | None = None


def choose(info: StanzaInfo, source: Source, tried: Sequence[Tried], wanted: Wanted, seed: int) -> Choice:
    """Choose what this drill restores; the same arguments give the same choice.

    What the operator did not ask for takes turns: the least recently proven comes first, in the chosen
    repository and then anywhere, so that so many drills as there are repositories and kinds prove every
    kind in every repository. What failed lets another go first once: the set at once, the kind after two
    drills in a row, the repository after three; so whichever of them is broken, the others are proven.
    Ties are drawn by the seed. Raises ConfigError for what cannot be asked for, PreconditionFailed when
    no backup can be restored.
    """
    point = read_target(wanted.recovery_target, source)
    considered = list(_consider(info, source, wanted, point))
    usable = [(candidate, backup) for candidate, backup in considered if not candidate.refused]
    candidates = tuple(candidate for candidate, _ in considered)
    if not usable:
        raise _nothing(info, wanted, candidates)
    turns = _Turns(tried, seed)
    repo = turns.next("repo", sorted({backup.repo for _, backup in usable}))
    backups = sorted((b for _, b in usable if b.repo == repo), key=lambda backup: backup.timestamp.stop)
    set_kind, backup = _pick_set(info, backups, turns, wanted, point)
    target_kind = point.kind or turns.next("target_kind", TARGETS, repo)
    return Choice(
        repo=repo,
        label=backup.label,
        set_kind=set_kind,
        target_kind=target_kind,
        target_value=point.value,
        seed=seed,
        reason=_reason(wanted, point, set_kind, len(backups)),
        candidates=candidates,
    )


# --- what was asked for -------------------------------------------------------------------------------


def read_target(text: str, source: Source) -> _Point:
    """Read `recovery_target`; raises ConfigError for a naive, future or unreadable one."""
    kind, colon, value = text.partition(":")
    if not colon and text == "auto":
        return _Point()
    if kind not in TARGETS or (colon and kind == "default") or (colon and not value):
        raise ConfigError(f"'{text}' is no recovery target", hint=_HINT)
    if not colon:
        return _Point(kind=kind)
    return {"time": _at_time, "lsn": _at_lsn, "xid": _at_xid, "name": _at_name}[kind](value, source)


def _at_time(value: str, source: Source) -> _Point:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ConfigError(
            f"'{value}' is no time", hint="write it as 2026-11-22T03:00:00+00:00, with its offset"
        ) from None
    if moment.tzinfo is None:
        raise ConfigError(
            f"time '{value}' has no offset, so it names another instant in every time zone",
            hint=f"write {value}+00:00 if it is UTC",
        )
    if moment > source.now:
        raise ConfigError(
            f"time '{value}' is in the future: the source's clock says {_time(source.now)}",
            hint="name a time that has passed",
        )
    try:
        # Offset, fraction and no 'T', as both PostgreSQL and pgBackRest 2.45 to 2.59 take it.
        text = f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00:00"
    except OverflowError:
        raise ConfigError(
            f"time '{value}' is before the year 1 in UTC", hint="name a time that backups reach back to"
        ) from None
    return _Point(kind="time", value=text, at=moment)


def _at_lsn(value: str, source: Source) -> _Point:
    if not _LSN.fullmatch(value):
        raise ConfigError(f"'{value}' is no LSN", hint="write it as 16/B374D848")
    lsn = parse_lsn(value)
    if lsn > parse_lsn(source.lsn):
        raise ConfigError(
            f"LSN {value} is in the future: the source has written up to {source.lsn}",
            hint="name a point that has passed",
        )
    return _Point(kind="lsn", value=lsn_text(lsn), lsn=lsn)


def _at_xid(value: str, _: Source) -> _Point:
    if not (_XID.fullmatch(value) and 3 <= int(value) < 2**32):
        raise ConfigError(f"'{value}' is no transaction id", hint="write a number from 3 to 4294967295")
    return _Point(kind="xid", value=str(int(value)))


def _at_name(value: str, _: Source) -> _Point:
    if len(value.encode()) > 63 or "\0" in value:
        raise ConfigError(
            f"'{value[:63]}' is no name of a restore point: it has {len(value.encode())} bytes",
            hint="pg_create_restore_point takes at most 63 bytes",
        )
    return _Point(kind="name", value=value)


# --- which backups can be restored to it --------------------------------------------------------------


def _consider(
    info: StanzaInfo, source: Source, wanted: Wanted, point: _Point
) -> Iterator[tuple[Candidate, Backup]]:
    repositories = {repository.key: repository for repository in info.repo}
    if wanted.repo is not None and wanted.repo not in repositories:
        there = ", ".join(map(str, sorted(repositories))) or "none"
        raise ConfigError(f"stanza '{info.name}' has no repository {wanted.repo}", hint=f"it has {there}")
    for key in sorted(repositories):
        if wanted.repo in {None, key}:
            broken = _refuse_repository(info, key)
            for backup in _asked_for(info.backups(key), wanted):
                refused = broken or _refuse(info, source, backup, point)
                yield Candidate(repo=key, label=backup.label, refused=refused), backup


def _asked_for(backups: Sequence[Backup], wanted: Wanted) -> list[Backup]:
    if wanted.backup_set in {None, *SETS}:
        return list(backups)
    return [backup for backup in backups if backup.label == wanted.backup_set]


def _refuse_repository(info: StanzaInfo, repo: int) -> str:
    status = next(repository.status for repository in info.repo if repository.key == repo)
    if status.code != STANZA_OK:
        return f"pgBackRest says of repository {repo}: {' '.join(status.message.split())}"
    return ""


def _refuse(info: StanzaInfo, source: Source, backup: Backup, point: _Point) -> str:
    """Say why a backup cannot be what is asked for, or nothing."""
    return next((words for words in _faults(info, source, backup, point) if words), "")


def _faults(info: StanzaInfo, source: Source, backup: Backup, point: _Point) -> Iterator[str]:
    yield _foreign(info, source, backup)
    if backup.archive.stop is None or backup.lsn is None:
        yield "it was taken offline, or by a pgBackRest that noted no LSN: nothing says where it ends"
        return
    if backup.error:
        yield "pages failed their checksum when it was taken"
    if backup.timeline > source.timeline:
        yield f"it ends on timeline {backup.timeline}, the source is on {source.timeline}"
    yield _too_new(backup, point)
    yield _behind(info, source, backup, point)
    if point.value is None and backup.label not in _continuous(info, source, backup):
        yield "its archive keeps WAL without a gap for newer backups only (wal.continuous)"


def _foreign(info: StanzaInfo, source: Source, backup: Backup) -> str:
    entries = [h for h in info.db if h.repo_key == backup.repo and h.id == backup.database.id]
    if not entries:
        return f"its database id {backup.database.id} is not in the repository's history"
    if entries[0].system_id == source.system_id:
        return ""
    return f"it is of system {entries[0].system_id}, the source is {source.system_id}"


def _too_new(backup: Backup, point: _Point) -> str:
    assert backup.lsn is not None  # noqa: S101 - the caller looked
    if point.at is not None and point.at < backup.timestamp.stop:
        return f"it ends at {_time(backup.timestamp.stop)}, after the target"
    if point.lsn is not None and point.lsn < parse_lsn(backup.lsn.stop):
        return f"it ends at LSN {backup.lsn.stop}, after the target"
    return ""


def _behind(info: StanzaInfo, source: Source, backup: Backup, point: _Point) -> str:
    """Tell an archive that does not reach the target, as far as its newest name says."""
    newest = _newest_segment(info, backup)
    if newest is None or newest < (backup.archive.stop or ""):
        return f"the archive ends at {newest or 'nothing'}, before the backup's own WAL"
    if point.lsn is None and point.value is not None:
        return ""
    timeline = segment_timeline(newest)
    if timeline < source.timeline and point.lsn is None:
        return f"the archive ends on timeline {timeline}, the source is on {source.timeline}"
    last = segment_number(newest, source.segment_size)
    aim = parse_lsn(source.lsn) if point.lsn is None else point.lsn
    if timeline == source.timeline and aim // source.segment_size - last > source.policy.max_delayed_segments:
        return f"the archive ends at {newest}, {aim // source.segment_size - last} segments behind the target"
    return ""


def _newest_segment(info: StanzaInfo, backup: Backup) -> str | None:
    place = backup.repo, backup.database.id
    newest = [a.max for a in info.archive if (a.database.repo_key, a.database.id) == place and a.max]
    return max(newest, default=None)


def _continuous(info: StanzaInfo, source: Source, backup: Backup) -> set[str]:
    """Name the backups of the same archive from which WAL goes on without a gap, by the WAL policy's rule."""
    alike = [each for each in info.backups(backup.repo) if each.database.id == backup.database.id]
    first = source.policy.first_continuous([each.type for each in alike])
    return {each.label for each in alike[first:]}


def _nothing(
    info: StanzaInfo, wanted: Wanted, candidates: Sequence[Candidate]
) -> ConfigError | PreconditionFailed:
    if not candidates and wanted.backup_set not in {None, *SETS}:
        there = ", ".join(sorted({backup.label for backup in info.backup})[-5:]) or "none"
        return ConfigError(
            f"stanza '{info.name}' has no backup set '{wanted.backup_set}'",
            hint=f"the newest are {there}; or say latest, oldest or random",
        )
    told = "; ".join(f"repo{each.repo} {each.label}: {each.refused}" for each in candidates[-5:])
    asked_for_a_point = ":" in wanted.recovery_target
    if candidates and asked_for_a_point:
        return ConfigError(
            f"target '{wanted.recovery_target}' is outside what can be restored: {told}",
            hint=f"this stanza's backups reach back to {_window(info, wanted)}; name a later point",
        )
    return PreconditionFailed(
        f"stanza '{info.name}' has no backup that can be restored: {told or 'there is none'}",
        hint="take a backup: nightly-backup; 'pgbackrest info' shows what there is",
    )


def _window(info: StanzaInfo, wanted: Wanted) -> str:
    backups = [b for b in info.backup if wanted.repo in {None, b.repo} and b.lsn]
    oldest = min(backups, key=lambda backup: backup.timestamp.stop, default=None)
    if oldest is None or oldest.lsn is None:
        return "nothing"
    return f"{_time(oldest.timestamp.stop)}, LSN {oldest.lsn.stop} (the end of {oldest.label})"


# --- whose turn it is ---------------------------------------------------------------------------------


class _Turns:
    """Whose turn it is in each dimension, from what earlier drills tried."""

    def __init__(self, tried: Sequence[Tried], seed: int) -> None:
        self._tried = sorted(tried, key=lambda each: each.at)
        self.draw = random.Random(seed)  # noqa: S311 - a draw that anybody may repeat

    def next(
        self,
        dimension: Literal["repo", "set_kind", "target_kind"],
        options: Sequence[Option],
        repo: int | None = None,
    ) -> Option:
        """Return the option whose turn it is, in one repository first and then anywhere."""
        shuffled = self.draw.sample(options, len(options))
        here = [each for each in self._tried if repo in {None, each.repo}]
        last = here[-_PATIENCE[dimension] :]
        failed = {getattr(each, dimension) for each in last}
        is_broken = len(last) == _PATIENCE[dimension] and not any(each.proven for each in last)
        waits = failed if is_broken and len(failed) == 1 else set()
        proven = [each for each in here if each.proven]
        anywhere = [each for each in self._tried if each.proven]
        ages: list[dict[object, float]] = [
            {getattr(each, dimension): each.at.timestamp() for each in some}
            for some in (proven, anywhere, self._tried)
        ]
        return min(shuffled, key=lambda option: (option in waits, *(age.get(option, 0.0) for age in ages)))


def _pick_set(
    info: StanzaInfo, backups: Sequence[Backup], turns: _Turns, wanted: Wanted, point: _Point
) -> tuple[SetKind, Backup]:
    """Pick one of the restorable backups of one repository, oldest first."""
    asked = next((kind for kind in SETS if kind == wanted.backup_set), None)
    if wanted.backup_set is not None and asked is None:
        return _kind_of(backups[0], info.backups(backups[0].repo)), backups[0]
    if asked is None and point.value is not None and point.kind in {"xid", "name"}:
        return "oldest", backups[0]  # nobody knows when it was; the oldest was before it, if any was
    return _of_kind(asked or turns.next("set_kind", SETS, backups[0].repo), backups, turns)


def _kind_of(backup: Backup, listed: Sequence[Backup]) -> SetKind:
    if backup is listed[-1]:
        return "latest"
    return "oldest" if backup is listed[0] else "random"


def _of_kind(kind: SetKind, backups: Sequence[Backup], turns: _Turns) -> tuple[SetKind, Backup]:
    if kind == "random":
        return kind, turns.draw.choice(backups[1:-1] or backups)
    return kind, backups[-1] if kind == "latest" else backups[0]


def _reason(wanted: Wanted, point: _Point, set_kind: SetKind, backups: int) -> str:
    """Say what was asked for and what took its turn."""
    asked = {
        "repository": wanted.repo is not None,
        "backup set": wanted.backup_set is not None,
        "target": point.kind is not None,
    }
    by_turn = [name for name, is_asked in asked.items() if not is_asked]
    by_wish = [name for name, is_asked in asked.items() if is_asked]
    parts = [
        f"asked for: {', '.join(by_wish)}" if by_wish else "",
        f"least recently proven: {', '.join(by_turn)}" if by_turn else "",
        f"{set_kind} of {backups} that can be restored",
        "a point of the past: that it can be reached is proven, not what it holds" if point.value else "",
    ]
    return "; ".join(part for part in parts if part)


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
