"""Whose a scratch directory is, where none is made, and what a dead drill leaves: nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from pgvigil.drill import copyprocesses, scratch
from pgvigil.drill.place import OWNER, SOCKET, Owner, Place, Request, read_owner
from pgvigil.errors import Busy, PreconditionFailed
from pgvigil.postgres import connect, conninfo
from pgvigil.sandbox.model import server_user
from tests.fixtures.drill_copy import Drill, request

NOW = datetime.now(UTC)
TOMORROW = NOW + timedelta(days=1)


def claim(asked: Request) -> Place:
    return scratch.claim(asked, NOW)[0]


def left_by_a_dead_run(asked: Request, *, keep_until: datetime | None = None) -> Place:
    place = claim(asked)
    owner = read_owner(place.directory)
    assert owner
    dead = owner.model_copy(update={"pid": ended_process(), "keep_until": keep_until})
    (place.directory / OWNER).write_text(dead.model_dump_json())
    return place


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def as_server(directory: Path) -> Request:
    return request(directory).model_copy(update={"user": server_user()})


# --- refusals ---------------------------------------------------------------------------------------


def data_directory(place: Path) -> Path:
    place.mkdir()
    (place / "PG_VERSION").write_text("15\n")
    return place


def is_one(directory: Path) -> Request:
    (directory / "PG_VERSION").write_text("15\n")
    return request(directory)


def lies_in_one(directory: Path) -> Request:
    (data_directory(directory / "main") / "drill").mkdir()
    return request(directory / "main" / "drill")


def contains_one(directory: Path) -> Request:
    data_directory(directory / "main")
    return request(directory)


def contains_one_further_down(directory: Path) -> Request:
    (directory / "postgresql" / "15").mkdir(parents=True)
    data_directory(directory / "postgresql" / "15" / "main")
    return request(directory)


def is_the_sources(directory: Path) -> Request:
    (directory / "source" / "drill").mkdir(parents=True)
    return request(directory / "source" / "drill", protected=(directory / "source",))


def contains_the_source(directory: Path) -> Request:
    (directory / "a" / "source").mkdir(parents=True)
    return request(directory, protected=(directory / "a" / "source",))


def is_a_link(directory: Path) -> Request:
    (directory / "real").mkdir()
    (directory / "link").symlink_to("real")
    return request(directory / "link")


def is_taken(directory: Path) -> Request:
    asked = request(directory)
    asked.directory.mkdir()
    return asked


def is_full(directory: Path) -> Request:
    return request(directory, room=1 << 62)


def has_no_parent(directory: Path) -> Request:
    return request(directory / "no" / "where")


def is_closed_to_the_server(directory: Path) -> Request:
    if server_user() is None:
        pytest.skip("the server runs as ourselves")
    (directory / "closed").mkdir(mode=0o700)
    return as_server(directory / "closed")


@pytest.mark.parametrize(
    ("world", "refusal"),
    [
        (is_one, "live data"),
        (lies_in_one, "live data"),
        (contains_one, "live data"),
        (contains_one_further_down, "live data"),
        (is_the_sources, "source"),
        (contains_the_source, "source"),
        (is_a_link, "link"),
        (is_taken, "not empty"),
        (is_full, "room"),
        (has_no_parent, "path"),
        (is_closed_to_the_server, "access"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_dangerous_place_is_refused_with_a_cure_and_left_as_it_was(
    scratch_directory: Path, world: Callable[[Path], Request], refusal: str
) -> None:
    """Each refusal has its kind, a hint, and nothing written."""
    asked = world(scratch_directory)
    before = sorted(scratch_directory.rglob("*"))

    with pytest.raises(PreconditionFailed) as refused:
        claim(asked)

    assert refusal == refused.value.context["refusal"], refused.value
    assert refused.value.hint
    assert before == sorted(scratch_directory.rglob("*"))


# --- ownership --------------------------------------------------------------------------------------


def test_a_second_drill_of_the_stanza_is_told_who_has_it(scratch_directory: Path) -> None:
    """Busy names run and process; another stanza is not concerned."""
    first = request(scratch_directory)
    claim(first)

    with pytest.raises(Busy, match=f"{first.run_id} .process {os.getpid()} "):
        claim(request(scratch_directory))
    claim(request(scratch_directory, stanza="other"))


def test_what_a_dead_drill_left_is_taken_away_by_the_next(scratch_directory: Path) -> None:
    """The next claim of the stanza removes and reports it; that of another stanza stays."""
    gone = left_by_a_dead_run(request(scratch_directory))
    other = left_by_a_dead_run(request(scratch_directory, stanza="other"))

    _, reaping = scratch.claim(request(scratch_directory), NOW)

    assert [gone.directory] == [item.directory for item in reaping.reaped]
    assert not gone.directory.exists()
    assert other.directory.exists()


def test_a_reaper_removes_the_dead_and_the_expired_and_no_other(scratch_directory: Path) -> None:
    """Living, kept, foreign and unowned directories stay, each with its reason; again changes nothing."""
    dead = left_by_a_dead_run(request(scratch_directory))
    expired = left_by_a_dead_run(request(scratch_directory, stanza="b"), keep_until=NOW)
    kept = left_by_a_dead_run(request(scratch_directory, stanza="c"), keep_until=TOMORROW)
    alive = claim(request(scratch_directory, stanza="d"))
    unowned = scratch_directory / "somebody-12345678"
    unowned.mkdir()

    reaping = scratch.reap(scratch_directory, NOW)
    again = scratch.reap(scratch_directory, NOW)

    assert {dead.directory, expired.directory} == {item.directory for item in reaping.reaped}
    reasons = {item.directory: item.reason for item in reaping.left}
    assert reasons.keys() == {kept.directory, alive.directory, unowned}
    assert "kept until" in reasons[kept.directory]
    assert "alive" in reasons[alive.directory]
    assert (again.reaped, again.left) == ((), reaping.left)


def test_a_process_that_took_over_the_pid_is_not_the_owner(scratch_directory: Path) -> None:
    """Pid and start time together name a process."""
    place = claim(request(scratch_directory))
    owner = read_owner(place.directory)
    assert owner
    older = owner.model_copy(update={"process_started": 1})
    (place.directory / OWNER).write_text(older.model_dump_json())

    assert [place.directory] == [item.directory for item in scratch.reap(scratch_directory, NOW).reaped]


def test_no_link_leads_a_removal_out_of_scratch(scratch_directory: Path) -> None:
    """Links are removed, what they point to is not."""
    outside = scratch_directory / "precious"
    outside.mkdir()
    (outside / "file").touch()
    place = left_by_a_dead_run(request(scratch_directory))
    (place.data / "link").symlink_to(outside)
    (place.directory / "top").symlink_to(outside)

    scratch.reap(scratch_directory, NOW)

    assert not place.directory.exists()
    assert (outside / "file").exists()


@pytest.mark.parametrize("name", ["x" * 100, "dr,ill"])
def test_a_socket_path_that_cannot_be_told_lies_elsewhere_and_goes_with_the_place(
    scratch_directory: Path, name: str
) -> None:
    """Too long for the kernel, or two for libpq: recorded before it is made, private, reaped."""
    deep = scratch_directory / name
    place = left_by_a_dead_run(as_server(deep))
    assert place.sockets.stat().st_mode & 0o777 == 0o700
    assert not place.sockets.is_relative_to(deep)

    scratch.reap(deep, NOW)

    assert not place.sockets.exists()
    deep.rmdir()


def test_a_copy_that_cannot_be_removed_is_told_and_left_to_the_next_reaper(scratch_directory: Path) -> None:
    """What stands in the way is named, in its removal and by every reaper; once it is gone, all goes."""
    place = left_by_a_dead_run(request(scratch_directory))
    draft = scratch_directory / f".{place.directory.name}.draft"
    (draft / "odd").mkdir(parents=True)

    with pytest.raises(PreconditionFailed, match="could not be removed") as caught:
        scratch.remove(place)
    left = scratch.reap(scratch_directory, NOW).left

    assert caught.value.hint
    assert {draft, place.directory} == {each.directory for each in left}
    (draft / "odd").rmdir()
    assert scratch.reap(scratch_directory, NOW).left == ()
    assert [] == list(scratch_directory.iterdir())


@pytest.mark.parametrize("killed_in", ["making", "removing"])
def test_a_kill_between_two_steps_leaves_what_the_reaper_finishes(
    scratch_directory: Path, killed_in: str
) -> None:
    """A half-made directory, and one whose removal stopped before its end."""
    asked = request(scratch_directory)
    if killed_in == "making":
        scratch_directory.joinpath(f".{asked.directory.name}.draft").mkdir()
    else:
        place = left_by_a_dead_run(asked)
        place.directory.rename(scratch_directory / f".{asked.directory.name}.draft")
        for entry in (scratch_directory / f".{asked.directory.name}.draft").iterdir():
            if entry.is_dir():
                subprocess.run(["rm", "-r", entry], check=True)

    reaping = scratch.reap(scratch_directory, NOW)

    assert ["it was never finished"] == [item.reason for item in reaping.reaped]
    assert [] == list(scratch_directory.iterdir())


def test_a_process_is_ended_only_if_it_runs_on_the_copy(scratch_directory: Path) -> None:
    """A postmaster.pid that names a stranger harms nobody."""
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        place = left_by_a_dead_run(request(scratch_directory))
        (place.data / "postmaster.pid").write_text(f"{stranger.pid}\n{place.data}\n")

        scratch.reap(scratch_directory, NOW)

        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


# --- deaths -----------------------------------------------------------------------------------------

DYING = """
import sys, time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID
from pgvigil.drill import copy as copies, scratch
from pgvigil.drill.recover import recover
from pgvigil.drill.recovery import Stop, Watch
from pgvigil.drill.restore import restore, restore_command
from pgvigil.fleet import load_fleet
from pgvigil.pgbackrest import PgBackRest
from tests.fixtures.drill_copy import request

phase, directory, user, stop = sys.argv[1], Path(sys.argv[2]), sys.argv[3] or None, sys.argv[4]

def here(name):
    def wait(_=None):
        if phase == name:
            print(name, flush=True)
            time.sleep(600)
    return wait

settings = load_fleet().cluster("demo").pgbackrest
asked = request(directory).model_copy(update={"user": user})
place, _ = scratch.claim(asked, datetime.now(UTC))
backup = PgBackRest(settings).info().backups(1)[-1]
restore(settings, place, backup, on_line=lambda _: None, on_progress=here("restore"))
major = copies.read_major(place)
copy = copies.Copy(
    place=place, programs=copies.find_programs(major), major=major, superuser="postgres", role="pgvigil",
    restore_command=restore_command(settings, place, 1), shared_buffers_mb=16,
)
stop = Stop.model_validate_json(stop)
watch = Watch(deadline=timedelta(seconds=60), has_later=lambda _: True, on_progress=here("replay"))
if phase == "replay":
    copy = copy.model_copy(update={"restore_command": "sleep 1; " + copy.restore_command})
with recover(copy, stop, watch) as recovery:
    here("paused")()
    copies.promote(copy, timedelta(seconds=60))
until = datetime.now(UTC) + timedelta(hours=1)
scratch.keep(place, until)
copies.start_kept(copy)
print("kept", flush=True)
"""


@contextmanager
def dying(drill: Drill, phase: str) -> Iterator[subprocess.Popen[str]]:
    """A drill in a process of its own that stands still in a phase."""
    words = [phase, str(drill.directory), server_user() or "", drill.stop("two").model_dump_json()]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, "-c", DYING, *words], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )
    try:
        assert process.stdout
        assert f"{phase}\n" == process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def only_place(directory: Path) -> Place:
    found = [(entry, read_owner(entry)) for entry in directory.iterdir()]
    ((entry, owner),) = found
    assert isinstance(owner, Owner)
    return owner.place(entry)


def wait_until_gone(place: Place) -> None:
    deadline = time.monotonic() + 60
    while left := copyprocesses.find(place.directory, place.data):
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.1)


@pytest.mark.stanza
@pytest.mark.long
@pytest.mark.parametrize("phase", ["restore", "replay", "paused"])
def test_a_killed_drill_leaves_no_process_and_the_reaper_leaves_no_file(drill: Drill, phase: str) -> None:
    """SIGKILL of the run in the middle: its tools and its server end by themselves."""
    with dying(drill, phase) as process:
        place = only_place(drill.directory)
        assert copyprocesses.find(place.directory, place.data) or phase == "restore"
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until_gone(place)

    reaping = scratch.reap(drill.directory, NOW)

    assert ["its run is dead"] == [item.reason for item in reaping.reaped]
    assert [] == list(drill.directory.iterdir())


@pytest.mark.stanza
def test_the_reaper_ends_a_server_whose_keeper_was_killed_and_frees_its_memory(drill: Drill) -> None:
    """Run and keeper both gone at once: no process, no shared memory, no file is left."""
    with dying(drill, "paused") as process:
        place = only_place(drill.directory)
        postmaster = copyprocesses.postmaster(place.data)
        keeper = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()[1]
        segment = (place.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        os.kill(int(keeper), signal.SIGKILL)
        process.send_signal(signal.SIGKILL)
        process.wait()

    scratch.reap(drill.directory, NOW)

    assert set() == copyprocesses.find(place.directory, place.data)
    assert [] == list(drill.directory.iterdir())
    table = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    assert segment not in [row.split()[1] for row in table]


@pytest.mark.stanza
def test_a_kept_copy_outlives_its_run_until_its_deadline(drill: Drill) -> None:
    """A person can work in it; then any reaper ends it."""
    with dying(drill, "kept") as process:
        process.wait(30)
    place = only_place(drill.directory)
    before = scratch.reap(drill.directory, datetime.now(UTC))
    dsn = conninfo(host=str(place.sockets), user="postgres", dbname="postgres")
    deadline = time.monotonic() + 30
    while not (place.sockets / SOCKET).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with connect(dsn, "test") as session:
        session.execute("CREATE TABLE public.looked_at (x int)")

    after = scratch.reap(drill.directory, datetime.now(UTC) + timedelta(hours=2))

    assert ((), 1) == (before.reaped, len(before.left))
    assert ["its deadline has passed"] == [item.reason for item in after.reaped]
    assert after.reaped[0].processes > 0
    assert set() == copyprocesses.find(place.directory, place.data)
    assert [] == list(drill.directory.iterdir())


def test_a_place_can_be_entered_by_the_server_whatever_the_umask(scratch_directory: Path) -> None:
    """The server's user reads its configuration, and others do not read its data."""
    before = os.umask(0o077)
    try:
        place = claim(as_server(scratch_directory / "made"))
    finally:
        os.umask(before)

    modes = [path.stat().st_mode & 0o777 for path in (place.directory, place.conf, place.data, place.sockets)]
    scratch.remove(place)
    (scratch_directory / "made").rmdir()
    assert [0o755, 0o755, 0o700, 0o700] == modes


def test_a_run_knows_its_own_directory_again(scratch_directory: Path) -> None:
    """What the owner file says leads back to the same place."""
    run_id = uuid4()
    place = claim(request(scratch_directory, run_id=run_id))
    owner = read_owner(place.directory)

    assert owner
    assert (run_id, place) == (owner.run_id, owner.place(place.directory))
