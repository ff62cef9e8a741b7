"""Judge one archive from its evidence; pure: facts in, faults and facts out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from pgvigil.reports import Finding, Severity
from pgvigil.wal import manifests
from pgvigil.wal.continuity import (
    Base,
    Loss,
    Verdicts,
    assign,
    cost_of,
    judge,
    lay,
    loss_of,
    loss_of_end,
    make_line,
)
from pgvigil.wal.facts import ArchiveFacts, BackupMark, Gap, TimelineFacts, Window
from pgvigil.wal.names import (
    SEGMENT_NAME,
    lsn_text,
    parse_lsn,
    segment_name,
    segment_number,
    segment_timeline,
)
from pgvigil.wal.ranges import clip, count, ranges_of, run_from, union, without
from pgvigil.wal.timelines import ENDLESS, Fate, Tree, fates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pgvigil.pgbackrest import Backup
    from pgvigil.policies.wal import WalPolicy
    from pgvigil.wal.continuity import Line, Reach
    from pgvigil.wal.inventory import Inventory
    from pgvigil.wal.manifests import ManifestFault
    from pgvigil.wal.ranges import Range
    from pgvigil.wal.reading import Judged
    from pgvigil.wal.server import Server

Ranges = dict[int, list["Range"]]

_TIME = "%Y-%m-%d %H:%M:%S"
_SKEW = 60.0  # seconds by which the clocks of server and store may differ
_TICK = 2.0  # seconds: stores keep whole ones
_MANIFEST_FAULTS = {
    manifests.MISSING: "lacks",
    manifests.CORRUPT: "has a damaged",
    manifests.UNREADABLE: "has an unreadable",
}
_MOST = 100  # findings of one code; the rest is one more that counts them


@dataclass(frozen=True)
class Fault:
    """A finding, the check that it belongs to, and whether it refutes that check."""

    check: str
    finding: Finding
    is_refuting: bool = True


@dataclass(frozen=True)
class Evidence:
    """All that is known of one archive id; `server` is None where it is not the server's own.

    `server` was read before the listing and `after` after it, so that nothing that happens meanwhile
    looks like a fault. `lacking` maps backups to what is wrong with their manifests, `unread` timelines to
    the reason why their history files cannot be read. `stuck` is the segment at which the archiver fails
    though every repository holds one of that name. `has_older` tells that an archive before this one, as
    an upgrade leaves it, has backups.
    """

    repo: int
    inventory: Inventory
    histories: Mapping[int, str]
    backups: Sequence[Backup]
    lacking: Mapping[str, tuple[ManifestFault, ...]] = field(default_factory=dict)
    unread: Mapping[int, str] = field(default_factory=dict)
    bad: Sequence[Judged] = ()
    server: Server | None = None
    after: Server | None = None
    stuck: str = ""
    has_older: bool = False


@dataclass(frozen=True)
class Examined:
    """What came out: facts for the report, faults for the checks, what is stored for comparisons.

    `is_open` tells that the server has not archived yet how it came onto its timeline.
    """

    facts: ArchiveFacts
    faults: tuple[Fault, ...]
    stored: Ranges
    waiting: int = 0
    is_open: bool = False


class _Harm(NamedTuple):
    """Broken segments of one timeline, what they cost, and the line on which they do."""

    timeline: int
    numbers: Range
    loss: Loss
    found: Verdicts


def examine(evidence: Evidence, policy: WalPolicy, now: datetime) -> Examined:
    """Judge timelines, backups, continuity, delay and content of one archive."""
    return _Examination(evidence, policy, now).run()


class _Examination:
    """The judgement of one archive in progress."""

    def __init__(self, evidence: Evidence, policy: WalPolicy, now: datetime) -> None:
        self.evidence = evidence
        self.policy = policy
        self.now = now
        self.inventory = evidence.inventory
        self.size = evidence.inventory.segment_size
        self.tree = Tree.read(evidence.histories)
        self.tree.unreadable |= evidence.unread
        self.stored: Ranges = {t: track.ranges() for t, track in sorted(self.inventory.tracks.items())}
        newest = max([*self.stored, *self.tree.ancestry], default=1)
        self.live = evidence.after.timeline if evidence.after else newest
        self.is_standby = evidence.after is not None and evidence.after.in_recovery
        self.fates = fates(
            self.tree,
            {*self.stored, *self.inventory.histories},
            self.live,
            set(self._receiving()),
            is_standby=self.is_standby,
        )
        self.waiting = evidence.server.waiting() if evidence.server else {}
        self.known = self._known_losses()
        self.faults: list[Fault] = []
        self.gaps: list[Gap] = []

    def run(self) -> Examined:
        self.faults += self._timelines()
        self.faults += self._fork()
        self.faults += self._backups()
        bad = self._bad()
        verdicts = self._verdicts(bad)
        self.reaches = [reach for found in verdicts for reach in found.reaches]
        for found in verdicts:
            self._missing(found)
        for code, ranges in bad.items():
            self._damaged(code, ranges, verdicts)
        self.faults += self._present(verdicts[0])
        self.faults += self._delay(verdicts[0].line)
        self.faults += self._foreign()
        return Examined(
            facts=self._facts(verdicts),
            faults=tuple(_bounded(self.faults)),
            stored=self.stored,
            waiting=len(self._late(verdicts[0].line)),
            is_open=self._awaits_history(self.live),
        )

    def _finding(self, code: str, severity: Severity, message: str, hint: str, subject: str = "") -> Finding:
        return Finding(
            code=code,
            severity=severity,
            message=f"repository {self.evidence.repo}: {message}",
            hint=hint,
            subject=subject,
        )

    # timelines

    def _timelines(self) -> Iterator[Fault]:
        for timeline, fate in self.fates.items():
            if fate is Fate.STRAY:
                yield Fault("timelines", self._stray(timeline))
            elif timeline in self.tree.unreadable:
                yield Fault(
                    "timelines",
                    self._no_history(timeline, f"is of no use ({self.tree.unreadable[timeline]})"),
                )
            elif self._lacks_history(timeline):
                yield Fault("timelines", self._no_history(timeline, "is missing"))

    def _lacks_history(self, timeline: int) -> bool:
        """Ask for the file of every timeline but the first, which may be older than the archive."""
        waits = self._awaits_history(timeline)
        backups = (base.timeline for base in self._bases())
        is_first = timeline <= min([*self.stored, *backups], default=timeline)
        # only the primary knows whether the file of a timeline without WAL is still on its way
        is_early = self.is_standby and timeline not in self.stored
        return not (is_first or waits or is_early or timeline in self.inventory.histories)

    def _awaits_history(self, timeline: int) -> bool:
        """Tell whether the server still holds the only history file of a timeline."""
        server = self.evidence.server
        is_stored = timeline in self.inventory.histories
        return bool(server and not is_stored and server.waits(f"{timeline:08X}.history"))

    def _receiving(self) -> Iterator[int]:
        """Name the timelines whose newest file came after the server began its own."""
        server = self.evidence.after
        if server is None or server.began is None or not self._has_true_times():
            return
        for timeline, track in self.inventory.tracks.items():
            if track.times and max(track.times) > server.began.timestamp() + _SKEW:
                yield timeline

    def _has_true_times(self) -> bool:
        """Tell whether file times are those of storing: a backup ends after its last segment is stored."""
        ends = {b.label: b.timestamp.stop.timestamp() for b in self.evidence.backups}
        stored = [
            (ends[base.label], self.inventory.tracks[base.timeline].stored_at(base.stop))
            for base in self._bases()
            if base.timeline in self.inventory.tracks
        ]
        return bool(stored) and all(at is None or at <= end + _SKEW for end, at in stored)

    def _stray(self, timeline: int) -> Finding:
        parent = self.tree.parent(timeline)
        where = f", branched off {parent.timeline} at LSN {lsn_text(parent.lsn)}" if parent else ""
        began = self.evidence.after.began if self.evidence.after else None
        if timeline < self.live and began:
            where += f", got WAL after the server had left for its own at {began:{_TIME}}, and so"
        return self._finding(
            "timeline-stray",
            Severity.ERROR,
            f"timeline {timeline}{where} is not of this server, which is on timeline {self.live}: "
            f"somebody else archives here, perhaps a restored copy",
            f"stop its archiving; until its files are removed, restore with --target-timeline={self.live}, "
            "for a default restore follows the stray",
            f"timeline {timeline}",
        )

    def _no_history(self, timeline: int, what: str) -> Finding:
        return self._finding(
            "history-missing",
            Severity.ERROR,
            f"the history file of timeline {timeline} {what}: no backup from before it can be restored to "
            f"points on it; on timelines before it restore points survive as listed",
            f"copy {timeline:08X}.history from the server's pg_wal into the archive, or take a full backup",
            f"timeline {timeline}",
        )

    def _fork(self) -> Iterator[Fault]:
        """Tell of WAL that has this server's names and is not this server's."""
        server, track = self.evidence.after, self.inventory.tracks.get(self.live)
        if server is None or server.in_recovery:
            return
        ahead = clip(self.stored.get(self.live, ()), server.complete + 1, ENDLESS) if track else []
        told = []
        if ahead:
            name = segment_name(self.live, ahead[-1][1], self.size)
            told.append(f"{count(ahead)} segments, up to {name}, lie beyond its position {server.lsn}")
        if self._is_of_before(self.evidence.stuck):
            told.append(f"it fails to archive {self.evidence.stuck}, of which another is stored")
        if told:
            yield Fault(
                "timelines",
                self._finding(
                    "wal-forked",
                    Severity.ERROR,
                    f"WAL on timeline {self.live} is not of this server: {'; '.join(told)}; what it writes "
                    "now cannot be restored",
                    "the server was set back without a new timeline (a snapshot, a copy), or another "
                    "archives here: stop the other, then stanza-create a new archive and take a full backup",
                    f"timeline {self.live}",
                ),
            )

    def _is_of_before(self, name: str) -> bool:
        """Tell whether the stored file of a waiting segment is older than the segment itself."""
        waits = self.evidence.server.waits(name) if self.evidence.server and name else None
        track = self.inventory.tracks.get(segment_timeline(name)) if waits else None
        at = track.stored_at(segment_number(name, self.size)) if track else None
        return waits is not None and at is not None and at + _TICK < waits.since.timestamp()

    # backups

    def _backups(self) -> Iterator[Fault]:
        for label, faults in self.evidence.lacking.items():
            dependants = [b.label for b in self.evidence.backups if label in (b.reference or ())]
            dead = ", ".join([label, *dependants])
            is_dead = len(faults) > 1
            code = next(code for code in _MANIFEST_FAULTS if code in {fault.code for fault in faults})
            yield Fault(
                "backups",
                self._finding(
                    code,
                    Severity.ERROR if is_dead else Severity.WARNING,
                    f"backup {label} {_MANIFEST_FAULTS[code]} {' and '.join(map(str, faults))}"
                    + (f", though pgbackrest lists it: {dead} cannot be restored" if is_dead else ""),
                    "take a new full backup now, and see who changes the repository by hand"
                    if is_dead
                    else "pgbackrest restores by the other one: copy that over this one",
                    label,
                ),
                is_refuting=is_dead,
            )

    def _bases(self) -> list[Base]:
        dead = {label for label, files in self.evidence.lacking.items() if len(files) > 1}
        first = self.policy.first_continuous([b.type for b in self.evidence.backups])
        return [
            Base(
                label=b.label,
                timeline=b.timeline,
                start=segment_number(start, self.size),
                stop=segment_number(stop, self.size),
                stop_lsn=parse_lsn(b.lsn.stop) if b.lsn else segment_number(stop, self.size) * self.size,
                is_usable=not dead & {b.label, *(b.reference or ())},
                is_pitr=index >= first,
            )
            for index, b in enumerate(self.evidence.backups)
            # A backup taken offline has no WAL and needs none.
            if (start := b.archive.start) and (stop := b.archive.stop)
        ]

    # continuity

    def _bad(self) -> dict[str, Ranges]:
        """Collect damaged segments by code; a duplicate is one fault, whatever its files hold."""
        twice = {t: set(track.duplicates) for t, track in self.inventory.tracks.items() if track.duplicates}
        found: dict[str, dict[int, set[int]]] = {}
        if twice:
            found["wal-duplicate"] = twice
        for item in self.evidence.bad:
            timeline, number = item.file.timeline, item.file.number
            if number not in twice.get(timeline, ()):
                found.setdefault(item.code, {}).setdefault(timeline, set()).add(number)
        return {
            code: {t: ranges_of(sorted(numbers)) for t, numbers in by.items()} for code, by in found.items()
        }

    def _verdicts(self, bad: Mapping[str, Ranges]) -> list[Verdicts]:
        broken: Ranges = {}
        for by in bad.values():
            for timeline, ranges in by.items():
                broken[timeline] = union(broken.get(timeline, ()), ranges)
        bases = self._bases()
        live = make_line(self.tree, self.live, self.size, self.stored, broken)
        tips = sorted({base.timeline for base in bases if not live.holds(base)})
        lines = [live, *(make_line(self.tree, tip, self.size, self.stored, broken) for tip in tips)]
        return [
            judge(line, own, lay(line.stretches, self.waiting), self._until(line), self.size)
            for line, own in zip(lines, assign(bases, lines), strict=True)
        ]

    def _until(self, line: Line) -> int:
        server = self.evidence.server
        return server.finished if server and server.timeline == line.tip == self.live else -1

    def _missing(self, found: Verdicts) -> None:
        known = {t: [r for r, _ in items] for t, items in self.known.items()}
        for stretch in found.line.stretches:
            lost = clip(found.lost, stretch.first, stretch.last)
            for part in without(lost, known.get(stretch.timeline, ())):
                self._note_missing(_Harm(stretch.timeline, part, loss_of(found, part, self.size), found))
            for part in without(lost, without(lost, known.get(stretch.timeline, ()))):
                harm = _Harm(stretch.timeline, part, loss_of(found, part, self.size), found)
                self._note_known("wal-missing", harm)
        for switch in found.lost_ends:
            lost = [(switch.number, switch.number)]
            harm = _Harm(switch.timeline, lost[0], loss_of_end(found, switch, self.size), found)
            if without(lost, known.get(switch.timeline, ())):
                self._note_missing(harm)
            else:
                self._note_known("wal-missing", harm)

    def _note_missing(self, harm: _Harm) -> None:
        self._note_gap("wal-missing", harm)
        self.faults.append(Fault("continuity", self._lost(harm.timeline, harm.numbers, harm.loss)))

    def _note_known(self, code: str, harm: _Harm) -> None:
        known = self.known.get(harm.timeline, ())
        reason = next((r for (first, last), r in known if first <= harm.numbers[0] <= last), "known")
        self._note_gap(code, harm, reason)

    def _lost(self, timeline: int, lost: Range, loss: Loss) -> Finding:
        first, last = (segment_name(timeline, number, self.size) for number in lost)
        server = self.evidence.server
        counted = (
            ", though PostgreSQL counts it as archived"
            if (server and server.counts_archived(timeline, lost[1]))
            else ""
        )
        return self._finding(
            "wal-missing",
            Severity.ERROR,
            f"WAL {_range_text(first, last, lost)} is in neither the repository nor the "
            f"server's queue{counted}; " + self._loss_text(loss),
            "look for the segments in another repository, on a standby or in the server's pg_wal; if they "
            "are gone, take a full backup now, and acknowledge the loss under wal.known_losses",
            first,
        )

    def _damaged(self, code: str, by: Ranges, verdicts: Sequence[Verdicts]) -> None:
        for timeline, ranges in by.items():
            known = [item for item, _ in self.known.get(timeline, ())]
            for broken in ranges:
                cost = cost_of(verdicts, timeline, broken, self.size)
                loss = cost.loss if cost else Loss(0, 0, ())
                if not without([broken], known):
                    if cost:
                        self._note_known(code, _Harm(timeline, broken, loss, cost.found))
                    continue
                if cost:
                    self._note_gap(code, _Harm(timeline, broken, loss, cost.found))
                self.faults.append(Fault("content", self._bad_finding(code, timeline, broken, loss)))

    def _bad_finding(self, code: str, timeline: int, broken: Range, loss: Loss) -> Finding:
        first, last = (segment_name(timeline, number, self.size) for number in broken)
        inside = [
            item.fault
            for item in self.evidence.bad
            if item.file.timeline == timeline and broken[0] <= item.file.number <= broken[1]
        ]
        what = {
            "wal-duplicate": "is stored more than once",
            "wal-empty": "is empty",
            "wal-truncated": "is truncated",
            "wal-corrupt": "is damaged",
            "wal-unreadable": "cannot be read",
            "wal-misplaced": "is not what its name says",
        }[code]
        return self._finding(
            code,
            Severity.WARNING if loss.is_empty else Severity.ERROR,
            f"WAL {_range_text(first, last, broken)} {what}"
            + (f": {'; '.join(inside[:3])}" if inside else "")
            + f"; {self._loss_text(loss)}",
            "replace the file by a good copy from another repository, a standby or pg_wal; else take a full "
            "backup now"
            if code != "wal-duplicate"
            else "find out which server pushed which copy, keep the one of this cluster and remove the other",
            first,
        )

    def _loss_text(self, loss: Loss) -> str:
        if loss.is_empty:
            return "no restore point depends on it"
        told = []
        if loss.from_lsn < loss.to_lsn:
            told.append(
                f"restore points from LSN {lsn_text(loss.from_lsn)} to {lsn_text(loss.to_lsn)} are lost"
            )
        if loss.backups:
            told.append(f"backup {', '.join(loss.backups)} cannot be restored")
        alive = "; ".join(
            f"LSN {s.from_lsn} to {s.to_lsn} "
            f"(backup of {s.from_time:{_TIME}}, WAL archived until {s.archived_at:{_TIME}})"
            for s in self._spans(self.reaches)[-3:]
        )
        return f"{', and '.join(told)}; these survive: {alive or 'none'}"

    def _present(self, live: Verdicts) -> Iterator[Fault]:
        """Demand that some backup can be restored up to now, whatever is acknowledged."""
        if self.evidence.server is None or self._reaches_present(live):
            return
        if not self.evidence.backups:
            yield Fault("continuity", self._no_backup())
            return
        if self._awaits_history(self.live):  # nobody but the server knows yet which backups lead here
            return
        if not any(fault.is_refuting and self._explains(fault) for fault in self.faults):
            yield Fault("continuity", self._no_window(live))

    def _explains(self, fault: Fault) -> bool:
        """Tell whether a fault already says why a window ends."""
        is_of_windows = fault.check in {"backups", "continuity", "content"}
        return is_of_windows or fault.finding.code == "history-missing"

    def _reaches_present(self, live: Verdicts) -> bool:
        end = max(live.line.newest, self._until(live.line))
        fine = union(lay(live.line.stretches, self.waiting), live.line.good)
        return any(not without([(reach.last + 1, end)], fine) for reach in live.reaches)

    def _no_backup(self) -> Finding:
        archive_id, segments = self.inventory.archive_id, self.inventory.segments
        return self._finding(
            "no-backup",
            Severity.ERROR,
            f"archive {archive_id}, into which the server archives now, has {segments} segments and no "
            "backup: nothing "
            + ("that was written since the upgrade " if self.evidence.has_older else "")
            + "can be restored",
            "take a full backup now: nightly-backup",
            archive_id,
        )

    def _no_window(self, live: Verdicts) -> Finding:
        own = ", ".join(base.label for base in live.bases[-3:]) or "none"
        newest = f"up to LSN {lsn_text(live.newest_lsn)}" if live.reaches else "at all"
        return self._finding(
            "no-window",
            Severity.ERROR,
            f"no backup can be restored to the present: timeline {self.live}, the server's, has backups "
            f"{own}, and they can be restored {newest if live.bases else 'not at all'}",
            "take a full backup now: nightly-backup; a known loss does not bring back what it lost",
            f"timeline {self.live}",
        )

    # delay

    def _late(self, live: Line) -> list[str]:
        server = self.evidence.server
        if server is None:
            return []
        late = server.late(self._is_stored, self.inventory.histories)
        if server.in_recovery:  # it keeps more than it needs: only what the primary should have sent counts
            segments = (item for item in late if SEGMENT_NAME.match(item.name))
            late = [item for item in segments if self._is_next(item.name, live)]
        return [item.name for item in late]

    def _is_next(self, name: str, live: Line) -> bool:
        number = segment_number(name, self.size)
        return number > live.newest and live.timeline_of(number) == segment_timeline(name)

    def _is_stored(self, timeline: int, number: int) -> bool:
        """Tell whether a waiting segment is stored; none is from where the archiver is stuck on."""
        stuck = self.evidence.stuck
        is_stuck = stuck and segment_name(timeline, number, self.size) >= stuck
        return not is_stuck and run_from(self.stored.get(timeline, ()), number) is not None

    def _delay(self, live: Line) -> Iterator[Fault]:
        server, late, policy = self.evidence.server, self._late(live), self.policy
        if server and server.archive_mode == "off" and not server.in_recovery:
            yield Fault("delay", self._archiving_off())
        if server is None or not late:
            return
        since = min(item.since for item in server.ready if item.name == late[0])
        age = server.now - since
        segments = sum(SEGMENT_NAME.match(name) is not None for name in late)
        if segments <= policy.max_delayed_segments and age <= policy.max_delay:
            return
        histories = "".join(f" and {name}" for name in late if not SEGMENT_NAME.match(name))
        why = f"; the archiver fails at {server.last_failed_wal}" if server.archiver_fails else ""
        yield Fault(
            "delay",
            self._finding(
                "wal-delayed",
                Severity.ERROR,
                f"{segments} finished segments{histories} wait at the server, the oldest, {late[0]}, for "
                f"{age.total_seconds():.0f} s; expected at most {policy.max_delayed_segments} and "
                f"{policy.max_delay.total_seconds():g} s{why}; nothing is lost while the server's disk lives",
                "see the server log for pgbackrest's message; 'pgbackrest check' reproduces it",
                late[0],
            ),
        )

    def _archiving_off(self) -> Finding:
        return self._finding(
            "archiving-off",
            Severity.ERROR,
            "archive_mode is off, expected on: nothing that the server writes comes into the archive",
            "set archive_mode = on, restart the server, and take a full backup",
        )

    def _foreign(self) -> Iterator[Fault]:
        if self.inventory.foreign:
            names = ", ".join(self.inventory.foreign[:3])
            yield Fault(
                "listed",
                self._finding(
                    "foreign-file",
                    Severity.INFO,
                    f"{self.inventory.classes['foreign']} files in the archive are not pgbackrest's: {names}",
                    "find out who puts files there",
                    self.inventory.archive_id,
                ),
                is_refuting=False,
            )

    # facts

    def _facts(self, verdicts: Sequence[Verdicts]) -> ArchiveFacts:
        usable = {reach.label for reach in self.reaches}
        lines = {base.label: found.line.tip for found in verdicts for base in found.bases}
        return ArchiveFacts(
            archive_id=self.inventory.archive_id,
            is_current=self.evidence.server is not None,
            classes=dict(self.inventory.classes),
            stored_bytes=self.inventory.stored_bytes(),
            timelines=tuple(self._timeline_facts(verdicts)),
            backups=tuple(
                BackupMark(
                    label=b.label,
                    type=b.type,
                    at=b.timestamp.stop,
                    is_usable=b.label in usable,
                    line=lines.get(b.label, self.live),
                )
                for b in self.evidence.backups
            ),
            windows=tuple(self._window(reach, reach.from_lsn, reach) for reach in self.reaches),
            spans=tuple(span for found in verdicts for span in self._spans(found.reaches)),
            gaps=tuple(self.gaps),
        )

    def _timeline_facts(self, verdicts: Sequence[Verdicts]) -> Iterator[TimelineFacts]:
        judged = [s for found in verdicts if found.bases for s in found.line.stretches]
        for timeline, fate in self.fates.items():
            parent = self.tree.parent(timeline)
            ranges = self.stored.get(timeline, [])
            yield TimelineFacts(
                id=timeline,
                fate=fate,
                parent=parent.timeline if parent else None,
                switch_lsn=lsn_text(parent.lsn) if parent else "",
                stored_from=self._stored_at(ranges[0][0], timeline) if ranges else None,
                first=segment_name(timeline, ranges[0][0], self.size) if ranges else "",
                last=segment_name(timeline, ranges[-1][1], self.size) if ranges else "",
                segments=count(ranges),
                unjudged=count(
                    without(ranges, union((s.first, s.last) for s in judged if s.timeline == timeline))
                ),
            )

    def _spans(self, reaches: Iterable[Reach]) -> list[Window]:
        """Join windows that overlap: what can be restored at all, by whichever backup."""
        spans: list[list[Reach]] = []
        for reach in sorted(reaches, key=lambda reach: (reach.timeline, reach.from_lsn)):
            if spans and spans[-1][-1].timeline == reach.timeline and spans[-1][-1].to_lsn >= reach.from_lsn:
                last = spans[-1][-1]
                spans[-1].append(reach if reach.to_lsn > last.to_lsn else last)
            else:
                spans.append([reach])
        return [self._window(span[0], span[0].from_lsn, span[-1]) for span in spans]

    def _window(self, first: Reach, from_lsn: int, last: Reach) -> Window:
        begins = next(b.timestamp.stop for b in self.evidence.backups if b.label == first.label)
        return Window(
            label=first.label,
            timeline=last.timeline,
            from_lsn=lsn_text(from_lsn),
            to_lsn=lsn_text(last.to_lsn),
            from_time=begins,
            archived_at=max(self._stored_at(last.last) or begins, begins),
        )

    def _note_gap(self, code: str, harm: _Harm, acknowledged: str = "") -> None:
        timeline, broken, loss = harm.timeline, harm.numbers, harm.loss
        has_points = loss.from_lsn < loss.to_lsn
        self.gaps.append(
            Gap(
                code=code,
                first=segment_name(timeline, broken[0], self.size),
                last=segment_name(timeline, broken[1], self.size),
                segments=broken[1] - broken[0] + 1,
                from_lsn=lsn_text(loss.from_lsn) if has_points else "",
                to_lsn=lsn_text(loss.to_lsn) if has_points else "",
                from_time=self._stored_at(broken[0] - 1) or self._stored_at(broken[0]),
                to_time=self._lost_until(harm.found.line, loss),
                dead_backups=loss.backups,
                acknowledged=acknowledged,
                line=harm.found.line.tip,
            )
        )

    def _lost_until(self, line: Line, loss: Loss) -> datetime:
        """Return when the first segment after a loss was stored on its line; now, where there is none."""
        number = loss.to_lsn // self.size
        owner = line.timeline_of(number)
        is_there = run_from(self.stored.get(owner, ()), number) is not None
        at = self._stored_at(number, owner) if is_there else None
        if at is None and line.tip != self.live and line.newest >= 0:
            at = self._stored_at(line.newest, line.timeline_of(line.newest))
        return at or self.now

    def _stored_at(self, number: int, only: int = 0) -> datetime | None:
        """Return when a segment of this number came into the repository, of any timeline or of one."""
        for timeline in sorted({only} & set(self.inventory.tracks) or self.inventory.tracks, reverse=True):
            at = self.inventory.tracks[timeline].stored_at(number)
            if at is not None:
                return self._between_backups(timeline, number, datetime.fromtimestamp(at, tz=UTC))
        return None

    def _between_backups(self, timeline: int, number: int, at: datetime) -> datetime:
        """Correct a file time by the backups around it, for a copied repository has those of the copying.

        A backup ends only when its last segment is stored.
        """
        times = {backup.label: backup.timestamp for backup in self.evidence.backups}
        own = [base for base in self._bases() if base.timeline == timeline]
        before = [times[base.label].stop for base in own if base.stop < number]
        after = [times[base.label].start for base in own if base.start > number]
        within = [times[base.label].stop for base in own if base.stop >= number]
        return min([max([at, *before]), *after, *within])

    def _known_losses(self) -> dict[int, list[tuple[Range, str]]]:
        found: dict[int, list[tuple[Range, str]]] = {}
        for loss in self.policy.known_losses:
            if loss.repo in {None, self.evidence.repo} and self.now.date() <= loss.until:
                span = segment_number(loss.first, self.size), segment_number(loss.last, self.size)
                found.setdefault(segment_timeline(loss.first), []).append((span, loss.reason))
        return {timeline: sorted(items) for timeline, items in found.items()}


def _range_text(first: str, last: str, numbers: Range) -> str:
    many = numbers[1] - numbers[0] + 1
    return first if many == 1 else f"{first} to {last} ({many} segments)"


def _bounded(faults: Iterable[Fault]) -> Iterator[Fault]:
    """Tell at most so many faults of one code one by one."""
    seen: dict[str, int] = {}
    for fault in faults:
        code = fault.finding.code
        seen[code] = seen.get(code, 0) + 1
        if seen[code] <= _MOST:
            yield fault
        elif seen[code] == _MOST + 1:
            more = fault.finding.model_copy(
                update={"message": f"more findings of {code} than {_MOST}: see gaps in the report"}
            )
            yield Fault(fault.check, more, fault.is_refuting)
