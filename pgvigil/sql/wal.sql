-- ready: what waits for the archiver, and since when; asked after the position, so that every segment
-- finished before it is either in this list or was archived
SELECT left(name, -6) AS name, modification AS since
  FROM pg_ls_archive_statusdir()
 WHERE name LIKE '%.ready'
 ORDER BY name

-- received: what a standby has of the primary's WAL, and when each file was last written
SELECT name, modification AS since
  FROM pg_ls_waldir()
 WHERE name ~ '^[0-9A-F]{24}$'
 ORDER BY name

-- began: when the server came onto a timeline; it keeps the history file that it wrote then
SELECT modification AS began FROM pg_ls_waldir() WHERE name = %(history)s

-- heartbeat: a transaction of our own in the WAL, without a table
SELECT pg_logical_emit_message(true, 'pgvigil', %(mark)s)

-- end_segment: the mark again, after the commit, then the switch away from the segment that has it; twice,
-- for the end of a page may part one
SELECT pg_walfile_name(pg_logical_emit_message(false, 'pgvigil', %(mark)s) - 1) AS segment,
       pg_logical_emit_message(false, 'pgvigil', %(mark)s),
       clock_timestamp() AS committed_at,
       pg_switch_wal()
