"""Dropping a detached table, under a lock that proves it is still what was copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive.digest import pin
from pgvigil.archive.tree import read_tree, without_bound
from pgvigil.errors import PreconditionFailed
from pgvigil.partitions import ledger
from pgvigil.partitions.catalog import identifier
from pgvigil.partitions.detach import standing

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.archive.manifest import Manifest
    from pgvigil.partitions.facts import Departure, Entry
    from pgvigil.postgres import Connection


class Changed(PreconditionFailed):
    """A table may have changed since its copy was made, so it is not dropped."""

    code = "PGV-210"


def drop(
    session: Connection,
    departure: Departure,
    entry: Entry,
    manifest: Manifest,
    last_look: Callable[[], None],
) -> None:
    """Drop the table and its work state in one transaction; raises Changed, and then drops nothing.

    The manifest must be that of a copy made behind this very fence. Under ACCESS EXCLUSIVE the fence is
    compared with what it was before the copy was made. It shuts out every writer, and to open it leaves a
    trace in the catalog, so equality proves the rows unchanged. `last_look` is called when nothing but the
    drop is left to do, and may still forbid it.
    """
    table = identifier(departure.name)
    with session.transaction():
        session.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
        check_unchanged(session, departure, entry)
        check_copied(session, departure, entry, manifest)
        last_look()
        session.execute(sql.SQL("DROP TABLE {}").format(table))
        if standing(session, departure, departure.parent) != "gone":  # no lock keeps a schema from its name
            raise Changed(f"'{departure.name}' is another table since a moment", hint="plan again")
        ledger.end(session, entry.id)


def check_unchanged(session: Connection, departure: Departure, entry: Entry) -> None:
    """Raise Changed unless the table is detached and its fence has held since it was raised."""
    now = standing(session, departure, departure.parent)
    if now != "detached":
        raise Changed(f"'{departure.name}' is {now}, expected detached", hint="plan again")
    fence = ledger.read_fence(session, departure.relation)
    if entry.fence is None or fence != entry.fence:
        raise Changed(
            f"the fence around '{departure.name}' was opened since its copy was made: {fence}, "
            f"expected {entry.fence}",
            hint="see who wrote to it; the next run fences it and makes a new copy",
        )


def check_copied(session: Connection, departure: Departure, entry: Entry, manifest: Manifest) -> None:
    """Raise Changed unless a copy was made behind the fence that an entry has, of the table as it is."""
    if manifest.fence != entry.seal:
        raise Changed(
            f"the copy of '{departure.name}' was made behind fence {manifest.fence or 'unknown'}, "
            f"expected {entry.seal}",
            hint="see who wrote to the work state or to the bucket; the next run makes a new copy",
        )
    if not is_as_copied(session, entry, manifest):
        raise Changed(
            f"the definition of '{departure.name}' changed since its copy was made",
            hint="see who altered it; the next run makes a new copy",
        )


def is_as_copied(session: Connection, entry: Entry, manifest: Manifest) -> bool:
    """Tell whether a table, and each below it, is defined as its copy would rebuild it."""
    pin(session)
    found = without_bound(read_tree(session, entry.relation))
    copied = [node.model_dump(exclude={"stored"}) for node in manifest.nodes]
    return copied == [branch.model_dump() for branch in found]
