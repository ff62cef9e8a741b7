"""The mutation check is about the code as it is, and its page about the check."""

import pytest

from tests.mutations import MUTATIONS, PAGE, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_disables_what_the_code_has(mutation: Mutation) -> None:
    """A patch that fits nothing any more would try nothing."""
    text = (ROOT / mutation.file).read_text(encoding="utf-8")

    assert text.count(mutation.before) == 1
    assert f"def {mutation.function.rpartition('.')[2]}(" in text


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_page_tells_each_mutation_and_what_went_red(mutation: Mutation) -> None:
    """Each was tried as it stands, and a test noticed."""
    told = f"| {mutation.check} | `{mutation.file}`: `{mutation.function}` | {mutation.done} | `"

    assert told in PAGE.read_text(encoding="utf-8")
