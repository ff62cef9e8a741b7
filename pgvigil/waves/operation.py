"""One wave from its first member to its last: whom to begin, when to stop, what is left."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgvigil import lock
from pgvigil.errors import AuditUnreachable, DatabaseFailed, PgvigilError
from pgvigil.reports import Check, Finding, Frozen, Severity, Verdict
from pgvigil.waves import ledger
from pgvigil.waves.ledger import Identity
from pgvigil.waves.report import Outcome, counted, named, worst_first
from pgvigil.waves.selection import select

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import timedelta

    from pgvigil.runs import Run
    from pgvigil.waves.crew import Crew, Sight
    from pgvigil.waves.ledger import MemberRun
    from pgvigil.waves.selection import Selection


class Progress(Frozen):
    """How far a wave is, and itself as a sentence."""

    members: int
    ended: int
    counts: str
    at_work: int

    @property
    def percent(self) -> float:
        """0 to 100."""
        return 100.0 * self.ended / max(self.members, 1)

    def __str__(self) -> str:
        return f"{self.ended} of {self.members} subjects ended ({self.counts}), {self.at_work} at work"


class Wave:
    """A wave while it goes on: who has still to begin, who is at work, and how the others came out."""

    def __init__(
        self, run: Run, identity: Identity, selection: Selection, earlier: Mapping[str, Outcome]
    ) -> None:
        self.run = run
        self.identity = identity
        self.selection = selection
        self.policy = run.fleet.wave(self.pipeline)
        self.outcomes = dict(earlier)
        self.waiting = deque(each for each in selection.members if each.subject not in earlier)
        self.at_work: dict[str, str] = {}
        self.stopped = ""
        self.began = self.moved = time.monotonic()

    @property
    def pipeline(self) -> str:
        """What goes over the fleet."""
        return self.run.identity.subject

    @property
    def flow(self) -> str:
        """The same, as flows and the audit log call it."""
        return self.pipeline.replace("-", "_")

    @property
    def is_open(self) -> bool:
        """Whether anybody is at work, or has still to begin."""
        return bool(self.at_work or (self.waiting and not self.stopped))

    @property
    def left(self) -> int:
        """How many have not come to their end."""
        ended = sum(each.state == "ended" for each in self.outcomes.values())
        return len(self.selection.members) - ended

    @property
    def progress(self) -> Progress:
        """How far it is now."""
        return Progress(
            members=len(self.selection.members),
            ended=len(self.outcomes),
            counts=counted(self.outcomes.values()),
            at_work=len(self.at_work),
        )


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Hold a pipeline's wave for the block; raises Busy, naming the owner.

    While the audit store, which keeps the lock, is away, the wave goes on without: better two waves, whose
    runs each hold their stanza or table, than none.
    """
    pipeline = run.identity.subject
    with ExitStack() as held:
        try:
            wait = run.fleet.wave(pipeline).wait
            held.enter_context(lock.hold(run.fleet.audit.dsn, f"the wave of {pipeline}", run.name, wait))
        except DatabaseFailed as error:
            if not error.transient:
                raise
            _warn(run, "wave-without-lock", f"nobody keeps a second wave off: {error.message}")
        yield


def plan(run: Run, slot: datetime | None, *, anew: bool = False) -> Wave:
    """Select the members, and find out which wave this is and who of it has ended already.

    A run that a schedule started belongs to the wave of its slot. Any other goes on with the newest wave
    that left somebody and is young enough, unless `anew`; else it begins one.
    """
    selection = select(run.fleet, run.identity.subject)
    wave = _identify(run, selection, slot, anew=anew)
    count = len(selection.members)
    run.checks.append(
        Check(
            id="selection",
            verdict=Verdict.VERIFIED if count else Verdict.INCONCLUSIVE,
            expected="at least one subject",
            actual=f"{count} selected, {len(selection.left_out)} left out",
        )
    )
    _describe(wave)
    return wave


def _identify(run: Run, selection: Selection, slot: datetime | None, *, anew: bool) -> Wave:
    pipeline = run.identity.subject
    due = slot or datetime.now(UTC).replace(microsecond=0)
    fresh = Identity(id=ledger.name(pipeline, due), due=due, begun_by=run.id)
    try:
        found = ledger.find(run.log, pipeline, fresh.id if slot else None)
        if found is None or not (slot or _goes_on(run, found, anew=anew)):
            return Wave(run, fresh, selection, {})
        known = ledger.member_runs(run.log, pipeline.replace("-", "_"), found)
    except AuditUnreachable as error:
        _warn(run, "wave-without-memory", f"who of this wave has ended already is unknown: {error.message}")
        return Wave(run, fresh, selection, {})
    members = {each.subject for each in selection.members}
    ended = {name: _recorded(each, earlier=True) for name, each in known.items() if each.verdict}
    return Wave(run, found, selection, {name: each for name, each in ended.items() if name in members})


def _goes_on(run: Run, found: ledger.Begun, *, anew: bool) -> bool:
    age = datetime.now(UTC) - found.due
    return not (anew or found.finished) and age < run.fleet.wave(run.identity.subject).resume


@contextmanager
def under_way(wave: Wave) -> Iterator[None]:
    """Have on record that the wave is under way, and at the end what it left: the next run reads that."""
    detail = {"wave": wave.identity.id, "due": wave.identity.due.isoformat(), "to_begin": len(wave.waiting)}
    with wave.run.step(ledger.STEP, detail) as facts:
        yield
        facts.update(wave=wave.identity.id, left=wave.left, counts=counted(wave.outcomes.values()))


def start(wave: Wave, crew: Crew) -> tuple[str, ...]:
    """Begin as many members as may be at work at once, and return them; one that is refused is an outcome."""
    begun = []
    while wave.waiting and not wave.stopped and len(wave.at_work) < wave.selection.at_once:
        member = wave.waiting[0]
        try:
            where = crew.start(member)
        except PgvigilError as error:
            said = f"it could not be begun: {error.message}"
            _settle(wave, Outcome(subject=member.subject, state="left", said=said))
        else:
            if where is None:
                break
            wave.at_work[member.subject] = where
            begun.append(member.subject)
        wave.waiting.popleft()
    return tuple(begun)


def watch(wave: Wave, crew: Crew) -> tuple[Outcome, ...]:
    """Look once at everybody who is at work, and return who came out since; ends a wave that is stuck."""
    time.sleep(crew.patience.total_seconds())
    sights = crew.look(tuple(wave.at_work))
    over = {subject: sight for subject, sight in sights.items() if sight.state == "over"}
    known = _read_ended(wave) if over else {}
    ended = tuple(_outcome(wave, subject, sight, known.get(subject)) for subject, sight in over.items())
    for outcome in ended:
        _settle(wave, outcome)
    now = time.monotonic()
    if ended or not sights or any(sight.state == "running" for sight in sights.values()):
        wave.moved = now
    if now - wave.moved > wave.policy.stall.total_seconds():
        _break_off(wave, crew, sights, f"no worker took any of its runs for {_span(wave.policy.stall)}")
    elif now - wave.began > wave.policy.deadline.total_seconds():
        _break_off(wave, crew, sights, f"its deadline of {_span(wave.policy.deadline)} was over")
    return ended


def conclude(wave: Wave) -> None:
    """Turn outcomes, and who is left, into the run's checks and its report."""
    for member in wave.waiting:
        wave.outcomes[member.subject] = Outcome(
            subject=member.subject, state="left", said=f"it did not begin: {wave.stopped}"
        )
    wave.waiting.clear()
    outcomes = worst_first(wave.outcomes.values())
    wave.run.checks.extend(each.check() for each in outcomes)
    _describe(wave)
    if wave.stopped:
        left = [each.subject for each in outcomes if each.state != "ended"]
        _warn(
            wave.run,
            "wave-stopped",
            f"the wave was ended early: {wave.stopped}; left: {named(left) or 'nobody'}",
            f"mend what failed, then 'pgvigil run watch-fleet {wave.pipeline}' goes on with those",
        )


def _settle(wave: Wave, outcome: Outcome) -> None:
    """Take an outcome down, and stop beginning others when the budget is used up."""
    wave.at_work.pop(outcome.subject, None)
    wave.outcomes[outcome.subject] = outcome
    failures = sum(
        not each.earlier and each.verdict is not Verdict.VERIFIED for each in wave.outcomes.values()
    )
    budget = wave.policy.budget
    if budget is not None and failures >= budget and wave.waiting and not wave.stopped:
        wave.stopped = f"{failures} subjects were not verified, the budget is {budget}"


def _break_off(wave: Wave, crew: Crew, sights: Mapping[str, Sight], reason: str) -> None:
    """End the wave: take back who waits, leave whom it works for, wait for nobody."""
    wave.stopped = wave.stopped or reason
    for subject, where in tuple(wave.at_work.items()):
        sight = sights.get(subject)
        if sight is not None and sight.state == "waiting":
            crew.recall(subject)
            outcome = Outcome(subject=subject, state="left", said=f"it did not begin: {reason}", where=where)
        else:
            outcome = Outcome(subject=subject, state="at work", said=f"it goes on: {reason}", where=where)
        _settle(wave, outcome)


def _read_ended(wave: Wave) -> dict[str, MemberRun]:
    """Read how members ended; while the store is away, the word of who ran them has to do."""
    try:
        return ledger.member_runs(wave.run.log, wave.flow, wave.identity)
    except AuditUnreachable:
        return {}


def _outcome(wave: Wave, subject: str, sight: Sight, known: MemberRun | None) -> Outcome:
    where = wave.at_work[subject]
    if known and known.verdict:
        ended = _recorded(known, where=where)
        return ended.model_copy(update={"said": f"{ended.said}; a person is asked"}) if sight.asks else ended
    run_id = known.run_id if known else None
    return Outcome(subject=subject, verdict=sight.verdict, said=sight.said, run_id=run_id, where=where)


def _recorded(known: MemberRun, *, where: str = "", earlier: bool = False) -> Outcome:
    return Outcome(
        subject=known.subject,
        verdict=known.verdict or Verdict.INCONCLUSIVE,
        said=known.headline,
        run_id=known.run_id,
        where=where,
        earlier=earlier,
    )


def _describe(wave: Wave) -> None:
    """Put what is the wave's own into the report."""
    wave.run.facts.update(
        wave=wave.identity.id,
        due=wave.identity.due,
        at_once=wave.selection.at_once,
        to_begin=tuple(each.subject for each in wave.waiting),
        outcomes=worst_first(wave.outcomes.values()),
        left_out=wave.selection.left_out,
        stopped=wave.stopped,
    )


def _warn(run: Run, code: str, message: str, hint: str = "bring the audit store back") -> None:
    run.findings.append(
        Finding(
            code=code, severity=Severity.WARNING, message=message, hint=hint, subject=run.identity.subject
        )
    )


def _span(span: timedelta) -> str:
    return f"{span.total_seconds():g} s"
