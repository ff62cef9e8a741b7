-- position: where the server writes, and what it says of its archiver; sizes are bytes
SELECT clock_timestamp() AS now,
       pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_id,
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS timeline,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END::text AS lsn,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment_size,
       current_setting('archive_mode') AS archive_mode,
       archiver.last_archived_wal,
       archiver.last_archived_time,
       archiver.last_failed_wal,
       archiver.last_failed_time
  FROM pg_stat_archiver AS archiver

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
