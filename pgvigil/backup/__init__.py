"""Backups: look, decide, take, prove by reading the repository, expire by plan."""
