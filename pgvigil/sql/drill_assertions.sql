-- role: whether a role exists
SELECT FROM pg_roles WHERE rolname = %(role)s

-- settings: what a session of the role would begin with, the most particular last; our own bounds stay
SELECT split_part(setting, '=', 1) AS name, substr(setting, strpos(setting, '=') + 1) AS value
  FROM (SELECT 0 AS rank, 'search_path="$user", public' AS setting
         UNION ALL
        SELECT 1 + (s.setdatabase <> 0)::int + 2 * (s.setrole <> 0)::int, unnest(s.setconfig)
          FROM pg_db_role_setting AS s
         WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
           AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = %(role)s))) AS settings
 WHERE split_part(setting, '=', 1) NOT IN (
           'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'role',
           'session_authorization', 'transaction_read_only', 'session_replication_role',
           'session_preload_libraries', 'local_preload_libraries', 'log_statement', 'log_min_duration_statement')
 ORDER BY rank
