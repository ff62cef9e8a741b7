import pytest

from pgvigil.archive.ddl import column_definition
from pgvigil.archive.shape import Column, Numbering

UP = Numbering(type="bigint", start=7, increment=2, minimum=1, maximum=99, cache=3)


@pytest.mark.parametrize(
    ("facts", "written"),
    [
        ({"expression": "(a + 1)", "generated": "s"}, '"n" bigint GENERATED ALWAYS AS ((a + 1)) STORED'),
        ({"expression": "(a + 1)", "generated": "v"}, '"n" bigint GENERATED ALWAYS AS ((a + 1)) VIRTUAL'),
        (
            {"identity": "a", "numbering": UP},
            '"n" bigint GENERATED ALWAYS AS IDENTITY (START 7 INCREMENT 2 MINVALUE 1 MAXVALUE 99 CACHE 3)',
        ),
    ],
    ids=["stored", "virtual", "identity"],
)
def test_a_column_is_rebuilt_of_its_kind(facts: dict[str, object], written: str) -> None:
    """What PostgreSQL 18 computes on reading stays so, and an identity goes on counting as it did."""
    column = Column.model_validate({"name": "n", "type": "bigint", "type_oid": 20, **facts})

    assert written == column_definition(column).as_string(None)
