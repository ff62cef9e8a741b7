"""The WAL proof beside what a user would do: a million segments analysed, content hashed, a second run."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from getpass import getuser
from itertools import pairwise
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

import zstandard
from measure import TURNS, Row, paired

from pgvigil.policies.wal import WalPolicy
from pgvigil.wal.content import Origin
from pgvigil.wal.examine import Evidence, examine
from pgvigil.wal.inventory import ListingReader
from pgvigil.wal.ledger import Ledger
from pgvigil.wal.names import segment_name
from pgvigil.wal.reading import Rights, from_directory, read_patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

SIZE, PAGE, SYSTEM = 16 * 2**20, 8192, 7_500_000_000_000_000_001
SMALL, BIG, FILES, NEW = 10_000, 1_000_000, 120, 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def compare() -> list[Row]:
    """Measure analysis (time, memory), hashing and the second run."""
    with _directory() as place:
        return [*_analysis(place), *_content(place)]


@contextmanager
def _directory() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="pgvigil-bench-", dir="/tmp"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _analysis(place: Path) -> Iterator[Row]:
    for count in (SMALL, BIG):
        listing = place / f"listing-{count}"
        _write_listing(listing, count)
        turns = [[_measured(side, listing) for side in (_ours, _naive)] for _ in range(TURNS)]
        middle = len(turns) // 2
        for index, (name, unit) in enumerate((("wal_analysis", "s"), ("wal_analysis_memory", "MB"))):
            ours, other = (sorted(turn[side][index] for turn in turns)[middle] for side in (0, 1))
            yield Row(
                name=name,
                size=f"{count} segments",
                ours=round(ours, 3),
                other=round(other, 3),
                other_is="json.load, a set of names, a walk without content or timelines",
                unit=unit,
                runs=len(turns),
            )


def _write_listing(file: Path, count: int) -> None:
    """Write what `repo-ls --recurse` would say of so many segments, one in the middle missing."""
    with file.open("w", encoding="utf-8") as out:
        out.write('{".":{"type":"path"},"15-1":{"type":"path"}')
        for number in range(count):
            if number != count // 2:
                name = segment_name(1, number, SIZE)
                sha1 = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
                key = f'"15-1/{name[:16]}/{name}-{sha1}.zst"'
                out.write(
                    f',{key}:{{"type":"file","size":{2000 + number % 999},"time":{1767225600 + number}}}'
                )
        out.write("}\n")


def _measured(side: Callable[[Path], None], listing: Path) -> tuple[float, float]:
    """Run one side in a process of its own; return its seconds and its peak memory in MB."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_measure, args=(side, listing, theirs))
    child.start()
    figures: tuple[float, float] = ours.recv()
    child.join()
    return figures


def _measure(side: Callable[[Path], None], listing: Path, answer: Connection) -> None:
    began = time.perf_counter()
    side(listing)
    seconds = time.perf_counter() - began
    answer.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def _ours(listing: Path) -> None:
    """Read the listing, find what is due, judge timelines, continuity and windows."""
    reader = ListingReader(SIZE)
    with listing.open("rb") as file:
        while chunk := file.read(1 << 16):
            reader.feed(chunk)
    archive = reader.close()["15-1"]
    due = Ledger().due(archive, NOW, timedelta(days=30))
    backups = _backups(archive.segments)
    found = examine(Evidence(repo=1, inventory=archive, histories={}, backups=backups), WalPolicy(), NOW)
    codes = [fault.finding.code for fault in found.faults]
    if codes != ["wal-missing"] or len(due) != archive.segments:
        sys.exit(f"the analysis is wrong: {codes}")


def _backups(segments: int) -> list[object]:
    from pgvigil.pgbackrest import Backup  # noqa: PLC0415

    def backup(index: int, number: int) -> Backup:
        name = segment_name(1, number, SIZE)
        return Backup.model_validate(
            {
                "label": f"20260101-00000{index}F",
                "type": "full",
                "archive": {"start": name, "stop": name},
                "timestamp": {"start": 1767225600, "stop": 1767225600 + number},
                "database": {"id": 1, "repo-key": 1},
                "info": {"size": 1, "delta": 1},
            }
        )

    return [backup(index, index * segments // 10) for index in range(10)]


def _naive(listing: Path) -> None:
    names = {Path(key).name[:24] for key in json.loads(listing.read_text(encoding="utf-8")) if "-1/" in key}
    segments = sorted(name for name in names if len(name) == 24)
    numbers = [int(name[8:16], 16) * 256 + int(name[16:], 16) for name in segments]
    holes = [low for low, high in pairwise(numbers) if high != low + 1]
    if len(holes) != 1:
        sys.exit(f"the other side is wrong: {len(holes)} holes")


def _content(place: Path) -> Iterator[Row]:
    root = place / "15-1"
    files = [_write_segment(root, number) for number in range(FILES)]
    ours, other = paired([partial(_hash, root, files, Ledger()), partial(_pipeline, files)])
    size = f"{FILES} segments of 16 MB"
    row = partial(Row, unit="s", runs=TURNS)
    yield row(
        name="wal_hashing",
        size=size,
        ours=ours,
        other=other,
        other_is="zstd -dc | sha1sum, two files at a time",
    )
    known = Ledger(proven={mark: int(NOW.timestamp()) for mark, _ in _due(files[:-NEW], Ledger())})
    second, first = paired([partial(_hash, root, files, known), partial(_hash, root, files, Ledger())])
    yield row(
        name="wal_second_run",
        size=f"{NEW} of {FILES} segments new",
        ours=second,
        other=first,
        other_is="the first run over all of them",
    )


def _write_segment(root: Path, number: int) -> Path:
    """Write a segment that is half pages of noise and half zeros, as WAL often is."""
    header = pack("<HHIQI4xQII", 0xD110, 2, 1, number * SIZE, 0, SYSTEM, SIZE, PAGE)
    content = bytearray(hashlib.shake_128(f"{number}".encode()).digest(SIZE // 8) * 4 + bytes(SIZE // 2))
    for place in range(0, SIZE // 2, PAGE):
        content[place : place + 24] = pack("<HHIQI4x", 0xD110, 0, 1, number * SIZE + place, 0)
    content[: len(header)] = header
    name = segment_name(1, number, SIZE)
    sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    file = root / name[:16] / f"{name}-{sha1}.zst"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(zstandard.compress(bytes(content), 3))
    return file


def _due(files: list[Path], ledger: Ledger) -> list[tuple[int, object]]:
    reader = ListingReader(SIZE)
    entries = {
        f"15-1/{file.parent.name}/{file.name}": {"type": "file", "size": file.stat().st_size, "time": 1}
        for file in files
    }
    reader.feed(json.dumps(entries, separators=(",", ":")).encode())
    return list(ledger.due(reader.close()["15-1"], NOW, timedelta(days=30)))


def _hash(root: Path, files: list[Path], ledger: Ledger) -> None:
    due = _due(files, ledger)
    read = from_directory(root, _refuse, Rights(getuser()))
    judged = list(read_patiently(due, read, _stop, Origin(SIZE, SYSTEM), os.cpu_count() or 1, 600))
    if len(judged) != len(due) or any(item.code for item in judged):
        sys.exit("healthy segments were not proven")


def _refuse(path: str, _: object) -> None:
    sys.exit(f"{path} cannot be opened")


def _stop() -> None:
    sys.exit("healthy segments could not be read")


def _pipeline(files: list[Path]) -> None:
    """Hash as a shell user does, with as many files at once as there are cores."""
    words = ["xargs", "-0", "-n1", f"-P{os.cpu_count() or 1}", "sh", "-c", 'zstd -qdc "$0" | sha1sum']
    names = "\0".join(map(str, files)).encode()
    done = subprocess.run(words, input=names, capture_output=True, check=True)
    sums = {line.split()[0].decode() for line in done.stdout.splitlines()}
    if sums != {file.name[25:65] for file in files}:
        sys.exit("the plain pipeline hashed something else")
