import bz2
import gzip
import hashlib

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgvigil.wal import SegmentHash, parse_lsn, segment_name, segment_number, segment_range

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


COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".lz4": lz4.frame.compress,
    ".bz2": bz2.compress,
}


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
