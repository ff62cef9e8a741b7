"""Whether one cluster can be worked on: its server, its pgBackRest, its stanza and repositories."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.backup import survey
from pgvigil.backup.facts import ServerFacts, Survey
from pgvigil.doctor.lines import Look
from pgvigil.errors import DeadlineExceeded, PgvigilError, PreconditionFailed, ToolFailed, VersionUnsupported
from pgvigil.pgbackrest import PgBackRest, StanzaInfo
from pgvigil.pgbackrest.argv import NEWEST, OLDEST
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.fleet import ClusterSettings
    from pgvigil.pgbackrest.argv import Version
    from pgvigil.reports import Finding

SESSION = "pgvigil doctor"
PATIENCE = timedelta(seconds=60)  # for one command of pgbackrest that only reads

# What infra/roles.sql grants; a backup's two functions had other names before PostgreSQL 15.
_GROUPS = ["pg_monitor"]
_FUNCTIONS = ["pg_switch_wal()", "pg_create_restore_point(text)"]
_BACKUP_GROUPS = ["pg_read_all_settings"]
_BACKUP_FUNCTIONS = [
    "pg_backup_start(text,boolean)",
    "pg_backup_stop(boolean)",
    "pg_start_backup(text,boolean,boolean)",
    "pg_stop_backup(boolean,boolean)",
    *_FUNCTIONS,
]


class Cluster:
    """A cluster under examination; what was read of it once is not read again."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        bounded = min(settings.pgbackrest.deadline, PATIENCE)
        self.pgbackrest = PgBackRest(settings.pgbackrest.model_copy(update={"deadline": bounded}))

    @property
    def stanza(self) -> str:
        """The stanza's name."""
        return self.settings.pgbackrest.stanza

    @cached_property
    def server(self) -> ServerFacts:
        """What the server says of itself."""
        return survey.read_server(self.settings.dsn, SESSION)

    @cached_property
    def info(self) -> StanzaInfo:
        """What the repositories list."""
        try:
            return self.pgbackrest.info()
        except DeadlineExceeded as error:
            raise PreconditionFailed(
                f"the repositories of stanza '{self.stanza}' did not answer within "
                f"{self.pgbackrest.settings.deadline.total_seconds():g} s",
                hint="check that their stores are up, and endpoint, host and port in pgbackrest.conf",
            ) from error

    @property
    def version(self) -> Version:
        """The program's version."""
        return self.pgbackrest.version

    def ask(self, block: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """Run a named block of doctor.sql on the server."""
        dsn = self.settings.dsn
        with postgres.connect(dsn, SESSION, connect_timeout=postgres.IMPATIENT) as connection:
            return connection.execute(query("doctor", block), parameters or None).fetchall()


def server_reachable(cluster: Cluster) -> str:
    """Open a session with the server."""
    (greeting,) = cluster.ask("greet", {})
    where = postgres.describe(cluster.settings.dsn)
    return f"{where} takes a session of role '{greeting['role']}' (PostgreSQL {greeting['version']})"


def server_role(cluster: Cluster) -> str:
    """Compare our role's rights with what infra/roles.sql grants."""
    (greeting,) = cluster.ask("greet", {})
    _require_grants(cluster, greeting["role"], _GROUPS, _FUNCTIONS)
    return f"role '{greeting['role']}' has what infra/roles.sql grants"


def pgbackrest_role(cluster: Cluster) -> str:
    """Compare the rights of pgBackRest's role with what infra/roles.sql grants, in our database."""
    options = survey.read_options(cluster.settings.pgbackrest)
    role = options.get("pg1-user") or cluster.settings.pgbackrest.user
    if role is None:
        raise ToolFailed(
            "pgbackrest.conf names no pg1-user, so its role is that of whoever starts it",
            hint="set pg1-user=pgbackrest and let it in by peer: see infra/pgbackrest/one-host.conf",
        )
    _require_grants(cluster, role, _BACKUP_GROUPS, _BACKUP_FUNCTIONS)
    return f"pgbackrest's role '{role}' has what infra/roles.sql grants"


def _require_grants(cluster: Cluster, role: str, groups: Sequence[str], functions: Sequence[str]) -> None:
    wanted = {"role": role, "groups": list(groups), "functions": list(functions)}
    cures = [row["cure"] for row in cluster.ask("missing_grants", wanted)]
    if cures:
        raise PreconditionFailed(
            f"role '{role}' lacks {len(cures)} of the rights that infra/roles.sql grants",
            hint=f"as superuser in the dsn's database: {'; '.join(cures)}",
        )


def server_databases(cluster: Cluster) -> str:
    """Look for the fleet file's databases."""
    names = sorted(cluster.settings.databases)
    for row in cluster.ask("databases", {"names": names}):
        fault, cure = (
            ("does not let our role in", f'GRANT CONNECT ON DATABASE "{row["name"]}" to this role')
            if row["is_there"]
            else ("does not exist", "create it, or correct 'databases' in the fleet file")
        )
        raise PreconditionFailed(f"database '{row['name']}' {fault}", hint=cure)
    return f"found {', '.join(names)}" if names else "the fleet file names none"


def server_facts(cluster: Cluster) -> str:
    """Read settings, statistics and WAL position."""
    return f"PostgreSQL {cluster.server.major}, {cluster.server.ready} WAL files wait for the archiver"


def server_archiving(cluster: Cluster) -> str:
    """Judge archive_mode and archive_command."""
    survey.require_archiving(cluster.server, cluster.stanza)
    return f"WAL is archived by '{cluster.server.archive_command}'"


def server_archiver(cluster: Cluster) -> str:
    """Judge the archiver's last words and its backlog."""
    server = cluster.server
    survey.require_archiver(server)
    _require_none(survey.check_backlog(server, cluster.settings.backup, cluster.stanza))
    if server.last_archived_wal is None:
        raise ToolFailed(
            "the archiver has neither archived nor failed since its statistics began",
            hint="SELECT pg_switch_wal() after some change, then look again",
        )
    return f"last archived {server.last_archived_wal} at {server.last_archived_time:%Y-%m-%d %H:%M:%S} UTC"


def server_clock(cluster: Cluster) -> str:
    """Compare the server's clock with ours."""
    _require_none(survey.check_clock(cluster.server, cluster.settings.backup, cluster.stanza))
    return f"the server's clock is {cluster.server.clock_skew.total_seconds():+.1f} s off this host's"


def _require_none(findings: Sequence[Finding]) -> None:
    for finding in findings:
        raise PreconditionFailed(finding.message, hint=finding.hint)


def pgbackrest_answers(cluster: Cluster) -> str:
    """Ask pgBackRest, where the command prefix leads, for its version."""
    return f"'{' '.join(cluster.settings.pgbackrest.command)}' answers: {_dotted(cluster.version)}"


def pgbackrest_tested(cluster: Cluster) -> str:
    """Compare pgBackRest's version with those that were tested."""
    if cluster.version > NEWEST:
        raise VersionUnsupported(
            f"pgbackrest {_dotted(cluster.version)} was not tested, "
            f"expected {_dotted(OLDEST)} to {_dotted(NEWEST)}",
            hint="upgrade pgvigil, or install a tested pgbackrest",
        )
    return f"pgbackrest {_dotted(cluster.version)} is one of those tested"


def pgbackrest_knows_server(cluster: Cluster) -> str:
    """Ask whether this pgBackRest supports the server's major."""
    survey.require_known_major(cluster.server.major, cluster.version)
    return f"pgbackrest {_dotted(cluster.version)} knows PostgreSQL {cluster.server.major}"


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def repository_reachable(cluster: Cluster) -> str:
    """Read the backup list of each repository."""
    survey.require_repositories(cluster.info)
    return f"repositories that answer: {len(cluster.info.repo)}"


def stanza_created(cluster: Cluster) -> str:
    """Look for the stanza in each repository."""
    survey.require_created(cluster.info)
    return f"stanza '{cluster.stanza}' is in every repository"


def stanza_of_server(cluster: Cluster) -> str:
    """Compare the stanza's system id with the server's."""
    survey.require_same_system(cluster.info, cluster.server)
    return f"stanza and server are system {cluster.server.system_id}"


def stanza_started(cluster: Cluster) -> str:
    """Look for a stop file."""
    if cluster.info.status.lock.backup.held:
        raise ToolFailed(
            "a pgbackrest command works on the stanza right now", hint="look again when it has ended"
        )
    survey.require_started(cluster.pgbackrest, cluster.info)
    return "no stop file forbids work"


def stanza_leftovers(cluster: Cluster) -> str:
    """Look on this host for backup processes that nobody waits for."""
    survey.require_no_orphans(cluster.settings.pgbackrest)
    return "no backup process on this host has lost its starter"


def repository_owner(cluster: Cluster) -> str:
    """Compare who owns repositories that are directories of this host with who pgBackRest runs as."""
    settings = cluster.settings.pgbackrest
    here = survey.posix_repositories(survey.read_options(settings))
    survey.require_owner(settings)
    return f"{len(here)} of {len(cluster.info.repo)} repositories are directories in sight, of the right user"


def repository_space(cluster: Cluster) -> str:
    """Compare the free space of repositories that are directories of this host with the last backups."""
    settings = cluster.settings.pgbackrest
    here = survey.posix_repositories(survey.read_options(settings))
    world = Survey(server=cluster.server, stanza=cluster.info, version=cluster.version)
    _require_none(survey.check_space(settings, world))
    return f"{len(here)} of {len(cluster.info.repo)} repositories are directories in sight, with space"


CLUSTER = (
    Look("server.reachable", server_reachable, refutes=PgvigilError),
    Look("server.role", server_role, needs=("server.reachable",)),
    Look("server.databases", server_databases, needs=("server.reachable",)),
    Look("server.facts", server_facts, needs=("server.reachable",)),
    Look("server.archiving", server_archiving, needs=("server.facts",)),
    Look("server.archiver", server_archiver, needs=("server.archiving",), required=False),
    Look("server.clock", server_clock, needs=("server.facts",)),
    Look("pgbackrest.answers", pgbackrest_answers, refutes=PgvigilError),
    Look("pgbackrest.tested", pgbackrest_tested, needs=("pgbackrest.answers",)),
    Look("pgbackrest.knows-server", pgbackrest_knows_server, needs=("pgbackrest.answers", "server.facts")),
    Look("pgbackrest.role", pgbackrest_role, needs=("server.reachable",), required=False),
    Look("repository.reachable", repository_reachable, needs=("pgbackrest.answers",), refutes=PgvigilError),
    Look("stanza.created", stanza_created, needs=("repository.reachable",)),
    Look("stanza.of-server", stanza_of_server, needs=("stanza.created", "server.facts")),
    Look("stanza.started", stanza_started, needs=("stanza.created",)),
    Look("stanza.leftovers", stanza_leftovers),
    Look("repository.owner", repository_owner, needs=("repository.reachable",), required=False),
    Look("repository.space", repository_space, needs=("stanza.created", "server.facts"), required=False),
)
