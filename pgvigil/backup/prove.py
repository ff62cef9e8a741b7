"""Prove one backup by reading its repository, never by an exit code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pgvigil.backup.decide import missing_manifests
from pgvigil.backup.facts import PROOF_NOTE, BackupFacts, Line, Proven, Survey
from pgvigil.errors import ToolFailed
from pgvigil.pgbackrest.manifest import read_header, read_manifest, stored_objects
from pgvigil.reports import Check, Finding, Severity, Verdict
from pgvigil.wal import prove_segments, segment_number, segment_range

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgvigil.pgbackrest import Backup, PgBackRest, StanzaInfo


class Headers:
    """What the manifests of one repository say of their backups, each read once: a manifest may be large."""

    def __init__(self, pgbackrest: PgBackRest, repo: int) -> None:
        self._pgbackrest = pgbackrest
        self._repo = repo
        self._known: dict[str, dict[str, Any]] = {}

    def keep(self, label: str, manifest: str) -> None:
        """Keep the header of a manifest that was read anyway."""
        self._known[label] = read_header(manifest)

    def read(self, label: str) -> dict[str, Any]:
        """Return the header of a backup's manifest; raises ToolFailed when it cannot be read."""
        if label not in self._known:
            self.keep(label, _read_manifest_text(self._pgbackrest, self._repo, label))
        return self._known[label]


MOST_SEGMENTS = 1_000_000  # 16 TB of WAL in one backup: beyond it the range is an error, not a range


def prove(  # noqa: PLR0913 - each is a fact of one backup
    pgbackrest: PgBackRest, world: Survey, line: Line, backup: Backup, seconds: float, log: str
) -> Proven:
    """Read the repository and judge one backup: listed, its chain's manifests and files, WAL, pages."""
    stanza = pgbackrest.info()
    chain = tuple(sorted({*(backup.reference or ()), backup.label}))
    repo = backup.repo
    headers = Headers(pgbackrest, repo)
    checks = [
        _check_listed(stanza, world, backup),
        _check_chain(pgbackrest, repo, chain),
        _check_files(pgbackrest, headers, backup),
        _check_wal(pgbackrest, headers, world, stanza, backup),
        _check_pages(pgbackrest, headers, world, backup, chain),
    ]
    facts = BackupFacts(
        repo=repo,
        label=backup.label,
        requested=line.type,
        type=backup.type,
        reason=line.reason,
        chain=chain,
        started_at=backup.timestamp.start,
        stopped_at=backup.timestamp.stop,
        size=backup.info.size,
        delta=backup.info.delta,
        repo_size=backup.info.repository.size,
        repo_delta=backup.info.repository.delta,
        wal_start=backup.archive.start or "",
        wal_stop=backup.archive.stop or "",
        lsn_stop=backup.lsn.stop if backup.lsn else "",
        seconds=seconds,
        rate=backup.info.delta / seconds if seconds else 0.0,
        log=log,
    )
    return Proven(facts=facts, checks=tuple(checks), findings=tuple(_type_findings(line, backup)))


def _type_findings(line: Line, backup: Backup) -> Iterator[Finding]:
    if backup.type != line.type:
        yield Finding(
            code="backup-promoted",
            severity=Severity.WARNING,
            message=f"a {line.type} was asked for, pgbackrest took a {backup.type}: {backup.label}",
            hint="it found no usable parent; see its log for the reason",
            subject=backup.label,
        )


def _check(name: str, repo: int, expected: str, faults: Sequence[str], good: str) -> Check:
    """Make a check that is refuted by any fault, the first ones named."""
    shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
    return Check(
        id=f"repo{repo}.{name}",
        verdict=Verdict.REFUTED if faults else Verdict.VERIFIED,
        expected=expected,
        actual=shown or good,
    )


def _check_listed(stanza: StanzaInfo, world: Survey, backup: Backup) -> Check:
    """The backup is in the list, as this cluster's."""
    faults = []
    if not any(b.label == backup.label for b in stanza.backups(backup.repo)):
        faults.append("it is not listed")
    system_id = stanza.history(backup.repo, backup.database.id).system_id
    if system_id != world.server.system_id:
        faults.append(f"it belongs to system {system_id}, the server is {world.server.system_id}")
    return _check("listed", backup.repo, f"{backup.label} listed for this cluster", faults, "listed")


def _check_chain(pgbackrest: PgBackRest, repo: int, chain: Sequence[str]) -> Check:
    """Both manifests of the backup and of every backup that it builds on are there."""
    faults = []
    for label in chain:
        missing = missing_manifests(pgbackrest, repo, label)
        if missing:
            faults.append(f"{label} lacks {missing}")
    return _check(
        "chain",
        repo,
        "manifest and copy of every backup in the chain",
        faults,
        f"{len(chain)} of {len(chain)}",
    )


def _check_files(pgbackrest: PgBackRest, headers: Headers, backup: Backup) -> Check:
    """The manifest is one with its copy, and every file that it names lies in the repository, long enough."""
    repo, folder = backup.repo, f"backup/{pgbackrest.target.stanza}"
    expected = "every file of the manifest stored with its size"
    try:
        manifest, copy = (
            _read_manifest_text(pgbackrest, repo, backup.label, name)
            for name in ("backup.manifest", "backup.manifest.copy")
        )
    except ToolFailed as error:
        return _check("files", repo, expected, [f"the manifest cannot be read: {error.message}"], "")
    if manifest != copy:
        return _check("files", repo, expected, ["the manifest differs from its copy"], "")
    try:
        headers.keep(backup.label, manifest)
        needed = stored_objects(read_manifest(manifest))
    except ToolFailed as error:
        return _check("files", repo, expected, [error.message], "")
    faults: list[str] = []
    for label, objects in sorted(needed.items()):
        faults += _missing_objects(pgbackrest, repo, f"{folder}/{label}", objects)
    count = sum(len(objects) for objects in needed.values())
    if count == 0:
        faults.append("the manifest names no file with content")
    return _check("files", repo, expected, faults, f"{count} objects")


def _read_manifest_text(pgbackrest: PgBackRest, repo: int, label: str, name: str = "backup.manifest") -> str:
    chunks: list[bytes] = []
    pgbackrest.read(repo, f"backup/{pgbackrest.target.stanza}/{label}/{name}", chunks.append)
    return b"".join(chunks).decode(errors="surrogateescape")  # file names are bytes


_COMPRESSION = re.compile(r"\.(gz|zst|lz4|bz2|pgbi)$")


def _missing_objects(pgbackrest: PgBackRest, repo: int, folder: str, objects: Mapping[str, int]) -> list[str]:
    sizes: dict[str, int] = {}
    for name, file in pgbackrest.ls(repo, folder, recurse=True).items():
        if file.type == "file":
            sizes[name] = sizes[_COMPRESSION.sub("", name)] = file.size
    faults = []
    for path, size in sorted(objects.items()):
        if path not in sizes:
            faults.append(f"{folder}/{path} is missing")
        elif sizes[path] < size:
            faults.append(f"{folder}/{path} has {sizes[path]} bytes, expected {size}")
    return faults


def _check_wal(
    pgbackrest: PgBackRest, headers: Headers, world: Survey, stanza: StanzaInfo, backup: Backup
) -> Check:
    """Every WAL segment from start to stop is stored once, and its content is what its name says."""
    size, start, stop = world.server.segment_size, backup.archive.start or "", backup.archive.stop or ""
    fault = _range_fault(headers, backup, size)
    if fault:
        return _check("wal", backup.repo, "a range of WAL from start to stop", [fault], "")
    segments = list(segment_range(start, stop, size))
    proofs = prove_segments(pgbackrest, backup.repo, stanza.archive_id(backup), segments, size)
    faults = [f"{proof.segment}: {proof.fault}" for proof in proofs if proof.fault]
    return _check(
        "wal",
        backup.repo,
        f"{len(segments)} segments {start} to {stop}, sha1 as named",
        faults,
        f"{len(proofs)} of {len(segments)} read back",
    )


def _range_fault(headers: Headers, backup: Backup, segment_size: int) -> str:
    """Say what is wrong with the range that `info` tells: none, backwards, endless, or not the manifest's."""
    start, stop = backup.archive.start, backup.archive.stop
    if not start or not stop:
        return "the backup has no WAL range: it was taken offline"
    count = segment_number(stop, segment_size) - segment_number(start, segment_size) + 1
    if start[:8] != stop[:8] or not 1 <= count <= MOST_SEGMENTS:
        return f"{start} to {stop} is no range of WAL"
    try:
        header = headers.read(backup.label)
    except ToolFailed as error:
        return f"the manifest cannot be read: {error.message}"
    told = header.get("backup-archive-start"), header.get("backup-archive-stop")
    return (
        "" if told == (start, stop) else f"info says {start} to {stop}, the manifest {told[0]} to {told[1]}"
    )


def _unchecked(headers: Headers, chain: Sequence[str]) -> list[str]:
    """Name the backups of a chain whose pages pgBackRest was told not to look at."""
    found = []
    for label in chain:
        try:
            if headers.read(label).get("option-checksum-page") is not True:
                found.append(label)
        except ToolFailed:
            found.append(label)  # a manifest that cannot be read says nothing of pages
    return found


def _check_pages(
    pgbackrest: PgBackRest, headers: Headers, world: Survey, backup: Backup, chain: Sequence[str]
) -> Check:
    """No page of the source failed its checksum; exit code 0 does not say so, `error` does."""
    expected = "no page checksum error"
    if backup.error:
        files = pgbackrest.page_errors(backup.label, backup.repo)
        return _check("pages", backup.repo, expected, list(files) or ["pgbackrest reports page errors"], "")
    if backup.error is None or not world.server.data_checksums:
        return Check(
            id=f"repo{backup.repo}.pages",
            verdict=Verdict.INCONCLUSIVE,
            expected=expected,
            actual="data checksums are off in this cluster",
            detail="enable them with pg_checksums so that damage at the source is seen",
            required=False,
        )
    unchecked = _unchecked(headers, chain)
    if unchecked:
        return Check(
            id=f"repo{backup.repo}.pages",
            verdict=Verdict.INCONCLUSIVE,
            expected=expected,
            actual=f"pages of {', '.join(unchecked)} were not looked at",
            detail="remove checksum-page=n from pgbackrest.conf and take a new full",
        )
    return _check("pages", backup.repo, expected, [], "none")


def mark_proven(pgbackrest: PgBackRest, backup: BackupFacts, run_id: str) -> None:
    """Write into the repository that this backup was proven, for expiry and for whoever reads `info`."""
    pgbackrest.annotate(backup.repo, backup.label, {PROOF_NOTE: run_id})
