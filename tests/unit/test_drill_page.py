"""The pages of a drill: whole, safe against every name, and readable by who never saw pgvigil."""

import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgvigil.drill.facts import Unproven
from pgvigil.drill.markup import name, tag
from pgvigil.drill.report import DrillReport, TableResult
from pgvigil.pages import markdown
from pgvigil.reports import Check, Finding, Severity, Verdict, to_json
from tests.fixtures.drill_report import (
    HOSTILE,
    broken_report,
    database,
    drill_report,
    ended_early,
    results,
)

VOID = {"meta", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed by its own end, and all words are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.names: list[str] = []
        self.feed(text)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self.open and self.open[-1] == "bdi":
            self.names.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(report: DrillReport) -> Page:
    return Page(report.documents()["html"])


def hostile_report(*names: str) -> DrillReport:
    """Every place that can hold a foreign name holds one."""
    first = names[0]
    finding = Finding(code="x", severity=Severity.WARNING, message=first, hint=first, subject=first)
    check = Check(id=first, verdict=Verdict.INCONCLUSIVE, expected=first, actual=first, detail=first)
    left = tuple(Unproven(database=first, relation=each, reason=each) for each in names)
    return drill_report(
        (database(first, results(names), unproven=left),),
        checks=(check,),
        findings=(finding,),
        subject=first,
    )


@pytest.mark.parametrize("made", [drill_report, broken_report, ended_early])
def test_a_page_stands_alone(made: Any) -> None:
    """Nothing is loaded, nothing can run, every element is closed, no link leads away."""
    found = page_of(made())

    assert not {tag for tag, _ in found.elements} & {"script", "link", "img", "iframe", "a", "form", "object"}
    attributes = {key for _, each in found.elements for key in each}
    assert not {key for key in attributes if key.startswith("on")} | (attributes & {"src", "href", "style"})
    (policy,) = (each["content"] for _, each in found.elements if each.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_name_is_shown_and_does_nothing(hostile: str) -> None:
    """As cluster, database, table, check, finding, reason: the same elements as with a tame name."""
    tame, found = page_of(hostile_report("tame")), page_of(hostile_report(hostile))

    assert [tag for tag, _ in tame.elements] == [tag for tag, _ in found.elements]
    assert [each for _, each in tame.elements] == [each for _, each in found.elements]
    shown = "".join(found.names)
    visible = re.sub(r"[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]", " ", hostile)
    assert all(word in shown for word in visible.split())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", found.text)


@given(st.text(min_size=1, max_size=63))
@settings(max_examples=200)
def test_any_name_becomes_one_element(text: str) -> None:
    """No text ends its element, opens another, or breaks its line."""
    found = Page(tag("p", name(text), title=text))

    assert ["p", "bdi"] == [each for each, _ in found.elements]
    assert "\n" not in "".join(found.names)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_name_breaks_no_table_of_the_markdown_page(hostile: str) -> None:
    """Every table keeps its columns, and no HTML is passed on."""
    text = markdown(hostile_report(hostile, *HOSTILE))

    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert 1 == len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()})
    assert not re.search(r"(?<!\\)<(?:script|img|/style)", text)


def test_a_good_drill_says_what_was_proven_and_what_was_not() -> None:
    """Verdict with its meaning, set, target, WAL, share, time, and the check that did not run."""
    text = page_of(drill_report()).text

    for words in (
        "VERIFIED",
        "What it holds there is what the server held, as far as listed below.",
        "20261115-020001F_20261121-020004D",
        "000000010000001900000004 to 000000010000001A00000030",
        "LSN 1A/30000060 on timeline 1",
        "all tables were locked against writing for an instant",
        "writers waited at most 17 ms",
        "rows compared with postgresql orders-1:5432/orders",
        "7441122334455667788, expected 7441122334455667788: the same",
        "7 min 49 s",
        "target 15 min 00 s",
        "2 gin indexes were not looked at: pg_amcheck knows btree only",
        "it decides nothing",
        "None of this counts as passed.",
        "unlogged (by design)",
        "Debian 12, glibc 2.36",
        "considered: 3 backup sets, 2 passed over",
    ):
        assert words in text
    assert not drill_report().findings


def test_rows_that_were_read_on_a_standby_are_told_as_such() -> None:
    """Its equality with the primary is another matter, and nobody looked at it."""
    marked = database("orders", results(("orders",)))
    assert marked.mark
    mark = marked.mark.model_copy(update={"method": "standby", "server": "postgresql orders-2:5432/orders"})
    report = drill_report(databases=(marked.model_copy(update={"mark": mark}),))

    told = "postgresql orders-2:5432/orders, a standby: whether it equals its primary was not looked at"
    assert told in page_of(report).text


def test_a_broken_drill_names_the_table_first() -> None:
    """The finding is the banner, the table stands apart from those that are equal."""
    text = page_of(broken_report()).text

    assert "REFUTED Something that must hold does not: orders: table public.payments has 1006 rows" in text
    assert "Different (1) table rows in the source rows in the copy read refuted" in text
    assert "public.payments 1,007 1,006 all one row less in the copy" in text
    assert "2 refuted, 1 not run" in text
    assert "a restore takes 7 min 49 s, the target is 5 min 00 s" in text


def test_a_drill_that_ended_early_claims_nothing() -> None:
    """No figure, no share, no picture; what is missing is said."""
    report = ended_early()
    text = page_of(report).text

    assert "INCONCLUSIVE The drill could neither prove nor refute" in text
    assert text.count("not measured") >= 2
    assert "svg" not in {tag for tag, _ in page_of(report).elements}
    assert ["html"] == list(report.documents())
    assert {} == report.remembered()
    assert "nothing: the drill ended before" in markdown(report)


def test_the_page_names_the_digest_of_the_json_that_is_stored() -> None:
    """Also when it is rendered again from a report that knows its evidence."""
    report = drill_report()
    fingerprint = hashlib.sha256(to_json(report).encode()).hexdigest()
    stored = report.model_copy(update={"evidence": ("file:///a.json",)})

    assert fingerprint in report.documents()["html"]
    assert report.documents()["html"] == stored.documents()["html"]


def test_thousands_of_tables_are_all_in_the_page_and_folded() -> None:
    """HTML and JSON have each of them; the Markdown page has the first of what is wrong, and the number."""
    tables = (*results(tuple(f"good_{n}" for n in range(4000))), *wrong(50))
    report = drill_report((database("orders", tables),))

    page, text = page_of(report), markdown(report)

    assert {f"public.good_{n}" for n in range(4000)} <= set(page.names)
    assert {each.relation for each in wrong(50)} <= set(page.names)
    assert "### Different (50)" in text
    assert "and 30 more, all in the JSON and HTML report" in text
    assert len(text) < 60_000
    assert "4,000 tables with their rows" in page.text


def wrong(count: int) -> Iterator[TableResult]:
    return iter(results(tuple(f"bad_{n}" for n in range(count)), Verdict.REFUTED))


@pytest.mark.parametrize(
    ("blocks", "read", "verdict", "text"),
    [
        (1000, 1000, Verdict.VERIFIED, "100 %"),
        (100000, 99999, Verdict.VERIFIED, "99.9 %"),
        (1000, 250, Verdict.VERIFIED, "25.0 %"),
        (1000, 1000, Verdict.INCONCLUSIVE, "0.0 %"),
        (0, 0, Verdict.VERIFIED, "100 %"),
        (0, 0, Verdict.INCONCLUSIVE, "0.0 %"),
    ],
)
def test_a_share_is_all_only_when_it_is_all(blocks: int, read: int, verdict: Verdict, text: str) -> None:
    """Rounding never makes a whole of a part, and what was not judged is no share."""
    one = TableResult(relation="public.t", verdict=verdict, rows=1, blocks=blocks, blocks_read=read)

    assert f"share of the data {text}" in page_of(drill_report((database("orders", (one,)),))).text


def test_a_point_of_the_past_claims_no_equality() -> None:
    """Neither the page nor the memory of the drill calls content proven."""
    report = drill_report(())
    past = report.choice.model_copy(update={"target_value": "2026-01-01 00:00:00+00:00"})  # type: ignore[union-attr]
    report = report.model_copy(update={"choice": past, "databases": ()})

    assert "What it must hold there nobody knows" in page_of(report).text
    assert report.remembered()["proven"] is False
    assert drill_report().remembered()["proven"] is True


def test_a_missed_target_leaves_the_copy_proven() -> None:
    """The rotation asks whether the restore was proven, not whether it was quick."""
    late = drill_report().model_copy(update={"verdict": Verdict.REFUTED})

    assert late.proven
