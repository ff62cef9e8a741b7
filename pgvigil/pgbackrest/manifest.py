"""What a backup's manifest says must be in the repository for a restore."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pgvigil.errors import ToolFailed
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_SECTION = "[target:file]"
LABEL_KEY = "backup-label="
_HINT = "the manifest is damaged: verify-wal-archive says of which backups, then take a new full"


class ManifestFile(Frozen):
    """One file of the cluster: the label of the backup that stores it, and its bytes there."""

    name: str
    reference: str
    size: int
    repo_size: int | None
    bundle: int | None
    bundle_offset: int


def read_manifest(text: str) -> Iterator[ManifestFile]:
    """Yield the files of a manifest; raises ToolFailed where it cannot be read."""
    label = ""
    in_files = False
    # Only a line feed ends a line: file names may hold whatever else Unicode counts as one.
    for line in text.split("\n"):
        if line.startswith("["):
            in_files = line == FILE_SECTION
        elif line.startswith(LABEL_KEY):
            label = _read_label(line.removeprefix(LABEL_KEY))
        elif in_files and line:
            yield _read_file(line, label)


def _read_label(text: str) -> str:
    try:
        label = _parse(text)
    except ValueError:
        label = None
    if not isinstance(label, str):
        raise ToolFailed(f"a manifest calls its backup {text[:80]!r}", hint=_HINT)
    return label


def _parse(text: str) -> Any:
    """Read the JSON of one value; raises ValueError for what is none, or nested beyond reading."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _read_file(line: str, label: str) -> ManifestFile:
    try:
        name, facts = _split(line)
        return ManifestFile(
            name=name,
            reference=facts.get("reference", label),
            size=facts.get("size", 0),
            repo_size=facts.get("repo-size"),
            bundle=facts.get("bni"),
            bundle_offset=facts.get("bno", 0),
        )
    except ValueError as error:
        raise ToolFailed(
            f"the manifest of {label} has a line that cannot be read: {line[:80]!r}", hint=_HINT
        ) from error


def _split(line: str) -> tuple[str, dict[str, Any]]:
    """Part name and JSON; a name may hold any sign, so the value is the last part that is an object."""
    end = len(line)
    while (at := line.rfind("={", 0, end)) >= 0:
        try:
            return line[:at], _parse(line[at + 1 :])
        except ValueError:
            end = at
    raise ValueError(line)


def read_header(text: str) -> dict[str, Any]:
    """Return the plain `key=value` facts that stand before the files, such as option-checksum-page."""
    facts = {}
    for line in text.partition(f"\n{FILE_SECTION}")[0].split("\n"):
        key, equals, value = line.partition("=")
        if equals and not key.startswith("["):
            try:
                facts[key] = _parse(value)
            except ValueError:
                facts[key] = value
    return facts


def stored_objects(files: Iterator[ManifestFile]) -> dict[str, dict[str, int]]:
    """Map each label to the paths that it must hold and the bytes that each must have at least.

    A file of its own is stored under its name plus a compression suffix; a bundle holds many files, so
    its size is at least where its last file ends. Empty files need no bytes and are left out.
    """
    needed: dict[str, dict[str, int]] = {}
    for file in files:
        if file.size == 0:
            continue
        path = file.name if file.bundle is None else f"bundle/{file.bundle}"
        size = file.bundle_offset + (file.size if file.repo_size is None else file.repo_size)
        objects = needed.setdefault(file.reference, {})
        objects[path] = max(size, objects.get(path, 0))
    return needed
