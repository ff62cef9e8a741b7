"""What a person sees in the terminal: one table or one page per command, calm colours, no decoration."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from pgvigil.pages import markdown
from pgvigil.reports import facts
from pgvigil.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from deployments.approval import Waiting
    from pgvigil.alarmtest import Outcome, Rehearsal
    from pgvigil.audit import ChainReport, RunRecord, RunSummary
    from pgvigil.backfill.steering import Shown
    from pgvigil.doctor import Diagnosis
    from pgvigil.reports import Report
    from pgvigil.status import ProofStatus
    from pgvigil.waves.selection import Selection

_PICTURE = re.compile(r"!\[([^\]]*)\]\(data:[^)]*\)")

_COLOUR = {
    "verified": "green",
    "refuted": "red",
    "failing": "red",
    "inconclusive": "yellow",
    "stale": "yellow",
    "unproven": "yellow",
    "never": "yellow",
    "found": "green",
    "silent": "green",
    "missed": "red",
    "alarmed": "red",
    "unknown": "yellow",
    "lost": "yellow",
}


def as_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(facts(value), indent=2, ensure_ascii=False))  # noqa: T201 - this is the terminal


def report(found: Report) -> None:
    """Print a report as the page that the UI and the report store have as well."""
    page = _PICTURE.sub(r"(picture: \1, among the evidence)", markdown(found))
    _console().print(Markdown(page))


def statuses(found: Sequence[ProofStatus]) -> None:
    """Print each proof's state, worst first."""
    rows = ((_mark(s.state), s.subject, s.flow, s.proof, _age(s.age), s.reason) for s in found)
    _print(("state", "subject", "flow", "proof", "age", "why"), rows)


def questions(found: Sequence[Waiting]) -> None:
    """Print each waiting run with what it asks."""
    if not found:
        print("no run waits for a person")  # noqa: T201 - this is the terminal
    for each in found:
        until = f", until {each.until:%Y-%m-%d %H:%M} UTC" if each.until else ""
        print(f"{each.run_id}  {visible(each.name)}{until}")  # noqa: T201 - this is the terminal
        _console().print(Markdown(each.question))


def runs(found: Sequence[RunSummary]) -> None:
    """Print one line per run, newest first."""
    if not found:
        print("no run is on record")  # noqa: T201 - as above
        return
    rows = (
        (
            f"{r.started_at:%Y-%m-%d %H:%M:%S}",
            r.flow,
            r.subject,
            _mark(r.verdict or r.state),
            r.actor,
            str(r.run_id),
        )
        for r in found
    )
    _print(("started (UTC)", "flow", "subject", "result", "by", "run"), rows)


def run_record(found: RunRecord) -> None:
    """Print a run and all its events in order."""
    run = found.run
    head = f"{run.flow} on {run.subject} by {run.actor}: {run.headline or run.state}"
    _console().print(visible(head), markup=False)
    rows = (
        (str(e.seq), f"{e.at:%Y-%m-%d %H:%M:%S}", e.kind, e.step, e.detail.get("result", ""), e.hash[:12])
        for e in found.events
    )
    _print(("seq", "at (UTC)", "event", "step", "result", "hash"), rows)


def chain(found: ChainReport) -> None:
    """Say whether the chain holds, or where it is broken first."""
    if found.fault:
        fault = found.fault
        line = f"broken at {fault.seq}: {fault.what}; expected {fault.expected}, found {fault.actual}"
        _console().print(line, style="red", markup=False, soft_wrap=True)
    elif not found.anchors:
        line = f"inconclusive: {found.length} links follow one another, but no anchor outside the store says "
        line += "that none is missing (hint: check audit.reports; each run leaves an anchor there)"
        _console().print(line, style="yellow", markup=False, soft_wrap=True)
    else:
        text = (
            f"verified: {found.length} events in one chain, {found.anchors} anchors outside the store agree"
        )
        _console().print(text, style="green", soft_wrap=True)


def diagnoses(found: Sequence[Diagnosis]) -> None:
    """Print each thing that was looked at, with its cure."""
    _print(
        ("verdict", "subject", "what", "found", "what to do"),
        ((_mark(d.verdict), d.subject, d.id, d.message, d.hint) for d in found),
    )


def damages(found: Sequence[dict[str, str]]) -> None:
    """Print each damage that the alarm test knows."""
    keys = ("name", "what", "flow", "expected")
    _print(("name", "damage", "flow", "expected"), (tuple(each[key] for key in keys) for each in found))


def outcome(found: Outcome) -> None:
    """Print one case as it ends, for who waits."""
    print(f"{found.state}: {found.name} ({found.flow}), {found.seconds} s", flush=True)  # noqa: T201 - as above


def rehearsal(found: Rehearsal) -> None:
    """Print what was tried: damage, expected finding, what was told, time; then the verdict."""
    rows = (
        (_mark(o.state), o.name, o.what, o.flow, o.expected or "silence", o.told, f"{o.seconds:.1f} s")
        for o in found.outcomes
    )
    _print(("result", "name", "damage", "flow", "expected", "told", "time"), rows)
    counted = Counter(outcome.state for outcome in found.outcomes)
    told = ", ".join(f"{count} {state}" for state, count in counted.items())
    print(f"{found.verdict} on {found.subject}: {told}")  # noqa: T201 - as above


def backfill(found: Shown) -> None:
    """Print how a backfill stands, then its rows in quarantine."""
    rows = [
        ("backfill", f"{found.backfill} of {found.database}"),
        (
            "state",
            found.state + (f", by {found.wanted_by}" if found.state in {"paused", "cancelled"} else ""),
        ),
        ("runner", found.runner or "none"),
        ("progress", str(found.progress or "none yet")),
        ("changed limits", found.overrides.model_dump_json(exclude_none=True)),
    ]
    _print(("what", "value"), rows)
    if found.quarantined:
        _print(
            ("table", "key", "SQLSTATE", "message"),
            ((q.table, ", ".join(q.key), q.sqlstate, q.message) for q in found.quarantined),
        )


def waves(found: Mapping[str, Selection]) -> None:
    """Print whom each pipeline's wave covers, and whom it leaves out, with why."""
    rows = (
        (
            pipeline,
            str(each.at_once),
            ", ".join(member.subject for member in each.members) or "nobody",
            "; ".join(f"{left.subject}: {left.reason}" for left in each.left_out) or "nobody",
        )
        for pipeline, each in found.items()
    )
    _print(("wave", "at once", "covers", "leaves out"), rows)


def changes(found: Sequence[str], *, dry_run: bool) -> None:
    """Print what a deploy changed, or would."""
    if not found:
        print("nothing to change: the server is as prefect.yaml and the fleet file say")  # noqa: T201 - as above
    for text in found:
        print(visible(f"would {text}" if dry_run else f"done: {text}"))  # noqa: T201 - as above


def _console() -> Console:
    """Make the terminal; into a file or a pipe, lines are long enough to keep addresses whole."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 180)


def _print(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in head:
        table.add_column(name, overflow="fold", no_wrap=name in {"run", "state", "result", "verdict"})
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(visible(str(cell))) for cell in row))
    _console().print(table)


def _mark(state: str) -> Text:
    return Text(str(state), style=_COLOUR.get(str(state), ""))


def _age(age: timedelta | None) -> str:
    if age is None:
        return ""
    hours = age.total_seconds() / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"
