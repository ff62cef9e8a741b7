-- data_directory: where the server that answers lives
SELECT current_setting('data_directory') AS data_directory

-- version: which PostgreSQL runs the copy
SELECT version() AS version

-- replay: how far recovery is; the pause state exists only while it goes on
SELECT pg_is_in_recovery() AS in_recovery,
       CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE '' END AS pause,
       pg_last_wal_replay_lsn()::text AS lsn,
       pg_last_xact_replay_timestamp() AS committed_at

-- promote: end recovery where it is paused. At its target the server takes this for a promotion, at once;
-- pg_promote it would hear only when it next looks whether the pause is over, within a second
SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume() END

-- in_recovery: whether it still replays
SELECT pg_is_in_recovery() AS in_recovery

-- first_query: what any client reads first
SELECT count(*) FROM pg_class
