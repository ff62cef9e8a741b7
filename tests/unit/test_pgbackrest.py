import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvigil.errors import Busy, PgBackRestFailed, PgvigilError, PreconditionFailed, ToolFailed, is_transient
from pgvigil.pgbackrest import argv
from pgvigil.pgbackrest.failures import failure
from pgvigil.pgbackrest.info import read_info, read_listing, read_page_errors
from pgvigil.pgbackrest.manifest import read_manifest, stored_objects
from pgvigil.processes import Completed

TARGET = argv.Target(stanza="demo", config=Path("/etc/pgbackrest.conf"))


def test_a_backup_expires_nothing_by_itself_and_resumes_nothing() -> None:
    """On 2.45 a resumed backup can be corrupted by a worker that outlived its main process."""
    words = argv.backup(TARGET, 2, "diff", {"pgvigil-run": "x"})

    assert {
        "--repo=2",
        "--type=diff",
        "--no-resume",
        "--no-expire-auto",
        "--annotation=pgvigil-run=x",
    } <= set(words)
    assert "backup" == words[-1]


def test_an_unknown_stanza_is_a_status_not_an_empty_success() -> None:
    """Exit code 0 and an empty list is how pgBackRest says that there is none."""
    assert 1 == read_info(b"[]", "demo").status.code


@pytest.mark.parametrize("errors", [["pg_data/base/1/2"], [{"name": "pg_data/base/1/2", "page": [1]}]])
def test_page_errors_are_read_as_names_or_objects(errors: list[object]) -> None:
    """2.45 lists plain names."""
    text = json.dumps([{"name": "demo", "backup": [{"label": "L", "error-list": errors}]}]).encode()

    assert ("pg_data/base/1/2",) == read_page_errors(text, "demo", "L")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["name", "backup", "status", "db", "x"]), inner)
    ),
)


@given(JSON | st.just([{"name": "demo"}]))
def test_whatever_pgbackrest_answers_is_read_or_refused_with_a_typed_error(value: object) -> None:
    """No foreign JSON leaves as anything but a model or a PgvigilError."""
    text = json.dumps(value).encode()
    for read in (
        lambda: read_info(text, "demo"),
        lambda: read_listing(text),
        lambda: read_page_errors(text, "demo", "L"),
    ):
        try:
            read()
        except PgvigilError:
            continue


@given(st.text())
def test_whatever_a_manifest_says_is_read_or_refused_with_a_typed_error(text: str) -> None:
    """A damaged manifest is a ToolFailed, not a crash."""
    try:
        stored_objects(read_manifest("[target:file]\n" + text))
    except ToolFailed:
        return


def test_a_manifest_tells_what_must_be_stored_where() -> None:
    """Own files, referenced files and bundles; empty files need nothing."""
    text = """[backup]
backup-label="20270301-000000F_20270302-000000I"
[target:file]
pg_data/a={"size":10,"repo-size":7}
pg_data/b={"size":10,"repo-size":8,"reference":"20270301-000000F"}
pg_data/c={"bni":1,"bno":100,"size":10,"repo-size":9}
pg_data/d={"bni":1,"size":5}
pg_data/e={"size":0}
[target:file:default]
user="postgres"
"""

    assert {
        "20270301-000000F_20270302-000000I": {"pg_data/a": 7, "bundle/1": 109},
        "20270301-000000F": {"pg_data/b": 8},
    } == stored_objects(read_manifest(text))


@pytest.mark.parametrize("code", [41, 55])
def test_a_configuration_that_cannot_be_read_is_no_fault_of_the_repository(code: int) -> None:
    """The file that the fleet file names: the cure is there, and trying again is none."""
    told = f"ERROR: [{code:03}]: unable to open file '/etc/pgbackrest.conf' for read"
    argv = ("pgbackrest", "--config=/etc/pgbackrest.conf", "info")

    error = failure("read the list", Completed(argv=argv, exit_code=code, tail=(told,), seconds=1.0))

    assert "pgbackrest.config in the fleet file" in error.hint
    assert not is_transient(error)
    assert is_transient(failure("read the list", ended(41, "ERROR: [041]: unable to open '/repo/x'")))


def ended(code: int, *tail: str) -> Completed:
    return Completed(argv=("pgbackrest",), exit_code=code, tail=tail, seconds=1.0)


@pytest.mark.parametrize(
    ("code", "kind", "transient"),
    [
        (50, Busy, False),
        (62, PreconditionFailed, False),
        (49, PgBackRestFailed, True),
        (82, PgBackRestFailed, True),
        (26, PgBackRestFailed, False),
        (55, PgBackRestFailed, False),
        (25, PgBackRestFailed, False),
        (127, ToolFailed, False),
        (255, ToolFailed, False),
    ],
)
def test_an_exit_code_is_a_class_and_a_decision(code: int, kind: type[PgvigilError], transient: bool) -> None:
    """Each code says what it is, whether to try again, and what to do."""
    error = failure("take a backup", ended(code, "ERROR: [0xx]: no", "ERROR: [050]: because of this"))

    assert isinstance(error, kind)
    assert transient is is_transient(error)
    assert "because of this" in error.message
    assert error.hint


def test_the_reason_of_a_failed_connection_is_told_with_it() -> None:
    """The error has the result only; why stands in a warning before it, once for each try."""
    warning = "P00   WARN: unable to check pg1: [DbConnectError] FATAL:  Peer authentication failed"
    error = failure(
        "take a backup", ended(56, warning, warning, "P00  ERROR: [056]: unable to find primary cluster")
    )

    assert error.message.endswith(
        "unable to find primary cluster; [DbConnectError] FATAL:  Peer authentication failed"
    )
