import pytest

from pgvigil.errors import DatabaseFailed
from pgvigil.redaction import is_secret, masked, redact, redactor
from pgvigil.reports import Check, Verdict


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:s3cr3t@host/db",
        "host=x password=s3cr3t port=1",
        "password = 's3cr3t and s3cr3t'",
        'conninfo "password":"s3cr3t"',
        "PGPASSWORD=s3cr3t psql",
        "--repo1-cipher-pass=s3cr3t",
        "aws_secret_access_key: s3cr3t",
        "missing '=' in key/value at line 3: repo1-cipher-pass s3cr3t",
        "missing '=' in key/value at line 3: repo2-s3-token s3cr3t",
    ],
)
def test_what_a_secrets_name_introduces_is_masked(text: str) -> None:
    """However it is quoted or separated."""
    assert "s3cr3t" not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "put the password into the password file (PGPASSFILE)",
        "postgresql://me@host:5432/db",
        "s3://bucket/key",
        "option 'repo1-cipher-pass' is not valid without 'repo1-cipher-type'",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    """Messages must stay readable."""
    assert text == redact(text)


def test_a_variable_of_several_lines_is_masked_line_by_line() -> None:
    """A tool's output comes in lines, so a private key would pass if only the whole of it were known."""
    mask = redactor({"TLS_KEY": "-----BEGIN-----\nbG9uZyBhbmQgc2VjcmV0\n", "HOME": "/home/me"})

    assert "line *** of /home/me" == mask("line bG9uZyBhbmQgc2VjcmV0 of /home/me")


def test_where_a_secret_is_kept_is_none() -> None:
    """A path must stay readable: it is what a message tells to look at."""
    assert "see /home/me/.pgpass" == redactor({"PGPASSFILE": "/home/me/.pgpass"})("see /home/me/.pgpass")


def test_a_secret_is_known_by_its_key() -> None:
    """Where a document has keys, the value alone says nothing."""
    assert ["repo1-cipher-pass", "PASSWORD"] == [
        k for k in ("repo1-cipher-pass", "PASSWORD", "label") if is_secret(k)
    ]


def test_an_error_holds_no_secret_from_its_making_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes it down, and wherever: message, hint, facts and the exception's own text."""
    monkeypatch.setenv("A_TOKEN", "planted-token")
    error = DatabaseFailed(
        "password=s3cr3t", hint="planted-token", said="planted-token", tail=["x", "pw planted-token"]
    )

    told = f"{error} {error!r} {error.args} {error.__reduce__()}"
    assert "s3cr3t" not in told
    assert "planted-token" not in told
    assert "pw ***" in told


def test_whatever_a_model_holds_is_masked_within_it() -> None:
    """Texts at any depth; what is no text, or holds no secret, is what it was."""
    check = Check(id="x", verdict=Verdict.REFUTED, expected="y", actual="password=s3cr3t")

    found = masked({"checks": (check,), "n": 1}, redact)

    assert found["checks"][0].actual == "password=***"
    assert found["checks"][0].verdict is Verdict.REFUTED
    assert found["n"] == 1
