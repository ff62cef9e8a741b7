-- greet: who we are, and where
SELECT current_user AS role, current_database() AS database, current_setting('server_version') AS version

-- missing_grants: the statements that give a role of infra/roles.sql what it lacks in this database
WITH asked AS (SELECT oid, rolname FROM pg_roles WHERE rolname = %(role)s::text)
SELECT format('CREATE ROLE %%I LOGIN', %(role)s::text) AS cure WHERE NOT EXISTS (SELECT FROM asked)
UNION ALL
SELECT format('GRANT CONNECT ON DATABASE %%I TO %%I', current_database(), rolname)
  FROM asked
 WHERE NOT has_database_privilege(oid, current_database(), 'CONNECT')
UNION ALL
SELECT format('GRANT %%I TO %%I', wanted.name, asked.rolname)
  FROM asked CROSS JOIN unnest(%(groups)s::text[]) AS wanted (name)
 WHERE NOT pg_has_role(asked.oid, wanted.name::name, 'USAGE')
UNION ALL
-- a function that this major does not have is not needed on it
SELECT format('GRANT EXECUTE ON FUNCTION %%s TO %%I', to_regprocedure(wanted.name), asked.rolname)
  FROM asked CROSS JOIN unnest(%(functions)s::text[]) AS wanted (name)
 WHERE NOT has_function_privilege(asked.oid, to_regprocedure(wanted.name)::oid, 'EXECUTE')

-- databases: which of these the server lacks, or does not let us enter
SELECT wanted.name, database.oid IS NOT NULL AS is_there
  FROM unnest(%(names)s::text[]) AS wanted (name)
  LEFT JOIN pg_database AS database ON database.datname = wanted.name
 WHERE database.oid IS NULL OR NOT has_database_privilege(database.oid, 'CONNECT')

-- audit_store: whether the store takes writes, has the log, and lets us append to it
SELECT current_user AS role,
       pg_is_in_recovery() AS is_standby,
       current_setting('transaction_read_only') = 'on' AS is_read_only,
       EXISTS (SELECT FROM pg_proc WHERE proname = 'append' AND pronamespace = schema.oid) AS is_installed,
       coalesce(
           has_schema_privilege(schema.oid, 'USAGE')
           AND (SELECT bool_and(has_function_privilege(oid, 'EXECUTE'))
                  FROM pg_proc WHERE pronamespace = schema.oid AND proname IN ('append', 'seen'))
           AND (SELECT bool_and(has_table_privilege(oid, 'SELECT'))
                  FROM pg_class WHERE relnamespace = schema.oid AND relname IN ('audit', 'audit_log')),
           false
       ) AS may_write
  FROM (SELECT) AS one
  LEFT JOIN pg_namespace AS schema ON schema.nspname = 'pgvigil'
