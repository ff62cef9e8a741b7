import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvigil.archive.digest import Digest
from pgvigil.archive.manifest import Leaf, ParquetCopy, ParquetFile, Stored, StoredRows
from pgvigil.archive.parquet import whole_rows
from pgvigil.archive.shape import Shape
from pgvigil.archive.view import view

values = st.text(alphabet='a,"\n\\', max_size=6)
tables = st.lists(st.tuples(values, values), min_size=1, max_size=30)


def as_csv(rows: list[tuple[str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return text.getvalue()


@given(tables, st.integers(1, 40), st.integers(1, 60))
def test_csv_is_cut_between_rows_alone(rows: list[tuple[str, str]], chunk: int, size: int) -> None:
    """Whatever the values hold and wherever the bytes are cut, each piece is whole rows, and none is lost."""
    data = as_csv(rows).encode()
    chunks = (data[start : start + chunk] for start in range(0, len(data), chunk))
    pieces = list(whole_rows(chunks, size))
    read = [tuple(row) for piece in pieces for row in csv.reader(io.StringIO(piece.decode(), newline=""))]

    assert data == b"".join(pieces)
    assert rows == read


@pytest.mark.parametrize("name", ["events", 'Odd "x"', "it's"])
def test_a_view_quotes_its_name_and_its_addresses(name: str) -> None:
    """Names are data, in the other query language too."""
    file = ParquetFile(uri=f"s3://a/{name}.parquet", version_id=None, sha256="", size=1, rows=1)
    digest = Digest(rows=1, value="0")
    parquet = ParquetCopy(files=(file,), digest=digest, digest_algorithm="")
    rows = StoredRows(uri="", version_id=None, sha256="", size=1, text_size=1)
    shape = Shape(schema_="public", name=name, owner="o", columns=())
    leaf = Leaf(relation=1, shape=shape, stored=Stored(rows=rows, digest=digest, parquet=parquet))
    text = view(name, [leaf])

    assert 'VIEW "' + name.replace('"', '""') + '" AS' in text
    assert "'" + file.uri.replace("'", "''") + "'" in text
