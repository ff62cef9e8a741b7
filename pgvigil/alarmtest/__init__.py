"""The alarm test: every known damage is made to a copy, and the flow that must notice it is run on that."""

from pgvigil.alarmtest.borrowed import borrowed_stage
from pgvigil.alarmtest.damages import DAMAGES, Damage
from pgvigil.alarmtest.rehearsal import Outcome, Rehearsal, State, choose, rehearse
from pgvigil.alarmtest.stage import Stage, sandbox_stage

__all__ = [
    "DAMAGES",
    "Damage",
    "Outcome",
    "Rehearsal",
    "Stage",
    "State",
    "borrowed_stage",
    "choose",
    "rehearse",
    "sandbox_stage",
]
