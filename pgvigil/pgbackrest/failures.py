"""pgBackRest's exit codes, what each means, and the error class that says what to do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pgvigil.errors import (
    Busy,
    CommandNotFound,
    ConfigError,
    PgBackRestFailed,
    PgvigilError,
    PreconditionFailed,
    ToolFailed,
)

if TYPE_CHECKING:
    from pgvigil.processes import Completed

LOCK_HELD = 50
STOP_FILE = 62

# pgbackrest build/error.yaml: name, and what an operator does about it.
_CODES: dict[int, tuple[str, str]] = {
    25: ("assert", "a defect of pgbackrest: report it with its log"),
    26: ("checksum", "the repository holds a damaged file: run verify-wal-archive and take a new full"),
    27: ("config", "correct pgbackrest.conf"),
    28: ("file-invalid", "a file of the repository is damaged: restore it from another repository"),
    29: ("format", "a file of the repository is damaged: restore it from another repository"),
    31: ("option-invalid", "correct the option in pgbackrest.conf"),
    32: ("option-invalid-value", "correct the option in pgbackrest.conf"),
    37: ("option-required", "complete pgbackrest.conf: the stanza's section must name its pg1-path"),
    38: ("pg-running", "stop the server first"),
    39: ("protocol", "the connection to a host or store failed: the run tries again"),
    41: ("file-open", "check owner and mode of the path, and that the store answers"),
    42: ("file-read", "check the disk or store under the path"),
    44: ("archive-mismatch", "the archive belongs to another cluster: check stanza and pg1-path"),
    45: (
        "archive-duplicate",
        "a WAL segment exists with other content: two servers archive into one stanza?",
    ),
    46: ("version-not-supported", "install a pgbackrest that supports this PostgreSQL major"),
    47: ("path-create", "check the space and the mode of the path"),
    49: ("host-connect", "check that the host or store is up and reachable from here"),
    50: ("lock-acquire", "wait for the other pgbackrest process to end"),
    51: ("backup-mismatch", "the repository belongs to another cluster: check stanza and pg1-path"),
    53: ("path-open", "check owner and mode of the path"),
    55: ("file-missing", "run 'pgbackrest stanza-create', or check path and credentials of the repository"),
    56: ("db-connect", "check that the server is up and that pgbackrest's role may connect"),
    57: ("db-query", "grant what infra/roles.sql grants to pgbackrest's role"),
    58: ("db-mismatch", "after a major upgrade run 'pgbackrest stanza-upgrade'; else check pg1-path"),
    62: ("stop-file", "run 'pgbackrest start' once you know why it was stopped"),
    63: ("term", "it was asked to end: the next run starts anew"),
    64: ("file-write", "check the free space and the mode of the path"),
    68: ("archive-command-invalid", "set archive_command to pgbackrest's archive-push for this stanza"),
    73: ("path-missing", "check that the path exists and is mounted"),
    75: ("backup-set-invalid", "choose a label that 'pgbackrest info' lists"),
    80: ("db-missing", "name the server in pgbackrest.conf (pg1-path)"),
    82: (
        "archive-timeout",
        "WAL does not reach the repository: see the server log for archive_command errors",
    ),
    87: ("archive-disabled", "set archive_mode = on and restart the server"),
    95: ("crypto", "check the repository's cipher type and passphrase"),
    101: ("service", "the store refused: check credentials, bucket and endpoint"),
    102: ("execute", "the process on the other side failed: see its log"),
    103: ("repo-invalid", "no repository could be used: see the messages above"),
    105: ("access", "the store denied access: check credentials and policy"),
    106: ("clock", "the clock went backwards: check time synchronisation"),
}

_ERROR_LINE = re.compile(r"ERROR: \[(\d{3})\]: (.*)")
# What it tried before it gave up: the reason stands there, and only the result in the error.
_WHY_LINE = re.compile(r"WARN: unable to check pg\d+: (.*)")


def failure(action: str, completed: Completed) -> PgvigilError:
    """Make the error of a pgBackRest run that ended with a code other than 0."""
    code = completed.exit_code
    told = _told(completed.tail)
    if code in {126, 127}:
        return CommandNotFound(
            f"cannot start pgbackrest to {action}: {told or 'not found on its host'}",
            hint="install pgbackrest there, or correct pgbackrest.command in the fleet file",
        )
    if code == 255:
        return ToolFailed(
            f"the command prefix failed before pgbackrest could {action}: {told}",
            hint="run the prefix by hand: host name, key, container",
        )
    name, hint = _CODES.get(code, ("unknown", "see pgbackrest's own log"))
    if _is_of_configuration(completed, told):
        return ConfigError(
            f"pgbackrest could not {action}: [{code:03}] {name}: {told}",
            hint="correct pgbackrest.config in the fleet file, or let the user that it runs as read it",
            exit_code=code,
        )
    message = f"pgbackrest could not {action}: [{code:03}] {name}: {told}"
    if code == LOCK_HELD:
        return Busy(message, hint=hint, exit_code=code)
    if code == STOP_FILE:
        return PreconditionFailed(message, hint=hint, exit_code=code)
    return PgBackRestFailed(message, hint=hint, exit_code=code, tail=list(completed.tail[-10:]))


def _is_of_configuration(completed: Completed, told: str) -> bool:
    """Tell whether the file that could not be opened is the configuration that we named."""
    named = [word.removeprefix("--config=") for word in completed.argv if word.startswith("--config=")]
    return completed.exit_code in {41, 55} and any(f"'{file}'" in told for file in named)


def _told(tail: tuple[str, ...]) -> str:
    for line in tail:
        match = _ERROR_LINE.search(line)
        if match:
            return "; ".join([match[2], *_reasons(tail)])
    spoken = [line for line in tail if line.strip()]
    return spoken[-1] if spoken else "no message"


def _reasons(tail: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(match[1] for match in map(_WHY_LINE.search, tail) if match))
