"""The alarm test itself: each damage on a scene of its own, the flow's word judged against what is due."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import computed_field

from pgvigil.alarmtest import proofs
from pgvigil.alarmtest.damages import CONTROLS, DAMAGES, Damage
from pgvigil.errors import ConfigError, PgvigilError, PreconditionFailed
from pgvigil.partitions.facts import RestoreReport
from pgvigil.reports import Frozen, Report, Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgvigil.alarmtest.damages import Flow
    from pgvigil.alarmtest.scene import Scene
    from pgvigil.alarmtest.stage import Stage


class State(StrEnum):
    """What became of one case; only a left-out one does not decide."""

    FOUND = "found"
    MISSED = "missed"
    SILENT = "silent"  # a control, of which nothing was told
    ALARMED = "alarmed"  # a control, of which something was told
    UNKNOWN = "unknown"
    LEFT_OUT = "left out"


class Outcome(Frozen):
    """One row of the table; a control is a case without damage, whose `expected` is nothing."""

    name: str
    what: str
    flow: str
    expected: str
    broke: str = ""
    state: State
    told: str = ""
    verdict: Verdict | None = None
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether the alarm did what it should."""
        return self.state in {State.FOUND, State.SILENT}


class Rehearsal(Frozen):
    """All that was tried, in its order."""

    subject: str
    outcomes: tuple[Outcome, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        """Verified: every damage was found, every control silent. Refuted: one was missed, or one was not.

        Inconclusive: some case could not be run, or nothing was found.
        """
        states = {outcome.state for outcome in self.outcomes}
        if states & {State.MISSED, State.ALARMED}:
            return Verdict.REFUTED
        return (
            Verdict.INCONCLUSIVE if State.UNKNOWN in states or State.FOUND not in states else Verdict.VERIFIED
        )


def choose(names: Sequence[str]) -> tuple[Damage, ...]:
    """Return the damages of these names, all without any; raises ConfigError for an unknown one."""
    known = {damage.name: damage for damage in DAMAGES}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"unknown damage '{name}'", hint="'pgvigil alarm-test --list' shows those there are"
            )
    return tuple(known[name] for name in names) or DAMAGES


def rehearse(
    stage: Stage, damages: Sequence[Damage], on_outcome: Callable[[Outcome], None] = lambda _: None
) -> Rehearsal:
    """Try the controls of the flows concerned, then every damage; what one case does touches no other."""
    outcomes = []
    for outcome in _cases(stage, damages):
        on_outcome(outcome)
        outcomes.append(outcome)
    return Rehearsal(subject=stage.subject, outcomes=tuple(outcomes))


def _cases(stage: Stage, damages: Sequence[Damage]) -> Iterator[Outcome]:
    due = [damage for damage in damages if not (damage.needs_sandbox and stage.is_users)]
    wanted = {damage.flow for damage in due}
    yield from (control(stage, flow) for flow in CONTROLS if flow in wanted)
    for damage in damages:
        if damage in due:
            yield try_damage(stage, damage)
        else:
            yield _outcome(damage, State.LEFT_OUT, told="made in a sandbox only, never to what is yours")


def control(stage: Stage, flow: Flow) -> Outcome:
    """Run a flow on what is whole: it must verify, and tell nothing."""
    healthy = Damage("control", "nothing is damaged", flow, "", _nothing_broken)
    began = time.monotonic()
    with stage.case(flow) as scene:
        report = proofs.run(flow, scene, lambda _: None)
    told = [f"{f.code}: {f.message}" for f in report.findings if f.severity is not Severity.INFO]
    told += [f"{c.id}: {c.actual}" for c in report.checks if c.verdict is Verdict.REFUTED]
    if report.verdict is Verdict.VERIFIED and not told:
        state = State.SILENT
    else:
        state = State.UNKNOWN if report.verdict is Verdict.INCONCLUSIVE else State.ALARMED
        told = told or [f"{c.id}: {c.actual}" for c in report.checks if c.verdict is not Verdict.VERIFIED]
    return _outcome(healthy, state, "; ".join(told), report.verdict, time.monotonic() - began)


def _nothing_broken(_: Scene) -> str:
    return ""


def try_damage(stage: Stage, damage: Damage) -> Outcome:
    """Do one damage to a fresh copy, run the flow that must notice, and judge what it says."""
    began = time.monotonic()
    broken: list[str] = []
    try:
        with stage.case(damage.flow, damage) as scene:
            report = proofs.run(damage.flow, scene, lambda struck: broken.append(damage.act(struck)))
    except PreconditionFailed as error:
        state = State.LEFT_OUT if stage.is_users else State.UNKNOWN
        return _outcome(damage, state, str(error), None, time.monotonic() - began)
    except PgvigilError as error:
        return _outcome(damage, State.UNKNOWN, str(error), None, time.monotonic() - began)
    if not broken:
        told = "; ".join(finding.message for finding in report.findings)
        return _outcome(damage, State.UNKNOWN, f"nothing was damaged; {told}", report.verdict)
    return judge(damage, broken[0], report, time.monotonic() - began)


def judge(damage: Damage, broke: str, report: Report, seconds: float) -> Outcome:
    """Say whether a report has the verdict that is due, and tells of what was broken as it should.

    A flow that could not run has missed nothing: nobody knows.
    """
    about = report.partition if isinstance(report, RestoreReport) else ""
    words = [(f.code, f"{f.message} {f.subject} {about}", f.message) for f in report.findings]
    words += [
        (check.id, f"{check.id} {check.actual} {check.detail} {about}", check.actual)
        for check in report.checks
        if check.verdict is Verdict.REFUTED
    ]
    due = [shown for name, text, shown in words if _is_called(name, damage.expected) and broke in text]
    if due and report.verdict is damage.verdict:
        state, told = State.FOUND, due[0]
    else:
        is_unable = report.verdict is Verdict.INCONCLUSIVE is not damage.verdict
        state = State.UNKNOWN if is_unable else State.MISSED
        told = "; ".join(f"{name}: {shown}" for name, _, shown in words) or "nothing"
    return _outcome(damage, state, told, report.verdict, seconds).model_copy(update={"broke": broke})


def _is_called(name: str, expected: str) -> bool:
    return name == expected or name.endswith(f".{expected}")


def _outcome(
    damage: Damage, state: State, told: str = "", verdict: Verdict | None = None, seconds: float = 0.0
) -> Outcome:
    return Outcome(
        name=damage.name,
        what=damage.what,
        flow=damage.flow,
        expected=damage.expected,
        state=state,
        told=told,
        verdict=verdict,
        seconds=round(seconds, 1),
    )
