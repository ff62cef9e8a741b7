"""Which alarms the states of proofs, partitions and backfills call for: decided from facts alone."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from pgvigil.reports import Finding, Frozen, Severity
from pgvigil.status import ProofStatus, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pgvigil.partitions.facts import Horizon
    from pgvigil.policies.alarms import AlarmPolicy

Kind = Literal["stale", "failing", "horizon", "waiting"]

_HINTS: dict[Kind, str] = {
    "stale": "look why no run has proven it since: docs/alarms.md, 'stale proof'",
    "failing": "it was refuted and nothing has proven it since: docs/alarms.md, 'refuted'",
    "horizon": "let roll_partitions run, or look why it does not: docs/alarms.md, 'horizon short'",
    "waiting": "'pgvigil backfill show' says for what; docs/alarms.md, 'backfill waiting'",
}
_RENEW = timedelta(days=1)
_SHARE = 3  # of what the policy wants ahead, this part must be left


class Alarm(Frozen):
    """One thing that people should hear of; `told_at` is None until Prefect has taken its event."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # the log outlives the version that wrote it

    kind: Kind
    subject: str
    what: str
    message: str
    since: datetime
    told_at: datetime | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same alarm at the next look."""
        return self.kind, self.subject, self.what

    @property
    def hint(self) -> str:
        """What to do."""
        return _HINTS[self.kind]

    def finding(self) -> Finding:
        """Tell it as a finding."""
        return Finding(
            code=f"alarm-{self.kind}",
            severity=Severity.WARNING,
            message=self.message,
            hint=self.hint,
            subject=self.subject,
        )


class Sighting(Frozen):
    """When the watch first saw a proof in a state that may become an alarm."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    subject: str
    flow: str
    proof: str
    state: State
    since: datetime


class Memory(Frozen):
    """What earlier watches left for this one, and when."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    alarms: tuple[Alarm, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    at: datetime | None = Field(default=None, exclude=True)

    def renewed(
        self, alarms: tuple[Alarm, ...], sightings: tuple[Sighting, ...], now: datetime
    ) -> Memory | None:
        """Return what is to be remembered; None while the same is on record, which is renewed once a day.

        Watches are many: a fleet whose drills have not all had their turn would fill the log with them.
        """
        is_same = (self.alarms, self.sightings) == (alarms, sightings)
        if is_same and self.at and now - self.at < _RENEW:
            return None
        return Memory(alarms=alarms, sightings=sightings)


class Reach(Frozen):
    """How far a table's partitions reached when last looked at, and how many its policy wants ahead."""

    subject: str
    ends_at: datetime
    partition_seconds: float
    table: str
    ahead: int

    @classmethod
    def of(cls, subject: str, horizon: Horizon, ahead: int) -> Reach:
        """Join what a roll saw with what the policy wants now."""
        return cls(subject=subject, ahead=ahead, **horizon.model_dump())


class Wait(Frozen):
    """A backfill that waits, and for what."""

    subject: str
    backfill: str
    waiting_for: str
    since: datetime


class Facts(Frozen):
    """What one look has found."""

    now: datetime
    statuses: tuple[ProofStatus, ...] = ()
    reaches: tuple[Reach, ...] = ()
    waits: tuple[Wait, ...] = ()
    memory: Memory = Memory()


class Judgement(Frozen):
    """The alarms there are, those of them to be told now, those that are over, and what to remember."""

    alarms: tuple[Alarm, ...] = ()
    due: tuple[Alarm, ...] = ()
    over: tuple[Alarm, ...] = ()
    sightings: tuple[Sighting, ...] = ()


def judge(facts: Facts, policy: AlarmPolicy) -> Judgement:
    """Decide the alarms; one that lasts is told again when `remind` has passed since it was told."""
    known = {alarm.key: alarm for alarm in facts.memory.alarms}
    sightings = tuple(_sightings(facts))
    found = [*_of_proofs(facts.statuses, sightings, policy, facts.now)]
    found += [*_of_reaches(facts.reaches, facts.now), *_of_waits(facts.waits, policy, facts.now)]
    alarms = tuple(_kept(alarm, known.pop(alarm.key, None)) for alarm in found)
    due = tuple(a for a in alarms if a.told_at is None or facts.now - a.told_at >= policy.remind)
    over = tuple(alarm for alarm in known.values() if alarm.told_at is not None)
    return Judgement(alarms=alarms, due=due, over=over, sightings=sightings)


def told(alarms: Sequence[Alarm], due: Iterable[Alarm], now: datetime) -> tuple[Alarm, ...]:
    """Note that those which were due have been told."""
    keys = {alarm.key for alarm in due}
    return tuple(a.model_copy(update={"told_at": now}) if a.key in keys else a for a in alarms)


def _kept(alarm: Alarm, before: Alarm | None) -> Alarm:
    return alarm.model_copy(update={"since": before.since, "told_at": before.told_at}) if before else alarm


def _sightings(facts: Facts) -> Iterator[Sighting]:
    """Keep since when each proof is missing or refuted; of what is proven nothing need be remembered."""
    known = {(s.subject, s.flow, s.proof, s.state): s.since for s in facts.memory.sightings}
    for status in facts.statuses:
        state = State.NEVER if status.state is State.UNPROVEN else status.state
        if state in {State.NEVER, State.FAILING}:
            since = known.get((status.subject, status.flow, status.proof, state), facts.now)
            yield Sighting(
                subject=status.subject, flow=status.flow, proof=status.proof, state=state, since=since
            )


def _of_proofs(
    statuses: Iterable[ProofStatus], sightings: Iterable[Sighting], policy: AlarmPolicy, now: datetime
) -> Iterator[Alarm]:
    """A proof that was never given is stale once the watch has waited for it as long as it may be old.

    A refuted one was told when its run ended; here it is told when it stays so.
    """
    since = {(s.subject, s.flow, s.proof): now - s.since for s in sightings}
    for status in statuses:
        waited = since.get((status.subject, status.flow, status.proof), timedelta())
        is_missing = status.state in {State.NEVER, State.UNPROVEN}
        if status.state is State.STALE or (
            is_missing and status.max_age is not None and waited >= status.max_age
        ):
            yield _alarm("stale", status.subject, status.proof, f"is not proven: {status.reason}", now)
        elif status.state is State.FAILING and waited >= policy.remind:
            yield _alarm("failing", status.subject, status.proof, f"stays refuted: {status.reason}", now)


def _of_reaches(reaches: Iterable[Reach], now: datetime) -> Iterator[Alarm]:
    for reach in reaches:
        wanted = timedelta(seconds=reach.partition_seconds * reach.ahead)
        if reach.ends_at - now < wanted / _SHARE:
            message = (
                f"has partitions until {reach.ends_at:%Y-%m-%d %H:%M} UTC only, "
                f"expected {reach.ahead} ahead ({wanted.days} days); after that, rows are refused"
            )
            yield _alarm("horizon", reach.subject, reach.table, message, now)


def _of_waits(waits: Iterable[Wait], policy: AlarmPolicy, now: datetime) -> Iterator[Alarm]:
    for wait in waits:
        if now - wait.since >= policy.backfill_waits:
            message = f"waits since {wait.since:%Y-%m-%d %H:%M} UTC for {wait.waiting_for}"
            yield _alarm("waiting", wait.subject, wait.backfill, message, now)


def _alarm(kind: Kind, subject: str, what: str, message: str, now: datetime) -> Alarm:
    return Alarm(kind=kind, subject=subject, what=what, message=f"{what} of {subject} {message}", since=now)
