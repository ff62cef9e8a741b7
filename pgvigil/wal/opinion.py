"""The second opinion: what `pgbackrest verify` says, read from its text, never from its exit code."""

from __future__ import annotations

import re

from pydantic import Field

from pgvigil.reports import Frozen

_STATUS = re.compile(r"^\s*status: (ok|error)", re.MULTILINE)
_ITEM = re.compile(
    r"(?P<kind>archiveId|backup): (?P<name>\S+?),(?: status: (?P<status>[^,\n]+),)?"
    r"[^\n]*?checked: (?P<checked>\d{1,18}), total valid[^\n:]*: (?P<valid>\d{1,18})\b"
    r"(?:\n\s*missing: (?P<missing>\d+), checksum invalid: (?P<checksum>\d+), "
    r"size invalid: (?P<size>\d+), other: (?P<other>\d+))?"
)
_BAD_BACKUP = re.compile(r"backup: (\S+), status: (invalid|manifest missing)")


class Opinion(Frozen):
    """What verify found: whether it looked at anything, bad WAL files per archive id, bad backups."""

    is_told: bool
    bad_wal: dict[str, int] = Field(default_factory=dict)
    bad_backups: dict[str, str] = Field(default_factory=dict)
    checked: int = 0

    @property
    def is_good(self) -> bool:
        """Whether it looked, and found nothing bad."""
        return self.is_told and not self.bad_wal and not self.bad_backups

    def confirmed_by(self, later: Opinion) -> Opinion:
        """Return the later one less what it alone found: a backup or an expire beside verify makes it err."""
        return later.model_copy(
            update={
                "bad_wal": {name: bad for name, bad in later.bad_wal.items() if name in self.bad_wal},
                "bad_backups": {
                    label: status for label, status in later.bad_backups.items() if label in self.bad_backups
                },
            }
        )


def read_opinion(text: str) -> Opinion:
    """Parse the text; more checked than valid is bad, whatever the four counters say."""
    items = list(_ITEM.finditer(text))
    archives = [item for item in items if item["kind"] == "archiveId"]
    return Opinion(
        is_told=bool(_STATUS.search(text)) and bool(items),
        bad_wal={
            item["name"]: int(item["checked"]) - int(item["valid"])
            for item in archives
            if int(item["checked"]) > int(item["valid"])
        },
        bad_backups={match[1]: match[2] for match in _BAD_BACKUP.finditer(text)},
        checked=sum(int(item["checked"]) for item in items),
    )
