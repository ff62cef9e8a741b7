"""Claims about the house itself: what is locked, named and wired together."""

import os
import pickle
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pgvigil
from pgvigil.errors import PgvigilError
from pgvigil.sql import blocks

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-scale.lock", "requirements-dev.lock")
MATRIX = "requirements-matrix.lock"
DEBIAN_12 = {"python_version": "3.11", "python_full_version": "3.11.2"}
PACKAGES = ("pgvigil", "tasks", "flows", "deployments")


def sources() -> list[str]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return [file.read_text(encoding="utf-8") for file in files]


def errors() -> list[type[PgvigilError]]:
    for module in pkgutil.walk_packages(pgvigil.__path__, "pgvigil."):
        if module.name != "pgvigil.keeper":
            import_module(module.name)
    found, left = [], [PgvigilError]
    while left:
        found.append(left.pop())
        left += [kind for kind in found[-1].__subclasses__() if kind.__module__.startswith("pgvigil")]
    return found


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z0-9,._-]+\])?==(\S+) \\$", text, re.MULTILINE))


def test_every_error_code_is_given_once() -> None:
    """A code in a report or a ticket leads to one class."""
    codes = [kind.code for kind in errors()]

    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", errors(), ids=lambda kind: kind.__name__)
def test_an_error_survives_another_process(kind: type[PgvigilError]) -> None:
    """Message, hint and facts come out of a pickle as they went in: Prefect sends errors so."""
    copy = pickle.loads(pickle.dumps(kind("it broke", hint="mend it", exit_code=82, sqlstate="40001")))

    assert type(copy) is kind
    assert str(copy) == "it broke (hint: mend it)"
    assert copy.context == {"exit_code": 82, "sqlstate": "40001"}


@pytest.mark.parametrize("lock", [*LOCKS, MATRIX])
def test_a_lock_pins_and_hashes_everything_and_names_no_place(lock: str) -> None:
    """Every entry has its hash; no index address, link or path of the machine that made it is there."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE) if entry[0] != "#"]

    assert len(entries) == len(pins(lock)) > (1 if lock == MATRIX else 50)
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"://|index-url|find-links|trusted-host|(?:^|[ @])/", text, re.MULTILINE)


def test_the_locks_agree() -> None:
    """What runs in production is what was tested: the same version of each shared package."""
    one, several, developers = (pins(lock) for lock in LOCKS)

    assert one.items() <= several.items() <= developers.items()


def test_every_declared_dependency_is_locked() -> None:
    """Nothing that pyproject.toml asks for is left to chance, the build backend included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    names = {re.split(r"[\[<>=!~ ]", each)[0].lower().replace("_", "-") for each in declared}

    assert names - set(pins("requirements.lock")) == set()


def requirements(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:  # then it is not in the lock either, which is what is asked
        return []


def asked_for() -> set[tuple[str, str]]:
    """Follow pyproject.toml through what is installed: distributions with their extras, as on Debian 12."""
    found: set[tuple[str, str]] = set()
    left = [("pgvigil", "")]
    while left:
        name, extra = left.pop()
        for line in requirements(name):
            wanted = Requirement(line)
            if wanted.marker and not wanted.marker.evaluate({**DEBIAN_12, "extra": extra}):
                continue
            for each in ("", *wanted.extras):
                ask = (wanted.name.lower().replace("_", "-"), each)
                if ask not in found:
                    found.add(ask)
                    left.append(ask)
    return found


def test_the_lock_is_whole_for_debians_own_python() -> None:
    """Also what a distribution asks for under an older Python than the one that resolved the lock."""
    names = {name for name, _ in asked_for()}

    assert "redis" in names, "what our dependencies depend on was not followed"
    assert names - set(pins("requirements.lock")) == set()


@pytest.mark.parametrize("file", sorted((ROOT / "pgvigil" / "sql").glob("*.sql")), ids=lambda file: file.stem)
def test_every_sql_block_is_used(file: Path) -> None:
    """A block that no module names, in one that names its file or reads it whole, is dead."""
    readers = "\n".join(text for text in sources() if f'"{file.stem}"' in text)
    read_whole = f'blocks("{file.stem}")' in readers

    assert readers
    assert [name for name in blocks(file.stem) if not read_whole and f'"{name}"' not in readers] == []


def test_no_flow_or_task_file_shadows_the_standard_library() -> None:
    """Whoever puts flows/ in front of sys.path still gets Python's own modules."""
    names = {file.stem for folder in ("flows", "tasks") for file in (ROOT / folder).glob("*.py")}

    assert names & sys.stdlib_module_names == set()


def test_the_command_line_is_where_the_project_says() -> None:
    """The installed program `pgvigil` leads to a function that exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["pgvigil"].partition(":")

    assert callable(getattr(import_module(module), function))
    assert {script.name for script in entry_points(group="console_scripts", name="pgvigil")} == {"pgvigil"}


def test_every_package_is_installed() -> None:
    """Setuptools is told of every folder that has modules, so that none is missing in a wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    there = {
        str(file.parent.relative_to(ROOT)).replace("/", ".")
        for package in PACKAGES
        for file in (ROOT / package).rglob("__init__.py")
    }

    assert set(project["tool"]["setuptools"]["packages"]) == there


def test_nothing_generated_is_tracked() -> None:
    """What git ignores is not committed either."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--ignored", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert listed.stdout == ""


def test_the_program_keeps_prefect_from_telling_anybody() -> None:
    """Before Prefect is imported, also where the server is somebody else's and has its telemetry on."""
    program = (
        "import atexit, os, sys\n"
        "from deployments.__main__ import main\n"
        "assert 'prefect' not in sys.modules\n"
        "atexit.register(lambda: print(os.environ.get('DO_NOT_TRACK')))\n"
        "sys.argv = ['pgvigil', '--help']\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "DO_NOT_TRACK"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "1" == done.stdout.splitlines()[-1]
