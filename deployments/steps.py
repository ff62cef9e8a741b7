"""What a deploy is made of: what is wanted, and the steps that each part of it plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from deployments.manifest import Manifest
    from pgvigil.fleet import Fleet


@dataclass(frozen=True)
class Wanted:
    """How the server is to be: what prefect.yaml and the fleet file say."""

    manifest: Manifest
    fleet: Fleet


@dataclass(frozen=True)
class Step:
    """One change that the server needs, as a sentence and as the call that makes it."""

    text: str
    apply: Callable[[], object]


# Looks at the server, changes nothing, and yields what it needs: nothing when it is as wanted.
Planner: TypeAlias = Callable[["SyncPrefectClient", Wanted], Iterator[Step]]
