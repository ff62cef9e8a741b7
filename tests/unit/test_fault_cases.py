import re
from collections import Counter

from tests.faults import PAGE, rows
from tests.fixtures.faults.cases import CASES


def told() -> dict[tuple[str, str], tuple[int, int, int]]:
    """Read the page: flow and fault to how many cases there are, were tried, and passed."""
    found = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| (\d+) \| \d+ \| (\d+) \| (\d+) \|", PAGE.read_text(), re.MULTILINE
    )
    return {
        (flow, fault): (int(cases), int(tried), int(passed)) for flow, fault, cases, tried, passed in found
    }


def test_the_page_has_every_flow_and_fault_with_all_its_cases() -> None:
    """What docs/faults.md lists is what `make fault` tries, and nothing that was tried failed."""
    counted = Counter((case.flow, case.fault) for case in CASES)

    assert rows() == list(told())
    assert dict(counted) == {row: cases for row, (cases, _, _) in told().items()}
    assert all(cases == tried == passed for cases, tried, passed in told().values())


def test_there_are_at_least_five_hundred_cases() -> None:
    """Each with a number of its own."""
    assert len(CASES) >= 500
    assert len(CASES) == len({case.number for case in CASES})
    assert len(CASES) == len({case.id for case in CASES})
