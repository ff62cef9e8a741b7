"""The library behind pgvigil's flows: PostgreSQL, pgBackRest and S3, and nothing of Prefect."""

__version__ = "0.1.0"
