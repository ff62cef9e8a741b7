"""pgBackRest as a subprocess: argv in, models out, its exit codes as errors that carry a decision."""

from pgvigil.pgbackrest.client import PgBackRest
from pgvigil.pgbackrest.info import Backup, RepositoryStatus, StanzaInfo

__all__ = ["Backup", "PgBackRest", "RepositoryStatus", "StanzaInfo"]
