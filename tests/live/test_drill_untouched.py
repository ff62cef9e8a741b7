"""Claims about a real repository, listed before and after production worked and somebody else wrote."""

import shutil

from pgvigil.drill import untouched
from pgvigil.drill.untouched import Listing, Production
from pgvigil.fleet import load_fleet
from pgvigil.pgbackrest import PgBackRest
from pgvigil.reports import Verdict, conclude
from pgvigil.wal.names import segment_name, segment_number
from tests.fixtures.wal import Vault, own_vault

__all__ = ["own_vault"]

SIZE = 16 * 1024 * 1024


def listed(vault: Vault) -> Listing:
    vault.wait_archived()
    return untouched.read(PgBackRest(load_fleet().cluster("demo").pgbackrest), 1)


def writing(vault: Vault) -> str:
    (row,) = vault.sql("SELECT pg_walfile_name(pg_current_wal_lsn()) AS segment")
    return str(row["segment"])


def test_a_repository_tells_production_from_a_stray_drill(own_vault: Vault) -> None:
    """WAL, a backup and an expire of production leave no trace; a promoted copy's segment is named."""
    first = writing(own_vault)
    before = listed(own_vault)
    own_vault.write(2)
    own_vault.backup("full")
    own_vault.pgbackrest("--repo1-retention-full=1", "--log-level-console=off", "expire")
    after = listed(own_vault)
    production = Production(timelines=frozenset({1}), first=first, last=writing(own_vault), segment_size=SIZE)
    healthy = untouched.judge(1, before, after, production)

    newest = own_vault.segments()[-1]
    stray = segment_name(2, segment_number(newest.name[:24], SIZE), SIZE) + newest.name[24:]
    (own_vault.archive / stray[:16]).mkdir()
    shutil.copy(newest, own_vault.archive / stray[:16] / stray)
    polluted = untouched.judge(1, before, listed(own_vault), production)

    assert before.backup.keys() - after.backup.keys()
    assert before.archive.keys() - after.archive.keys()
    assert healthy.findings == ()
    assert conclude(healthy.checks) is Verdict.VERIFIED
    assert [finding.code for finding in polluted.findings] == ["repository-new"]
    assert stray in polluted.findings[0].message
    assert "timeline 2 is not the server's" in polluted.findings[0].message
    assert conclude(polluted.checks) is Verdict.REFUTED
