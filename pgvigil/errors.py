"""Every error that pgvigil raises, and the one decision whether to try again.

PgvigilError
├── ConfigError                 what was asked for cannot be: fleet file, subject, parameter, secret
├── PreconditionFailed          refusal to act: the world is not as the step needs it
│   ├── Busy                    somebody else holds the stanza
│   │   └── Fenced              another runner has taken the work over
│   └── VersionUnsupported
├── ToolFailed                  a program did not do its work
│   ├── CommandNotFound
│   ├── ProcessKilled           ended by a signal, never to be mistaken for finished
│   ├── DeadlineExceeded · Stalled · ProcessLost
│   └── PgBackRestFailed        carries pgBackRest's own exit code
├── DatabaseFailed              carries the SQLSTATE
├── StorageFailed               carries the S3 error code
│   └── ObjectMissing · ObjectExists
├── SignalFailed                the dead-man's signal was not taken
└── EvidenceError               the audit log or the report store cannot take what must be kept
    └── ChainBroken
"""

from __future__ import annotations

from typing import Any, ClassVar

from pgvigil.redaction import masked, redactor


class PgvigilError(Exception):
    """Root of all errors: a lower-case fact, a hint that says what to do, and the facts as data.

    An error goes into logs, states, checks and reports, so it holds no secret from its making on. `code` is
    stable and documented; `transient` says whether the same call may succeed later.
    """

    code: ClassVar[str] = "PGV-000"
    transient: bool = False

    def __init__(self, message: str = "", *, hint: str = "", **context: Any) -> None:
        mask = redactor()
        self.message = mask(message)
        self.hint = mask(hint)
        self.context: dict[str, Any] = masked(context, mask)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.context)


def _rebuild(kind: type[PgvigilError], message: str, hint: str, context: dict[str, Any]) -> PgvigilError:
    return kind(message, hint=hint, **context)


class ConfigError(PgvigilError):
    """What was asked for cannot be: the fleet file, a name, a parameter or a secret is wrong."""

    code = "PGV-100"


class PreconditionFailed(PgvigilError):
    """The world is not as the step needs it, so nothing was changed."""

    code = "PGV-200"


class Busy(PreconditionFailed):
    """Somebody else works on the same thing; the message names the owner."""

    code = "PGV-201"


class Fenced(Busy):
    """Another runner has taken the work over: this one can commit no more."""

    code = "PGV-208"


class VersionUnsupported(PreconditionFailed):
    """A program or server is outside the range that was tested."""

    code = "PGV-202"


class ToolFailed(PgvigilError):
    """A program did not do its work; `context` has its argv (redacted) and the end of its output."""

    code = "PGV-300"


class CommandNotFound(ToolFailed):
    """The program, or the user to run it as, does not exist on this host."""

    code = "PGV-301"


class DeadlineExceeded(ToolFailed):
    """The program was ended because its time was over."""

    code = "PGV-302"


class Stalled(ToolFailed):
    """The program was ended because it neither wrote, read nor computed for too long."""

    code = "PGV-303"
    transient = True


class ProcessKilled(ToolFailed):
    """The program was ended by a signal: its work is in an unknown state, never finished."""

    code = "PGV-304"


class ProcessLost(ToolFailed):
    """The program's keeper died, so nobody saw how the program ended."""

    code = "PGV-305"


class PgBackRestFailed(ToolFailed):
    """The program pgBackRest ended with one of its own error codes; `context["exit_code"]` has it."""

    code = "PGV-310"

    @property
    def exit_code(self) -> int:
        """The code with which pgBackRest ended, 25 to 125."""
        return int(self.context.get("exit_code", 0))

    @property
    def transient(self) -> bool:  # type: ignore[override]
        """Whether the code names a passing condition: protocol, host, database or service away."""
        return self.exit_code in _TRANSIENT_PGBACKREST


class DatabaseFailed(PgvigilError):
    """PostgreSQL refused or could not be reached; `context["sqlstate"]` has the class of the failure."""

    code = "PGV-400"

    @property
    def sqlstate(self) -> str:
        """Five characters, or empty when no server answered."""
        return str(self.context.get("sqlstate") or "")

    @property
    def transient(self) -> bool:  # type: ignore[override]
        """Whether the SQLSTATE names a passing condition; no answer at all is one as well."""
        return (
            bool(self.context.get("unreachable"))
            or self.sqlstate in _TRANSIENT_SQLSTATE
            or self.sqlstate[:2] in _TRANSIENT_SQLSTATE_CLASS
        )


class StorageFailed(PgvigilError):
    """The object store refused or could not be reached; `context["s3_code"]` has its word for it."""

    code = "PGV-500"

    @property
    def transient(self) -> bool:  # type: ignore[override]
        """Whether the store's code names a passing condition."""
        return self.context.get("s3_code") in _TRANSIENT_S3


class ObjectMissing(StorageFailed):
    """The object or the bucket is not there."""

    code = "PGV-501"


class ObjectExists(StorageFailed):
    """A conditional write found the key taken; nothing was overwritten."""

    code = "PGV-502"


class SignalFailed(PgvigilError):
    """Nobody outside took the sign that pgvigil is alive; `context["status"]` has HTTP's word for it."""

    code = "PGV-700"

    @property
    def transient(self) -> bool:  # type: ignore[override]
        """Whether the service was away; one that says no will say so again."""
        return int(self.context.get("status") or 500) >= 500


class EvidenceError(PgvigilError):
    """Evidence cannot be kept, so nothing may be changed."""

    code = "PGV-600"


class AuditUnreachable(EvidenceError):
    """The audit store does not answer; events go to the spool until it does."""

    code = "PGV-601"
    transient = True


class ChainBroken(EvidenceError):
    """The audit log was altered; `context["seq"]` names the first broken link."""

    code = "PGV-602"


def is_transient(error: BaseException) -> bool:
    """Decide whether the same call may succeed later; whoever retries asks here and nowhere else."""
    return isinstance(error, PgvigilError) and error.transient


def interruption(error: BaseException) -> BaseException | None:
    """Return what ended the process's work, Ctrl-C or SIGTERM, if an error is that or came of handling it."""
    step: BaseException | None = error
    while isinstance(step, Exception | GeneratorExit):
        step = step.__context__
    return step


# pgBackRest build/error.yaml. 50 (lock held) is not here: its owner may work for hours, so it is Busy.
# 82 (WAL not archived in time) is retried after the pre-flight has looked at the archiver again.
_TRANSIENT_PGBACKREST = frozenset({39, 41, 42, 49, 56, 82, 101, 102, 103})

# PostgreSQL appendix A: 08 connection, 40 rollback (serialization, deadlock), 53 resources.
_TRANSIENT_SQLSTATE_CLASS = frozenset({"08", "40", "53"})
# 55P03 lock not available; 57P01..57P03 shutdown, crash, cannot connect now; 25P03, 57P05 ended while idle.
_TRANSIENT_SQLSTATE = frozenset({"25P03", "55P03", "57P01", "57P02", "57P03", "57P05"})

_TRANSIENT_S3 = frozenset(
    {
        "InternalError",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "ResponseStreamingError",
        "IncompleteReadError",
        "HTTPClientError",
        "ProxyConnectionError",
        "BadDigest",  # bytes bent on the way; the store refused them
        "ConditionalRequestConflict",  # another writer at the same key at the same moment
        "429",
        "500",
        "502",
        "503",
        "504",
    }
)
