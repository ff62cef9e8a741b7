"""What `pgbackrest info` says, as models: unknown fields are ignored, a missing one is an error here."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pgvigil.errors import ToolFailed

BackupType = Literal["full", "diff", "incr"]

# pgbackrest src/command/info/info.c
STANZA_OK = 0
STANZA_MISSING_PATH = 1
STANZA_NO_BACKUP = 2
STANZA_MISSING_DATA = 3


class _Foreign(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Status(_Foreign):
    """A numbered status and pgBackRest's words for it."""

    code: int
    message: str


class _Range(_Foreign):
    start: str
    stop: str


class _WalRange(_Foreign):
    """First and last WAL segment; a backup taken offline has neither."""

    start: str | None = Field(default=None, pattern="^[0-9A-F]{24}$")
    stop: str | None = Field(default=None, pattern="^[0-9A-F]{24}$")


class _Stamps(_Foreign):
    start: AwareDatetime
    stop: AwareDatetime


class _RepositorySize(_Foreign):
    size: int = 0
    delta: int = 0


class _Size(_Foreign):
    size: int
    delta: int
    repository: _RepositorySize = _RepositorySize()


class _Database(_Foreign):
    id: int
    repo_key: int = Field(alias="repo-key")


class _Named(_Foreign):
    name: str


class _Tablespace(_Foreign):
    oid: int


class _Detail(_Foreign):
    label: str
    error_list: tuple[str | _Named, ...] = Field(default=(), alias="error-list")
    tablespace: tuple[_Tablespace, ...] | None = None


class _StanzaDetail(_Foreign):
    name: str
    backup: tuple[_Detail, ...] = ()


_DETAILS = TypeAdapter(tuple[_StanzaDetail, ...])


class Backup(_Foreign):
    """One backup as its repository lists it; times are UTC, sizes bytes."""

    label: str
    type: BackupType
    prior: str | None = None
    reference: tuple[str, ...] | None = None
    archive: _WalRange
    lsn: _Range | None = None
    timestamp: _Stamps
    database: _Database
    info: _Size
    error: bool | None = None
    annotation: dict[str, str] | None = None

    @property
    def repo(self) -> int:
        """The key of the repository that holds it."""
        return self.database.repo_key

    @property
    def full_label(self) -> str:
        """The label of the full backup that its chain begins with."""
        return self.label.split("_", 1)[0]

    @property
    def timeline(self) -> int:
        """The timeline on which it ended; 0 for a backup taken offline."""
        return int((self.archive.stop or "0")[:8], 16)

    def note(self, key: str) -> str:
        """Return an annotation, or nothing."""
        return (self.annotation or {}).get(key, "")


class _History(_Foreign):
    id: int
    repo_key: int = Field(alias="repo-key")
    system_id: int = Field(alias="system-id")
    version: str


class ArchiveRange(_Foreign):
    """An archive id such as 15-1; min and max are only the lexical ends of what is there."""

    id: str
    database: _Database
    min: str | None = None
    max: str | None = None


class RepositoryStatus(_Foreign):
    """One repository of a stanza."""

    key: int
    cipher: str = "none"
    status: Status


class _Held(_Foreign):
    held: bool = False


class _Locks(_Foreign):
    backup: _Held = _Held()


class _StanzaStatus(Status):
    lock: _Locks = _Locks()


class StanzaInfo(_Foreign):
    """All that one stanza's repositories say of themselves."""

    name: str
    archive: tuple[ArchiveRange, ...] = ()
    backup: tuple[Backup, ...] = ()
    db: tuple[_History, ...] = ()
    repo: tuple[RepositoryStatus, ...] = ()
    status: _StanzaStatus

    def backups(self, repo: int) -> tuple[Backup, ...]:
        """Return one repository's backups, oldest first."""
        return tuple(sorted((b for b in self.backup if b.repo == repo), key=lambda b: b.timestamp.stop))

    def archive_id(self, backup: Backup) -> str:
        """Return the archive id, such as 15-1, in which a backup's WAL lies."""
        history = self.history(backup.repo, backup.database.id)
        return f"{history.version}-{history.id}"

    def history(self, repo: int, db_id: int | None = None) -> _History:
        """Return a repository's entry for a database id, or its newest."""
        entries = [h for h in self.db if h.repo_key == repo and db_id in (None, h.id)]
        if not entries:
            raise ToolFailed(
                f"stanza '{self.name}', repository {repo}: info names no database {db_id or ''}".rstrip(),
                hint="compare archive.info and backup.info; 'pgbackrest stanza-upgrade' may be due",
            )
        return max(entries, key=lambda h: h.id)


def read_info(text: bytes, stanza: str) -> StanzaInfo:
    """Parse the JSON of `info --stanza`; a stanza that is not in it has status code 1, as pgBackRest has."""
    for entry in _load(text, list):
        if isinstance(entry, dict) and entry.get("name") == stanza:
            return _validate(entry)
    return StanzaInfo(
        name=stanza, status=_StanzaStatus(code=STANZA_MISSING_PATH, message="missing stanza path")
    )


def read_page_errors(text: bytes, stanza: str, label: str) -> tuple[str, ...]:
    """Return the source files with page checksum errors from `info --set`: names, or objects with one."""
    return tuple(
        item if isinstance(item, str) else item.name
        for backup in _details(text, stanza, label)
        for item in backup.error_list
    )


def read_tablespaces(text: bytes, stanza: str, label: str) -> tuple[int, ...]:
    """Return the OIDs of a backup's tablespaces from `info --set`."""
    return tuple(each.oid for backup in _details(text, stanza, label) for each in backup.tablespace or ())


def _details(text: bytes, stanza: str, label: str) -> list[_Detail]:
    try:
        entries = _DETAILS.validate_python(_load(text, list))
    except ValidationError as error:
        raise _unreadable("info --set", error) from error
    return [
        backup
        for entry in entries
        if entry.name == stanza
        for backup in entry.backup
        if backup.label == label
    ]


class RepositoryFile(_Foreign):
    """One entry of `repo-ls`; `time` is the store's."""

    type: Literal["file", "path", "link", "special"]
    size: int = 0
    time: AwareDatetime = datetime.fromtimestamp(0, tz=UTC)


def read_listing(text: bytes) -> dict[str, RepositoryFile]:
    """Parse `repo-ls` JSON without its `.` entry; a path that does not exist is an empty listing."""
    entries = _load(text, dict)
    try:
        return {name: RepositoryFile.model_validate(item) for name, item in entries.items() if name != "."}
    except ValidationError as error:
        raise _unreadable("repo-ls", error) from error


def _load(text: bytes, kind: type) -> Any:
    try:
        # Names of files stand in it as the bytes that they are, and need be neither UTF-8 nor printable.
        data = json.loads(text.decode(errors="surrogateescape"), strict=False)
    except (ValueError, RecursionError) as error:
        raise ToolFailed(
            f"pgbackrest did not answer in JSON: {text[:80]!r}",
            hint="a command prefix or login script may write to standard output",
        ) from error
    if not isinstance(data, kind):
        raise ToolFailed(f"pgbackrest answered with {type(data).__name__}, expected {kind.__name__}")
    return data


def _validate(entry: dict[str, Any]) -> StanzaInfo:
    try:
        return StanzaInfo.model_validate(entry)
    except ValidationError as error:
        raise _unreadable("info", error) from error


def _unreadable(command: str, error: ValidationError) -> ToolFailed:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return ToolFailed(
        f"pgbackrest {command} lacks or garbles '{where}': {fault['msg']}",
        hint="this pgBackRest version may be newer than those tested: 2.45 to 2.59",
    )
