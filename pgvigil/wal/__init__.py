"""The WAL archive: what is in it, which timelines, whether it is whole, and what can be restored from it."""

from pgvigil.wal.content import SegmentHash, SegmentProof, prove_segments
from pgvigil.wal.names import (
    SEGMENT_FILE,
    lsn_text,
    parse_lsn,
    segment_name,
    segment_number,
    segment_range,
)

__all__ = [
    "SEGMENT_FILE",
    "SegmentHash",
    "SegmentProof",
    "lsn_text",
    "parse_lsn",
    "prove_segments",
    "segment_name",
    "segment_number",
    "segment_range",
]
