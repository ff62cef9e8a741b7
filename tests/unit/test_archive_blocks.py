import hashlib

from hypothesis import given
from hypothesis import strategies as st

from pgvigil.archive.blocks import WIDE, BlockDigest
from pgvigil.archive.digest import Digest

LINES = st.lists(st.binary(max_size=12).map(lambda row: row.replace(b"\n", b"")), max_size=30)
WIDE_LINES = st.lists(
    st.sampled_from([b"", b"x", b"y" * (WIDE - 1), b"y" * WIDE, b"z" * (WIDE + 1)]), max_size=9
)


def by_definition(lines: list[bytes], blocks: list[int]) -> str:
    """The digest as PostgreSQL computes it, written as plainly as can be."""
    chain, start = hashlib.sha256(), 0
    for count in blocks:
        told = [
            line if len(line) <= WIDE else rb"\sha256 " + hashlib.sha256(line).hexdigest().encode()
            for line in lines[start : start + count]
        ]
        chain.update(hashlib.sha256(b"".join(line + b"\n" for line in told)).digest())
        start += count
    return chain.hexdigest()


def fed(text: bytes, blocks: list[int], size: int) -> Digest:
    made = BlockDigest(blocks)
    for start in range(0, len(text), size):
        made.feed(text[start : start + size])
    return made.result()


def cut_into_blocks(data: st.DataObject, rows: int) -> list[int]:
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1)))) if rows > 1 else []
    ends = [*cuts, rows] if rows else []
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@given(LINES | WIDE_LINES, st.integers(1, 5000), st.data())
def test_the_digest_is_the_same_whatever_pieces_it_is_fed(
    lines: list[bytes], size: int, data: st.DataObject
) -> None:
    """Pieces of any size, blocks of any number of rows, lines of any length."""
    blocks = cut_into_blocks(data, len(lines))
    found = fed(b"".join(line + b"\n" for line in lines), blocks, size)

    assert (len(lines), by_definition(lines, blocks)) == (found.rows, found.value)


@given(st.lists(st.sampled_from([b"a", b"b", b"", b"w" * (WIDE + 1)]), min_size=1, max_size=9), st.data())
def test_a_row_that_is_altered_moved_lost_or_doubled_is_another_digest(
    lines: list[bytes], data: st.DataObject
) -> None:
    """So is a last row whose end is missing."""
    blocks = cut_into_blocks(data, len(lines))
    whole = b"".join(line + b"\n" for line in lines)
    right = fed(whole, blocks, 7)
    at = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.permutations(lines))
    wrong = [
        [*lines[:at], lines[at] + b"!", *lines[at + 1 :]],
        [*lines[:at], *lines[at + 1 :]],
        [*lines[: at + 1], *lines[at:]],
        *([other] if other != lines else []),
    ]
    for each in wrong:
        found = fed(b"".join(line + b"\n" for line in each), blocks, 7)
        assert (right.rows, right.value) != (found.rows, found.value)
    assert right.value != fed(whole[:-1], blocks, 7).value or whole == b"\n" * len(lines)
