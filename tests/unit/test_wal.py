import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvigil.wal import SegmentHash, parse_lsn, segment_name, segment_number, segment_range
from pgvigil.wal.content import Origin
from pgvigil.wal.decompressing import decompressor
from pgvigil.wal.headers import PageWalk
from pgvigil.wal.timelines import Tree
from tests.fixtures.segments import COMPRESSORS, MB, PAGE, SYSTEM, fault_of, named, segment

WHOLE = segment(7)
SIZES = st.sampled_from([2**power for power in range(20, 31)])


@given(timeline=st.integers(1, 2**32 - 1), number=st.integers(0, 2**34), size=SIZES)
def test_a_segments_name_and_number_are_two_writings_of_one_thing(
    timeline: int, number: int, size: int
) -> None:
    """For every segment size, name and number turn into each other."""
    number %= 2**64 // size

    assert number == segment_number(segment_name(timeline, number, size), size)


def test_a_range_crosses_the_end_of_a_log_file() -> None:
    """With 16 MB segments, FF is followed by the next log's 00, and the timeline is kept."""
    expected = ["0000000300000001000000FE", "0000000300000001000000FF", "000000030000000200000000"]

    assert expected == list(segment_range(expected[0], expected[-1], 16 * 2**20))


def test_a_gigabyte_segment_has_four_to_a_log() -> None:
    """The length of a log is derived from the segment size, not a constant."""
    expected = ["000000010000000000000003", "000000010000000100000000"]

    assert expected == list(segment_range(*expected, 2**30))


def test_an_lsn_is_a_byte_position() -> None:
    """Both halves count."""
    assert 0x16B374D848 == parse_lsn("16/B374D848")


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_content_is_hashed_through_every_compression(suffix: str) -> None:
    """Chunk by chunk, whatever the suffix, the digest is that of the uncompressed content."""
    content = bytes(range(256)) * 5000
    stored = COMPRESSORS[suffix](content)
    proof = SegmentHash(suffix)

    for start in range(0, len(stored), 1000):
        proof.feed(stored[start : start + 1000])

    assert (hashlib.sha1(content, usedforsecurity=False).hexdigest(), len(content), "") == (
        proof.sha1,
        proof.size,
        proof.fault,
    )


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".lz4", ".bz2"])
def test_content_that_does_not_decompress_is_a_fault(suffix: str) -> None:
    """Garbage becomes a finding's text, never an exception."""
    proof = SegmentHash(suffix)

    proof.feed(b"this is not compressed at all" * 100)

    assert "cannot be decompressed" in proof.fault


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_file_that_is_cut_by_a_single_byte_is_truncated(suffix: str) -> None:
    """All content may be there already: pgBackRest wants the end of the stored file too."""
    content = segment(7)
    stored, file, origin = COMPRESSORS[suffix](content), named(content, 7, suffix=suffix), Origin(MB, SYSTEM)

    found = [fault_of(stored[: len(stored) - cut], file, origin) for cut in (0, 1, 5, 12)]

    assert ["", *["wal-truncated"] * 3] == found


@pytest.mark.parametrize("more", [b"x", bytes(4096), bytes(3 * MB)])
@pytest.mark.parametrize(
    ("suffix", "codes"),
    [
        ("", ["wal-corrupt"] * 3),
        (".zst", ["wal-corrupt"] * 3),
        (".lz4", ["wal-corrupt"] * 3),
        (".gz", ["", "", ""]),
        (".bz2", ["", "", "wal-corrupt"]),
    ],
)
def test_what_follows_the_end_is_judged_as_pgbackrest_does(
    suffix: str, codes: list[str], more: bytes
) -> None:
    """It fails on it, but for gz, and for bz2 while it is in the same buffer."""
    content = segment(7)
    stored = COMPRESSORS[suffix](content)

    found = fault_of(stored + more, named(content, 7, suffix=suffix), Origin(MB, SYSTEM))

    assert dict(zip([1, 4096, 3 * MB], codes, strict=True))[len(more)] == found


@pytest.mark.parametrize("suffix", [".zst", ".lz4"])
def test_a_file_that_holds_its_content_twice_is_corrupt(suffix: str) -> None:
    """Pgbackrest would hand PostgreSQL a segment of twice the size."""
    content = segment(7)

    found = fault_of(COMPRESSORS[suffix](content) * 2, named(content, 7, suffix=suffix), Origin(MB, SYSTEM))

    assert found == "wal-corrupt"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (segment(7), ""),
        (segment(7, order=">"), ""),
        (segment(8), "wal-misplaced"),
        (segment(7, system_id=SYSTEM + 1), "wal-misplaced"),
        (segment(7, timeline=2), "wal-misplaced"),
        (segment(7, told_size=2 * MB), "wal-misplaced"),
        (bytes(MB), "wal-misplaced"),
    ],
)
def test_content_of_another_segment_is_not_this_one_whatever_its_sha1(content: bytes, code: str) -> None:
    """Position, cluster, timeline and size stand in the first page: recovery stops where they are wrong."""
    assert code == fault_of(content, named(content, 7), Origin(MB, SYSTEM))


TREE = Tree.read({2: "1\t0/500010\tx\n", 3: "1\t0/500010\tx\n2\t0/500020\tx\n", 4: "1\t0/600010\tx\n"})


@pytest.mark.parametrize(
    ("timeline", "number", "begins"),
    [(2, 5, {1, 2}), (3, 5, {1, 2, 3}), (3, 6, {3}), (4, 5, {4}), (4, 6, {1, 4}), (5, 6, {1, 2, 3, 4, 5})],
)
def test_only_the_segment_of_a_switch_may_begin_on_an_earlier_timeline(
    timeline: int, number: int, begins: set[int]
) -> None:
    """It is a copy of its parent's, which may be such a copy itself; without a history nothing is known."""
    contents = {header: segment(number, timeline=header) for header in range(1, 7)}

    found = {
        header
        for header, content in contents.items()
        if not fault_of(content, named(content, number, timeline=timeline), Origin(MB, SYSTEM, TREE))
    }

    assert begins == found


def test_a_page_that_is_not_the_segments_own_is_corrupt_whatever_the_sha1() -> None:
    """Recovery stops at a page that was never written, or is of the file's earlier use."""
    whole = bytearray(segment(7))
    stale, hole, short = bytearray(whole), bytearray(whole), bytearray(whole)
    stale[3 * PAGE : 4 * PAGE] = segment(2)[3 * PAGE : 4 * PAGE]
    hole[3 * PAGE : 4 * PAGE] = bytes(PAGE)
    short[3 * PAGE :] = bytes(MB - 3 * PAGE)

    found = [
        fault_of(bytes(data), named(data, 7), Origin(MB, SYSTEM)) for data in (whole, stale, hole, short)
    ]

    assert ["", "wal-corrupt", "wal-corrupt", ""] == found


@given(st.integers(1, 127), st.sampled_from(["hole", "stale"]), st.lists(st.integers(1, MB), max_size=6))
def test_pages_are_judged_the_same_however_the_content_is_cut(
    page: int, damage: str, cuts: list[int]
) -> None:
    """A chunk may end anywhere, in the head of a page too."""
    data = bytearray(WHOLE)
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE) if damage == "hole" else WHOLE[:PAGE]
    walk, sound = PageWalk(), PageWalk()
    near = [page * PAGE + offset for offset in (0, 7, 15)]
    for first, last in pairwise(sorted({0, 10, *near, *cuts, MB})):
        walk.take(bytes(data[first:last]))
        sound.take(WHOLE[first:last])

    is_last = damage == "hole" and page == MB // PAGE - 1  # zeros to the end: it was finished early
    assert bool(walk.fault) != is_last
    assert not sound.fault


@pytest.mark.parametrize("cut", [7, MB])
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".lz4", ".zst"])
def test_no_file_is_decompressed_at_once(suffix: str, cut: int) -> None:
    """A megabyte of compressed zeros holds a gigabyte."""
    content = bytes(32 * MB) + WHOLE
    stored = COMPRESSORS[suffix](content) if cut == MB else COMPRESSORS[suffix](content[: 2 * MB])
    stream = decompressor(suffix)

    pieces = [
        len(piece)
        for start in range(0, len(stored), cut)
        for piece in stream.pieces(stored[start : start + cut])
    ]

    assert (len(content) if cut == MB else 2 * MB) == sum(pieces)
    assert max(pieces) <= MB
    assert stream.eof
