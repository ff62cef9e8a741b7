-- files: every relation with storage in this database, by the path of its file
SELECT pg_relation_filepath(c.oid) AS path, current_database() || ': ' || n.nspname || '.' || c.relname AS relation
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE pg_relation_filepath(c.oid) IS NOT NULL

-- failures: how many pages each database met that failed their checksum; the row without a name is what all share
SELECT coalesce(datname, 'shared catalogs') AS database, checksum_failures AS failures
  FROM pg_stat_database
 ORDER BY 1
