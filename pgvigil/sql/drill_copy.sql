-- data_directory: where the server that answers lives
SELECT current_setting('data_directory') AS data_directory

-- replay: how far recovery is; the pause state exists only while it goes on
SELECT pg_is_in_recovery() AS in_recovery,
       CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE '' END AS pause,
       pg_last_wal_replay_lsn()::text AS lsn,
       pg_last_xact_replay_timestamp() AS committed_at

-- promote: end recovery where it is, and wait so long until writes are taken
SELECT CASE WHEN pg_is_in_recovery() THEN pg_promote(true, %(seconds)s) ELSE true END AS promoted

-- first_query: what any client reads first
SELECT count(*) FROM pg_class
