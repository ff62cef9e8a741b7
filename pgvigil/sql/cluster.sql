-- position: where the server writes, and what it says of its archiver; sizes are bytes; the checkpoint of
-- a standby may be of the timeline before the one that it replays, so the newest that it knows of counts
SELECT clock_timestamp() AS now,
       pg_is_in_recovery() AS in_recovery,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_id,
       CASE WHEN pg_is_in_recovery() THEN GREATEST((SELECT timeline_id FROM pg_control_checkpoint()),
                          (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                          (SELECT received_tli FROM pg_stat_wal_receiver))
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS timeline,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END::text AS lsn,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment_size,
       current_setting('archive_mode') AS archive_mode,
       archiver.last_archived_wal,
       archiver.last_archived_time,
       archiver.last_failed_wal,
       archiver.last_failed_time
  FROM pg_stat_archiver AS archiver

-- survey: what a backup needs to know beyond the position, in one row
SELECT current_setting('server_version_num')::int AS version_num,
       current_setting('data_checksums') = 'on' AS data_checksums,
       current_setting('archive_command') AS archive_command,
       archiver.archived_count,
       archiver.failed_count,
       (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS ready,
       (SELECT sum(pg_database_size(oid))::bigint FROM pg_database WHERE datallowconn) AS size
  FROM pg_stat_archiver AS archiver

-- take_lock: the session's lock on one stanza, waited for as long as lock_timeout says
SELECT pg_advisory_lock(%(key)s)

-- holds_lock: whether this session still has that lock
SELECT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
                  AND ((classid::bigint << 32) | objid::bigint) = %(key)s) AS held

-- lock_owner: who has that lock, by the name that its session gave itself
SELECT activity.pid, activity.application_name, activity.usename, host(activity.client_addr) AS client,
       activity.backend_start
  FROM pg_locks AS locks
  JOIN pg_stat_activity AS activity USING (pid)
 WHERE locks.locktype = 'advisory' AND locks.granted
   AND ((locks.classid::bigint << 32) | locks.objid::bigint) = %(key)s
