from pgvigil.postgres import connect
from pgvigil.sandbox import Sandbox
from pgvigil.wal.content import Origin
from pgvigil.wal.names import segment_number
from tests.fixtures.segments import PAGE, fault_of, named

SEGMENT = 16 * 2**20
STEPS = (
    "SELECT pg_switch_wal()",
    "SELECT pg_logical_emit_message(false, 'test', repeat('pgvigil', 100000))",
    "SELECT pg_walfile_name(pg_switch_wal()) AS name, system_identifier AS system FROM pg_control_system()",
)


def finished_segment(sandbox: Sandbox) -> tuple[int, int, bytes]:
    """Write a part of a segment and end it; returns the system's id, the segment's number and its content."""
    with connect(sandbox.primary_admin_dsn, "test") as session:
        *_, last = [session.execute(step.encode()).fetchone() or {} for step in STEPS]
    content = (sandbox.data("primary") / "pg_wal" / last["name"]).read_bytes()
    return last["system"], segment_number(last["name"], SEGMENT), content


def test_wal_as_this_server_writes_it_is_whole_and_with_a_hole_it_is_not(sandbox: Sandbox) -> None:
    """Header and pages are read as the major at hand writes them: no fault; and a page of zeros is one."""
    system, number, content = finished_segment(sandbox)
    holed = content[: 3 * PAGE] + bytes(PAGE) + content[4 * PAGE :]

    found = [fault_of(data, named(data, number), Origin(SEGMENT, system)) for data in (content, holed)]

    assert ["", "wal-corrupt"] == found
