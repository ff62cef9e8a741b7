"""Partitions of a table: made ahead, detached when old, dropped when their copy is proven."""
