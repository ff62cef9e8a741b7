-- ready: what waits for the archiver, and since when; asked after the position, so that every segment
-- finished before it is either in this list or was archived
SELECT left(name, -6) AS name, modification AS since
  FROM pg_ls_archive_statusdir()
 WHERE name LIKE '%.ready'
 ORDER BY name

-- heartbeat: a transaction of our own in the WAL, without a table
SELECT pg_logical_emit_message(true, 'pgvigil', %(mark)s)

-- end_segment: the segment that now holds the end of the WAL, then the switch away from it
SELECT pg_walfile_name(pg_current_wal_lsn() - 1) AS segment, clock_timestamp() AS committed_at, pg_switch_wal()
