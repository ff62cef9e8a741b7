"""One file per domain: a task is one call into pgvigil with a retry policy, a timeout and progress."""

PRIVATE_SERVER = "PGVIGIL_PRIVATE_SERVER"  # set where a run has a Prefect server that ends with it
