"""One file per pipeline: each reads like the runbook that a DBA would write."""
