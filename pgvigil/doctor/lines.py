"""One line of the doctor per thing looked at, and the rule by which looking becomes a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pgvigil.errors import Busy, PgvigilError, PreconditionFailed
from pgvigil.redaction import redactor
from pgvigil.reports import Check, Frozen, Verdict, conclude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Subject = TypeVar("Subject")

AT_ONCE = 8  # looks side by side, each with a session of its own
_NO_CURE = "read the message and the log of the program that it names, then run 'pgvigil doctor' again"


class Diagnosis(Frozen):
    """One thing that a flow needs: the fact, and what to do unless it is verified.

    `required=False`: that it could not be looked at is told, but decides nothing.
    """

    id: str
    subject: str
    verdict: Verdict
    message: str
    hint: str = ""
    required: bool = True


@dataclass(frozen=True)
class Look(Generic[Subject]):
    """How one line comes to be: `look` returns the fact, or raises what is wrong.

    The errors in `refutes` say that the thing is broken, all others that it could not be looked at. It is
    not looked at either unless every line in `needs` is verified.
    """

    id: str
    look: Callable[[Subject], str]
    needs: tuple[str, ...] = ()
    refutes: type[PgvigilError] = PreconditionFailed
    required: bool = True


def look_at(
    name: str, subject: Subject, looks: Sequence[Look[Subject]], before: Iterable[Diagnosis] = ()
) -> Iterator[Diagnosis]:
    """Look in order and yield one line for each; never raises. Lines from `before` may be needed as well."""
    verified = {line.id for line in before if line.verdict is Verdict.VERIFIED}
    for look in looks:
        missing = next((need for need in look.needs if need not in verified), "")
        line = _skip(name, look, missing) if missing else _look(name, subject, look)
        if line.verdict is Verdict.VERIFIED:
            verified.add(look.id)
        yield line


def _skip(name: str, look: Look[Subject], need: str) -> Diagnosis:
    return Diagnosis(
        id=look.id,
        subject=name,
        verdict=Verdict.INCONCLUSIVE,
        message=f"not looked at, because {need} is not verified",
        hint=f"cure {need} first",
        required=look.required,
    )


def _look(name: str, subject: Subject, look: Look[Subject]) -> Diagnosis:
    try:
        return Diagnosis(id=look.id, subject=name, verdict=Verdict.VERIFIED, message=look.look(subject))
    except PgvigilError as error:
        # Who is busy is not broken; it only cannot be looked at now.
        is_broken = isinstance(error, look.refutes) and not isinstance(error, Busy)
        return told(look.id, name, error, is_broken=is_broken, required=look.required)
    except Exception as error:  # a defect of one look must not cost the others
        unforeseen = PgvigilError(f"cannot be looked at: {type(error).__name__}: {error}")
        return told(look.id, name, unforeseen, is_broken=False, required=look.required)


def told(
    line: str, subject: str, error: PgvigilError, *, is_broken: bool = False, required: bool = True
) -> Diagnosis:
    """Make the line of an error, without secrets."""
    mask = redactor()
    return Diagnosis(
        id=line,
        subject=subject,
        verdict=Verdict.REFUTED if is_broken else Verdict.INCONCLUSIVE,
        message=mask(error.message),
        hint=mask(error.hint) or _NO_CURE,
        required=required or is_broken,
    )


def verdict(diagnoses: Sequence[Diagnosis]) -> Verdict:
    """Conclude as a report does: one refuted refutes, nothing looked at proves nothing."""
    return conclude([Check(id=line.id, verdict=line.verdict, required=line.required) for line in diagnoses])
