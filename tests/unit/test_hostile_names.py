"""Names of the users' world in everything that people read: they are shown, and do nothing."""

import re
import unicodedata
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from deployments import cli, show
from deployments.approval import Waiting
from pgvigil.audit import RunRecord, RunSummary
from pgvigil.backfill.facts import BackfillReport
from pgvigil.backfill.steering import Shown, SteeringReport
from pgvigil.backup.facts import BackupReport
from pgvigil.doctor import Diagnosis
from pgvigil.drill.drawing import draw as draw_times
from pgvigil.drill.reaping import ReapReport
from pgvigil.drill.report import DrillReport
from pgvigil.drill.trend import RTO_PHASES, Timing, Trend
from pgvigil.metrics import exposition
from pgvigil.pages import cell, code, markdown, table
from pgvigil.partitions.facts import RestoreReport, RollReport
from pgvigil.partitions.question import ask
from pgvigil.reports import Report, Verdict
from pgvigil.reportstore import DirectoryShelf, ReportStore, report_name
from pgvigil.status import ProofStatus
from pgvigil.visible import visible
from pgvigil.wal.facts import ArchiveFacts, RepositoryFacts, WalReport
from pgvigil.wal.picture import draw as draw_windows
from pgvigil.watch.report import WatchReport
from pgvigil.waves.report import WaveReport
from pgvigil.waves.selection import Selection
from tasks.pipeline import artifact_key
from tests.fixtures.filled import filled

TAME = "tame"
HOSTILE = (
    "Ä\"b.c'; --",
    "Ä" * 31 + "x",  # 63 bytes, the longest name
    "line\nfeed",
    "a|b||c\\|d\\",
    "`` ` ```",
    "<script>alert('x')</script><img src=x onerror=alert(1)>",
    "[x](http://x) ](http://x) ![y](data:z)",
    "$(id) {{ event }} {% raw %} %s {0}",
    "\u202egnp.exe \u2066schema\u2069 \u200b",
    "\x01\x07\x08\x1b[2J\x1b]0;title\x07\x7f\x9b31m",
    "[/] [/red] [bold red]x",
    "**x** _y_ ~~z~~ # - 1. > &lt;b&gt;",
    "]]></title></svg>&\ufffe\uffff",
    "مرحبا",
)
REPORTS: tuple[type[Report], ...] = (
    BackfillReport,
    BackupReport,
    DrillReport,
    ReapReport,
    RestoreReport,
    RollReport,
    SteeringReport,
    WalReport,
    WatchReport,
    WaveReport,
)
hostile_names = pytest.mark.parametrize("hostile", HOSTILE)
every_report = pytest.mark.parametrize("kind", REPORTS)
NAMES = st.text(min_size=1, max_size=63).filter(lambda text: bool(text.strip()))
WORDS = {"text", "softbreak", "text_special"}
MARKDOWN = MarkdownIt("commonmark").enable("table")


def shape(page: str) -> list[str]:
    """Tell what Markdown makes of a page, without its words; a line of words is one, however it is broken."""
    tokens = [each for token in MARKDOWN.parse(page) for each in (token, *(token.children or ()))]
    return [f"{each.type} {each.tag} {sorted(each.attrs)}" for each in tokens if each.type not in WORDS]


def differs(one: list[Any], other: list[Any]) -> str:
    """Name the first difference of two shapes."""
    pairs = zip_longest(one, other)
    return next((f"{at}: {a} became {b}" for at, (a, b) in enumerate(pairs) if a != b), "")


def made(kind: type[Report], text: str) -> Any:
    """A report of this kind with the text in every place; its flow is one of ours, and so is its picture."""
    facts = windows(text)
    changes = {"picture": draw_windows(facts), "repositories": facts} if kind is WalReport else {}
    return filled(kind, text, flow="nightly_backup", verdict=Verdict.REFUTED, **changes)


def windows(text: str) -> tuple[RepositoryFacts, ...]:
    archive = filled(ArchiveFacts, text, timelines=())  # a timeline is never its own parent
    return (filled(RepositoryFacts, text, archives=(archive,)),)


class Elements(HTMLParser):
    """The elements of a page and their attributes, without its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [key for key, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)


def test_every_kind_of_report_is_tried() -> None:
    """A new pipeline's report belongs here as well."""
    assert {each for each in Report.__subclasses__() if each.__module__.startswith("pgvigil.")} == set(
        REPORTS
    )


@every_report
@hostile_names
def test_a_page_is_built_the_same_whatever_the_names(kind: type[Report], hostile: str) -> None:
    """Tables keep their columns; no element, link or code span is opened or closed by a name."""
    page = markdown(made(kind, hostile))

    assert not differs(shape(markdown(made(kind, TAME))), shape(page))
    assert not hidden(page)


def hidden(text: str) -> list[str]:
    """The signs of a text that show nothing or turn it round."""
    return [sign for sign in text if sign != "\n" and unicodedata.category(sign) in {"Cc", "Cf", "Cs"}]


@given(NAMES)
@example("\u2028|\x85`")
@settings(max_examples=150)
def test_any_name_stays_in_its_cell_and_its_span(text: str) -> None:
    """One cell, one line, one code span."""
    page = f"{table(('a', 'b'), [(text, text)])}\n\n- {code(text)} {cell(text)}\n"
    tame = f"{table(('a', 'b'), [(TAME, TAME)])}\n\n- {code(TAME)} {cell(TAME)}\n"

    assert not differs(shape(tame), shape(page))


@hostile_names
def test_a_drills_documents_are_built_the_same_whatever_the_names(hostile: str) -> None:
    """Every element of the page is of our making."""
    tame, found = made(DrillReport, TAME).documents(), made(DrillReport, hostile).documents()

    assert not differs(Elements(tame["html"]).found, Elements(found["html"]).found)
    assert not hidden(found["html"])


@hostile_names
def test_every_drawing_is_xml_whatever_the_names(hostile: str) -> None:
    """Escaped is not enough: XML has signs that cannot stand in it at all."""
    timing = Timing(label=hostile, seconds=dict.fromkeys(RTO_PHASES, 2.0), repo=2)
    trend = Trend(this=timing, earlier=(timing.model_copy(update={"repo": 1}),), target=3.0)

    for drawing in (draw_times(trend), draw_windows(windows(hostile))):
        root = ET.fromstring(drawing)  # noqa: S314 - our own
        assert {"svg", "rect", "line", "text", "path", "g", "title"} >= {
            each.tag.rpartition("}")[2] for each in root.iter()
        }
        assert any(visible(hostile) in (each.text or "") for each in root.iter())


@hostile_names
def test_the_terminal_shows_every_name_and_obeys_none(
    hostile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No control sign reaches it, no markup is read in a name, nothing fails."""
    show.statuses([filled(ProofStatus, hostile)])
    show.runs([filled(RunSummary, hostile)])
    show.run_record(filled(RunRecord, hostile))
    show.diagnoses([filled(Diagnosis, hostile)])
    show.questions([filled(Waiting, hostile, question=cell(hostile))])
    show.backfill(filled(Shown, hostile, progress=None))
    show.waves({"nightly-backup": filled(Selection, hostile)})
    show.changes([hostile], dry_run=True)
    for kind in REPORTS:
        show.report(made(kind, hostile))
    cli._say(hostile, hostile)
    told = capsys.readouterr()

    assert not hidden(told.out + told.err)
    assert visible(hostile) in told.err


def test_what_looks_like_markup_of_the_terminal_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A subject in brackets ended 'audit show' with an error, or was left out."""
    show.run_record(filled(RunRecord, "[/x] [red]shop"))

    assert "[/x] [red]shop on [/x] [red]shop by" in capsys.readouterr().out


@hostile_names
def test_labels_come_through_prometheus_as_they_are(hostile: str) -> None:
    """Escaped in the text, and the same name again when it is read."""
    text = exposition([filled(ProofStatus, hostile)])

    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    assert {hostile} == {each.labels["subject"] for each in samples if each.labels}


@hostile_names
def test_a_report_has_a_place_and_a_key_whatever_its_subject(hostile: str, tmp_path: Path) -> None:
    """A path of five parts that a file system takes, and a key that Prefect takes."""
    report = Report.model_validate(
        filled(Report, TAME).model_dump() | {"subject": f"{hostile}/{hostile}", "verdict": "refuted"}
    )
    name = report_name(report)

    assert 5 == len(name.split("/"))
    assert not set(name.split("/")) & {"", ".", ".."}
    assert not re.search(r"[\x00-\x1f\x7f\\]", name)
    (uri,) = ReportStore(DirectoryShelf(tmp_path / "store")).save(report, {})
    assert uri.isascii()
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", artifact_key(report))


@pytest.mark.parametrize(
    ("one", "other"),
    [("Ä", "Ö"), ("demo/a_b", "demo/a-b"), ("Demo", "demo"), ("-demo", "demo"), ("a/b-c", "a-b/c")],
)
def test_each_subject_has_a_history_of_its_own_in_the_ui(one: str, other: str) -> None:
    """Prefect's keys have small letters, digits and dashes: what they cannot spell is told by a digest."""
    keys = {artifact_key(filled(Report, TAME, subject=name)) for name in (one, other)}

    assert 2 == len(keys)
    assert artifact_key(filled(Report, TAME, flow="f", subject="orders/orders")) == "f-orders-orders"


@hostile_names
def test_a_question_is_built_the_same_whatever_the_names(hostile: str) -> None:
    """What a person decides on is shown as always."""
    tame, found = (ask(text, text, ()) for text in (TAME, hostile))

    assert not differs(shape(tame), shape(found))
