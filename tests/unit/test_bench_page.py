import importlib.util
import re
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"
_spec = importlib.util.spec_from_file_location("page", BENCH / "page.py")
assert _spec
assert _spec.loader
page = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(page)


def test_the_page_shows_what_was_measured_and_nothing_else() -> None:
    """Its tables and drawings are those of the kept results: nobody has edited a figure."""
    text = page.PAGE.read_text(encoding="utf-8")

    assert text == page.page(text, page.read())
    drawn = {file.stem: file.read_text(encoding="utf-8") for file in page.DRAWINGS.glob("*.svg")}
    assert drawn == page.drawings(page.read())


def test_every_comparison_has_its_place_on_the_page() -> None:
    """A bench that is added is shown, and one that is gone leaves no block behind."""
    text = page.PAGE.read_text(encoding="utf-8")
    sources = {file.stem: file.read_text(encoding="utf-8") for file in BENCH.glob("*.py")}
    comparisons = {name for name, source in sources.items() if "def compare(" in source}

    blocks = [name for name in re.findall(r"<!-- (\w+) -->\n", text) if name != "end"]
    assert sorted(comparisons) == sorted(blocks)
