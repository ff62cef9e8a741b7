import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pgvigil import postgres
from pgvigil.archive import parquet
from pgvigil.archive.manifest import Manifest
from pgvigil.reports import Verdict
from tests.fixtures.partitions import Shop, make_awkward, make_deep


def archived(shop: Shop) -> Manifest:
    """Archive and drop the oldest partition and return its manifest."""
    report = shop.roll()
    assert Verdict.VERIFIED == report.verdict, report.findings
    (manifest,) = report.manifests
    return manifest


def table(shop: Shop) -> pa.Table:
    """All Parquet files in the archive as one table."""
    files = [pq.read_table(io.BytesIO(shop.store.get(uri))) for uri in shop.objects(".parquet")]
    return pa.concat_tables(files)


def test_a_copy_as_parquet_holds_the_same_rows(shop: Shop) -> None:
    """Numbers, moments and text are what they were; count and digest agree with PostgreSQL's."""
    shop.policy(parquet={})
    name = min(shop.partitions(), key=lambda name: shop.partitions()[name])
    before = shop.sql(f"SELECT id, created_at, customer_id, kind, payload::text FROM {name} ORDER BY id")
    manifest = archived(shop)

    assert before == table(shop).sort_by("id").to_pylist()
    assert manifest.parquet
    assert (len(before), ()) == (manifest.parquet.digest.rows, manifest.parquet.as_text)
    assert f"/pgvigil_partition=public.{name}/" in manifest.parquet.files[0].uri
    assert manifest.parquet.files[0].uri in shop.store.get(manifest.view).decode()


def test_what_parquet_would_change_is_named_and_nothing_leaves(shop: Shop) -> None:
    """Types that it lacks, and values that its types lack: the table stays a partition."""
    make_awkward(shop, "odd")
    shop.policy(**{**shop.policies[0], "parquet": {"as_text": ["iv"]}})
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict
    (told,) = [found.message for found in report.findings if "Parquet would change" in found.message]
    for column in (
        "'n' (numeric: ",
        "'d' (infinite)",
        "'t' (24:00)",
        "'tr' (tstzrange: ",
        "'ai' (integer[]: ",
    ):
        assert column in told
    assert not {"'iv'", "'i8'", "'by'", "'jb'", "'f4'"} & set(told.replace(",", " ").split())
    assert "odd_99" in shop.partitions("odd")


def test_every_awkward_value_is_in_parquet_as_text_where_it_must(shop: Shop) -> None:
    """With as_text: '*' the digest of what the files hold agrees, value for value."""
    make_awkward(shop, 'Odd "名"; --')
    shop.policy(**{**shop.policies[0], "parquet": {"as_text": ["*"]}})
    manifest = archived(shop)

    assert manifest.parquet
    assert {"d", "iv", "ai", "n"} <= set(manifest.parquet.as_text)
    rows = table(shop).to_pylist()
    assert {"-infinity", "4713-01-01 BC"} == {row["d"] for row in rows}
    assert {b"\x00\xff\x5c\x4e", b""} == {row["by"] for row in rows}


def test_a_parquet_file_that_is_not_what_was_sent_refutes(shop: Shop) -> None:
    """The proof covers both copies: nothing is dropped, and the next run makes them anew."""
    shop.policy(parquet={})

    def hurt(step: str) -> None:
        if step == "prove":
            (uri,) = shop.objects(".parquet")
            shop.store.put(uri, shop.store.get(uri)[:-40])

    shop.before = hurt
    report = shop.roll()
    assert Verdict.REFUTED == report.verdict
    assert [] == shop.objects("manifest.json")
    shop.before = lambda _: None

    assert Verdict.VERIFIED == shop.roll().verdict
    assert (1, 1, 1) == tuple(len(shop.objects(end)) for end in (".parquet", "view.sql", ".copy.zst"))


def test_each_leaf_of_a_tree_has_its_parquet(shop: Shop) -> None:
    """One view is over all of them, and columns in another order are found by their names."""
    make_deep(shop)
    shop.policy(**{**shop.policies[0], "parquet": {}})
    manifest = archived(shop)
    view = shop.store.get(manifest.view).decode()

    assert 4 == sum(uri in view for uri in shop.objects(".parquet"))
    assert set(range(1, 401)) == {row["id"] for uri in shop.objects(".parquet") for row in _rows(shop, uri)}


def _rows(shop: Shop, uri: str) -> list[dict[str, object]]:
    return list(pq.read_table(io.BytesIO(shop.store.get(uri))).to_pylist())


def test_many_files_make_up_a_large_table(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at any row, line ends within values included: every row is in one of them."""
    monkeypatch.setattr(postgres, "COPY_PIECE", 10_000)
    monkeypatch.setattr(parquet, "GROUP_SIZE", 20_000)
    monkeypatch.setattr(parquet, "FILE_SIZE", 60_000)
    shop.policy(parquet={})
    shop.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    shop.sql("UPDATE events SET kind = E'two\\nlines, \"quoted\"\\n' WHERE id % 3 = 0")
    manifest = archived(shop)

    assert manifest.parquet
    assert 2 < len(manifest.parquet.files)
    assert manifest.digest.rows == sum(file.rows for file in manifest.parquet.files)
    assert all(
        file.sha256 == hashlib.sha256(shop.store.get(file.uri)).hexdigest() for file in manifest.parquet.files
    )
