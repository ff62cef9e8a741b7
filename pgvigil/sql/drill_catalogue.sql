-- catalogs: every system catalog of this server, what of it this role may read, and its columns with types
SELECT c.oid::bigint AS oid,
       c.relname AS name,
       c.relisshared AS shared,
       has_table_privilege(c.oid, 'SELECT') AS readable,
       (SELECT array_agg(ARRAY[a.attname::text, format_type(a.atttypid, NULL)] ORDER BY a.attnum)
          FROM pg_attribute AS a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
       (SELECT array_agg(a.attname::text ORDER BY k.place)
          FROM pg_index AS i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place), pg_attribute AS a
         WHERE i.indrelid = c.oid AND i.indisprimary
           AND a.attrelid = c.oid AND a.attnum = k.attnum) AS key
  FROM pg_class AS c
 WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' AND c.oid < 16384
 ORDER BY c.relname

-- window: which transactions were decided when this snapshot was taken, and which had not begun
SELECT pg_snapshot_xmin(s)::text::bigint AS oldest, pg_snapshot_xmax(s)::text::bigint AS next
  FROM pg_current_snapshot() AS s

-- temporary: objects of sessions, which no restore brings back
SELECT 'pg_class'::regclass::oid::bigint AS classid, oid::bigint AS objid FROM pg_class WHERE relpersistence = 't'
UNION ALL
SELECT 'pg_type'::regclass::oid::bigint, oid::bigint FROM pg_type WHERE typnamespace IN (
    SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\_temp\_%')
UNION ALL
SELECT 'pg_constraint'::regclass::oid::bigint, oid::bigint FROM pg_constraint WHERE connamespace IN (
    SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\_temp\_%')
UNION ALL
SELECT 'pg_proc'::regclass::oid::bigint, oid::bigint FROM pg_proc WHERE pronamespace IN (
    SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\_temp\_%')
UNION ALL
SELECT 'pg_attrdef'::regclass::oid::bigint, d.oid::bigint
  FROM pg_attrdef AS d JOIN pg_class AS c ON c.oid = d.adrelid WHERE c.relpersistence = 't'
UNION ALL
SELECT 'pg_trigger'::regclass::oid::bigint, t.oid::bigint
  FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid WHERE c.relpersistence = 't'
UNION ALL
SELECT 'pg_rewrite'::regclass::oid::bigint, r.oid::bigint
  FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class WHERE c.relpersistence = 't'

-- identify: kind and name of objects; one that is gone has neither
SELECT a.classid, a.objid, o.type, o.identity
  FROM unnest(%(classes)s::bigint[], %(objects)s::bigint[]) AS a (classid, objid),
       LATERAL pg_identify_object(a.classid::oid, a.objid::oid, 0) AS o
 WHERE a.objid <> 0
   AND a.classid::oid <> 'pg_replication_origin'::regclass

-- contained: which of these objects fall with another of them: an index with its table, a row type, a rule
SELECT DISTINCT d.classid::bigint AS classid, d.objid::bigint AS objid,
       d.refclassid::bigint AS within_class, d.refobjid::bigint AS within
  FROM unnest(%(classes)s::bigint[], %(objects)s::bigint[]) AS a (classid, objid)
  JOIN pg_depend AS d ON d.classid = a.classid::oid AND d.objid = a.objid::oid
 WHERE d.deptype IN ('a', 'i', 'P', 'S', 'e') AND (d.refclassid, d.refobjid) <> (d.classid, d.objid)
   AND d.objid >= 16384

-- collations: what the indexes of this database sort by, with the version recorded and the one of this host
SELECT name, recorded, here, indexes
  FROM (SELECT coll.collname AS name,
               coll.collversion AS recorded,
               pg_collation_actual_version(coll.oid) AS here,
               count(DISTINCT i.indexrelid) AS indexes
          FROM pg_index AS i, unnest(i.indcollation::oid[]) AS used (oid) JOIN pg_collation AS coll USING (oid)
         WHERE coll.collprovider <> 'd'
         GROUP BY coll.oid, coll.collname, coll.collversion
         UNION ALL
        SELECT 'default of database ' || d.datname, d.datcollversion,
               pg_database_collation_actual_version(d.oid),
               (SELECT count(DISTINCT i.indexrelid) FROM pg_index AS i, unnest(i.indcollation::oid[]) AS used (oid)
                 WHERE used.oid = 'pg_catalog."default"'::regcollation)
          FROM pg_database AS d WHERE d.datname = current_database()) AS versions
 ORDER BY name

-- sequences: those that are logged, with their definition and whether their values may be read
SELECT c.oid::bigint AS oid, n.nspname AS schema_name, c.relname AS name, c.relfilenode::bigint AS filenode,
       s.seqstart AS start, s.seqincrement AS increment, s.seqmin AS minimum, s.seqmax AS maximum,
       s.seqcache AS cache, s.seqcycle AS cycle, has_sequence_privilege(c.oid, 'SELECT') AS readable
  FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relpersistence = 'p'
 ORDER BY c.oid

-- locked: which of these relations this session has locked
SELECT DISTINCT relation::bigint AS oid
  FROM pg_locks
 WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted AND relation = ANY (%(oids)s::oid[])

-- owners: the columns that own these sequences, where an index leads to their last value; and the tables for
-- which PostgreSQL plans to find it
SELECT s.seqrelid::bigint AS oid, n.nspname AS schema_name, c.relname AS table_name, a.attname AS column_name,
       c.relkind = 'p' AS is_partitioned, s.seqincrement > 0 AS is_ascending,
       ARRAY(SELECT c.oid::bigint UNION SELECT relid::oid::bigint FROM pg_partition_tree(c.oid)) AS planned
  FROM pg_sequence AS s
  JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid
                     AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
  JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attnum > 0
  JOIN pg_class AS c ON c.oid = a.attrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE s.seqrelid = ANY (%(oids)s::oid[])
   AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
   AND a.atttypid IN ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype)
   AND EXISTS (SELECT FROM pg_index AS i
                 JOIN pg_class AS x ON x.oid = i.indexrelid
                 JOIN pg_am AS m ON m.oid = x.relam
                WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum AND i.indisvalid AND i.indpred IS NULL
                  AND m.amname = 'btree')
