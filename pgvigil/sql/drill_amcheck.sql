-- databases: every database of the copy, and whether it lets anybody in; one half dropped (-2) never does again
SELECT datname AS name, datallowconn AS allows FROM pg_database WHERE datconnlimit <> -2 ORDER BY oid

-- installed: the amcheck that is here, whether a newer one could be, whether its schema has functions of a role
-- that is no superuser, and the event triggers that would hear of it
SELECT e.extversion AS version, n.nspname AS schema_name,
       EXISTS (SELECT FROM pg_proc AS function JOIN pg_roles AS owner ON owner.oid = function.proowner
                WHERE function.pronamespace = n.oid AND NOT owner.rolsuper) AS is_mixed,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'amcheck') AS newest,
       (SELECT array_agg(ARRAY[evtname::text, evtenabled::text] ORDER BY evtname)
          FROM pg_event_trigger WHERE evtenabled <> 'D') AS event_triggers
  FROM (SELECT) AS always
  LEFT JOIN pg_extension AS e ON e.extname = 'amcheck'
  LEFT JOIN pg_namespace AS n ON n.oid = e.extnamespace

-- prepared: transactions of this database that were prepared and neither committed nor rolled back
SELECT gid FROM pg_prepared_xacts WHERE database = current_database()

-- relations: what has pages of its own, and which of pg_amcheck's two kinds it is, if any
SELECT c.oid::bigint AS oid, n.nspname AS schema_name, c.relname AS name,
       CASE WHEN c.relkind IN ('r', 'm', 't') AND am.amname = 'heap' THEN 'heap table'
            WHEN c.relkind = 'i' AND am.amname = 'btree' AND i.indisvalid AND i.indisready AND i.indislive
            THEN 'btree index'
       END AS checked_as,
       coalesce(CASE WHEN NOT i.indisvalid THEN 'invalid ' ELSE '' END || am.amname || ' index', am.amname) AS kind
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_am AS am ON am.oid = c.relam
  LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
 WHERE c.relkind IN ('r', 'm', 't', 'i') AND c.relpersistence <> 't'
 ORDER BY c.oid
