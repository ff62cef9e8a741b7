"""One file per domain: a task is one call into pgvigil with a retry policy, a timeout and progress."""
