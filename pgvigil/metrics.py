"""`pgvigil status` as metrics, for Prometheus and whatever reads its text format."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from pgvigil.errors import ConfigError
from pgvigil.reports import Verdict
from pgvigil.status import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime, timedelta
    from pathlib import Path

    from pgvigil.status import ProofStatus

_PROOF = ("subject", "flow", "proof")


def exposition(statuses: Sequence[ProofStatus]) -> str:
    """Render the states in Prometheus' text format; ages and times in seconds.

    What is not known has no sample: no age of what was never verified, no limit of what does not age. The
    time of the look is a metric too, so that a file that nobody renews is seen as old.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Statuses(statuses))
    return generate_latest(registry).decode()


def replace(file: Path, text: str) -> None:
    """Put a text in a file's place at once, readable for all; whoever reads sees the old one or the new.

    Raises ConfigError when it cannot be written.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o644)
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(
            f"cannot write '{file}': {error.strerror}",
            hint="name a file in a directory that exists and that this user may write",
        ) from error


class _Statuses(Collector):
    def __init__(self, statuses: Sequence[ProofStatus]) -> None:
        self.statuses = statuses

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        looked = GaugeMetricFamily("pgvigil_status_timestamp_seconds", "When the audit log was looked at.")
        looked.add_metric((), time.time())
        yield looked
        yield self._which("pgvigil_proof_state", "1 for the state that a proof is in.", "state", State)
        yield self._which(
            "pgvigil_last_run_verdict", "1 for what the last run said of a proof.", "verdict", Verdict
        )
        yield self._seconds(
            "pgvigil_proof_verified_timestamp_seconds", "When a proof was last verified.", "verified_at"
        )
        yield self._seconds("pgvigil_proof_age_seconds", "How old a proof was at the look.", "age")
        yield self._seconds("pgvigil_proof_max_age_seconds", "The age at which it is too old.", "max_age")
        yield self._seconds("pgvigil_last_run_timestamp_seconds", "When the last run ended.", "last_run_at")

    def _which(self, name: str, told: str, label: str, words: type[State | Verdict]) -> GaugeMetricFamily:
        """Make a sample of every word, 1 for the one that holds; before any run, no verdict holds."""
        family = GaugeMetricFamily(name, told, labels=(*_PROOF, label))
        for status in self.statuses:
            holds = status.state if words is State else status.last_verdict
            for word in words:
                family.add_metric((*_labels(status), word), word is holds)
        return family

    def _seconds(self, name: str, told: str, field: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, told, labels=_PROOF)
        for status in self.statuses:
            value: datetime | timedelta | None = getattr(status, field)
            if value is not None:
                family.add_metric(_labels(status), _number(value))
        return family


def _labels(status: ProofStatus) -> tuple[str, ...]:
    return status.subject, status.flow, status.proof


def _number(value: datetime | timedelta) -> float:
    return value.timestamp() if hasattr(value, "timestamp") else value.total_seconds()
