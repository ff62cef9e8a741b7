-- tree: a table and every partition below it, parents first
WITH RECURSIVE tree AS (
    SELECT oid, relkind, NULL::oid AS parent, 0 AS depth, false AS is_pending
      FROM pg_class WHERE oid = %(oid)s
     UNION ALL
    SELECT child.oid, child.relkind, tree.oid, tree.depth + 1, inherits.inhdetachpending
      FROM tree
      JOIN pg_inherits AS inherits ON inherits.inhparent = tree.oid AND tree.relkind = 'p'
      JOIN pg_class AS child ON child.oid = inherits.inhrelid
)
SELECT tree.oid::bigint AS oid, tree.parent::bigint AS parent, tree.relkind::text AS kind, tree.is_pending,
       CASE WHEN tree.depth > 0 THEN pg_get_expr(class.relpartbound, class.oid) ELSE '' END AS bound
  FROM tree JOIN pg_class AS class USING (oid)
 ORDER BY tree.depth, tree.oid

-- is_named: whether a table has this name
SELECT true AS is_named FROM pg_class AS relation JOIN pg_namespace AS namespace ON namespace.oid = relnamespace
 WHERE relation.oid = %(oid)s AND relname = %(name)s AND nspname = %(schema)s

-- table: what a table is beside its columns
SELECT namespace.nspname AS schema, relation.relname AS name, pg_get_userbyid(relation.relowner) AS owner,
       relation.relkind::text AS kind, relation.relpersistence::text AS persistence,
       coalesce(relation.reloptions, '{}') || ARRAY(
           SELECT 'toast.' || option FROM pg_class AS toast CROSS JOIN unnest(toast.reloptions) AS option
            WHERE toast.oid = relation.reltoastrelid) AS options,
       relation.relrowsecurity AS row_security, relation.relforcerowsecurity AS force_row_security,
       relation.relreplident::text AS replica_identity,
       ARRAY(SELECT privilege_type FROM aclexplode(acldefault('r', relation.relowner)) WHERE grantee = relation.relowner
             EXCEPT
             SELECT privilege_type FROM aclexplode(coalesce(relation.relacl, acldefault('r', relation.relowner)))
              WHERE grantee = relation.relowner
              ORDER BY 1) AS owner_lacks,
       obj_description(relation.oid, 'pg_class') AS comment,
       pg_table_size(relation.oid) AS size,
       coalesce(pg_get_partkeydef(relation.oid), '') AS partition_by
  FROM pg_class AS relation JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
 WHERE relation.oid = %(oid)s

-- columns: in their order, without those that were dropped
SELECT attribute.attname AS name, format_type(attribute.atttypid, attribute.atttypmod) AS type,
       attribute.atttypid::bigint AS type_oid,
       CASE WHEN attribute.attcollation <> type.typcollation
            THEN format('%%I.%%I', space.nspname, collation_.collname) END AS collation,
       attribute.attnotnull AND null_check.is_proven AS not_null,
       attribute.attnotnull AND NOT null_check.is_proven AS not_null_unproven,
       pg_get_expr(def.adbin, def.adrelid) AS expression,
       attribute.attgenerated::text AS generated, attribute.attidentity::text AS identity,
       CASE WHEN attribute.attstorage <> type.typstorage THEN attribute.attstorage::text ELSE '' END AS storage,
       attribute.attcompression::text AS compression,
       nullif(attribute.attstattarget, -1)::int AS statistics,
       -- A server may keep marks of its own among them.
       ARRAY(SELECT option FROM unnest(attribute.attoptions) AS option WHERE option LIKE 'n@_distinct%%' ESCAPE '@')
           AS options,
       numbering.numbering,
       col_description(attribute.attrelid, attribute.attnum) AS comment
  FROM pg_attribute AS attribute
  JOIN pg_type AS type ON type.oid = attribute.atttypid
  LEFT JOIN pg_attrdef AS def ON def.adrelid = attribute.attrelid AND def.adnum = attribute.attnum
  CROSS JOIN LATERAL (
       -- From PostgreSQL 18 on, a NOT NULL is a constraint, and older rows may break one that is NOT VALID.
       SELECT coalesce(bool_and(convalidated), true) AS is_proven FROM pg_constraint
        WHERE conrelid = attribute.attrelid AND contype = 'n' AND conkey = ARRAY[attribute.attnum]) AS null_check
  LEFT JOIN pg_collation AS collation_ ON collation_.oid = attribute.attcollation
  LEFT JOIN pg_namespace AS space ON space.oid = collation_.collnamespace
  LEFT JOIN LATERAL (
       SELECT jsonb_build_object(
                  'schema_', CASE WHEN attribute.attidentity = '' THEN home.nspname ELSE '' END,
                  'name', CASE WHEN attribute.attidentity = '' THEN class.relname ELSE '' END,
                  'type', format_type(seqtypid, NULL), 'start', seqstart, 'increment', seqincrement,
                  'minimum', seqmin, 'maximum', seqmax, 'cache', seqcache, 'is_cycled', seqcycle) AS numbering
         FROM pg_depend AS depend
         JOIN pg_sequence ON seqrelid = depend.objid
         JOIN pg_class AS class ON class.oid = seqrelid
         JOIN pg_namespace AS home ON home.oid = class.relnamespace
        WHERE depend.classid = 'pg_class'::regclass AND depend.refclassid = 'pg_class'::regclass
          AND depend.refobjid = attribute.attrelid AND depend.refobjsubid = attribute.attnum
          AND depend.deptype IN ('a', 'i')
        ORDER BY depend.objid LIMIT 1) AS numbering ON true
 WHERE attribute.attrelid = %(oid)s AND attribute.attnum > 0 AND NOT attribute.attisdropped
 ORDER BY attribute.attnum

-- types: enums, composite types and domains that these types are made of, as people defined them
WITH RECURSIVE used AS (
    SELECT to_regtype(name)::oid AS oid FROM unnest(%(names)s::text[]) AS name
     UNION
    SELECT part.oid
      FROM used JOIN pg_type AS type USING (oid)
     CROSS JOIN LATERAL (
           SELECT typelem UNION ALL SELECT typbasetype
            UNION ALL
           SELECT atttypid FROM pg_attribute
            WHERE typtype = 'c' AND attrelid = typrelid AND attnum > 0 AND NOT attisdropped
            UNION ALL
           SELECT rngsubtype FROM pg_range WHERE type.oid IN (rngtypid, rngmultitypid)) AS part (oid)
     WHERE part.oid <> 0
)
SELECT format_type(type.oid, NULL) AS name, typtype::text AS kind,
       CASE typtype
           WHEN 'e' THEN ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = type.oid ORDER BY enumsortorder)
           WHEN 'c' THEN ARRAY(SELECT attname::text FROM pg_attribute
                                WHERE attrelid = typrelid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
           ELSE ARRAY(SELECT pg_get_constraintdef(oid) FROM pg_constraint
                       WHERE contypid = type.oid AND contype <> 'n' ORDER BY conname)
                || CASE WHEN typnotnull THEN ARRAY['NOT NULL'] END
       END AS parts,
       CASE typtype
           WHEN 'c' THEN ARRAY(SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                                WHERE attrelid = typrelid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
           WHEN 'd' THEN ARRAY[format_type(typbasetype, typtypmod)]
           ELSE ARRAY[]::text[]
       END AS types,
       CASE typtype
           WHEN 'e' THEN ARRAY(SELECT oid::bigint FROM pg_enum WHERE enumtypid = type.oid ORDER BY enumsortorder)
           ELSE ARRAY(SELECT attnum::bigint FROM pg_attribute
                       WHERE typtype = 'c' AND attrelid = typrelid AND attnum > 0 AND NOT attisdropped
                       ORDER BY attnum)
       END AS numbers
  FROM used JOIN pg_type AS type USING (oid)
 WHERE typtype IN ('e', 'c', 'd') AND typnamespace NOT IN (
           'pg_catalog'::regnamespace, 'information_schema'::regnamespace)
 ORDER BY 1

-- numbers: the columns of a table by their number, which a new name does not change
SELECT attnum AS number, attname AS name FROM pg_attribute
 WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped
 ORDER BY attnum

-- constraints: those that a table can be given again by their definition, keys before what may need them
SELECT conname AS name, contype::text AS kind, pg_get_constraintdef(oid) AS definition,
       obj_description(oid, 'pg_constraint') AS comment
  FROM pg_constraint
 WHERE conrelid = %(oid)s AND contype IN ('c', 'p', 'u', 'x', 'f')
 ORDER BY array_position(ARRAY['p', 'u', 'x', 'c', 'f'], contype::text), conname

-- indexes: those that no constraint brings along; `body` is what stands after USING
SELECT index.relname AS name, pg_index.indisunique AS is_unique,
       substr(definition, position(marker IN definition) + length(marker)) AS body,
       obj_description(index.oid, 'pg_class') AS comment,
       (SELECT coalesce(jsonb_object_agg(attnum, attstattarget), '{}') FROM pg_attribute
         WHERE attrelid = index.oid AND attstattarget >= 0) AS statistics
  FROM pg_index
  JOIN pg_class AS index ON index.oid = pg_index.indexrelid
  JOIN pg_class AS relation ON relation.oid = pg_index.indrelid
  JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
 CROSS JOIN LATERAL pg_get_indexdef(index.oid) AS definition
 CROSS JOIN LATERAL format(' ON %%s%%I.%%I USING ', CASE WHEN relation.relkind = 'p' THEN 'ONLY ' END,
                           namespace.nspname, relation.relname) AS marker
 WHERE pg_index.indrelid = %(oid)s AND pg_index.indisvalid
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = index.oid AND conrelid = relation.oid
                      AND contype IN ('p', 'u', 'x'))
 ORDER BY index.relname

-- marked_indexes: the index that tells rows apart for replication, and the one by which they were sorted
SELECT max(index.relname) FILTER (WHERE indisreplident) AS replica,
       max(index.relname) FILTER (WHERE indisclustered) AS cluster
  FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid
 WHERE indrelid = %(oid)s

-- triggers: its own; those of a partitioned table come and go with it
SELECT tgname AS name, left(definition, position(marker IN definition) - 1) AS head,
       substr(definition, position(marker IN definition) + length(marker)) AS tail,
       tgenabled::text AS enabled, obj_description(pg_trigger.oid, 'pg_trigger') AS comment
  FROM pg_trigger
  JOIN pg_class AS relation ON relation.oid = tgrelid
  JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
 CROSS JOIN LATERAL pg_get_triggerdef(pg_trigger.oid) AS definition
 CROSS JOIN LATERAL format(' ON %%I.%%I ', namespace.nspname, relation.relname) AS marker
 WHERE tgrelid = %(oid)s AND NOT tgisinternal AND tgparentid = 0
   AND tgname NOT IN ('pgvigil_no_write', 'pgvigil_no_truncate')
 ORDER BY tgname

-- policies: of row security
SELECT polname AS name, polcmd::text AS command, polpermissive AS is_permissive,
       ARRAY(SELECT CASE WHEN role <> 0 THEN pg_get_userbyid(role) END
               FROM unnest(polroles) WITH ORDINALITY AS each (role, place) ORDER BY place) AS roles,
       pg_get_expr(polqual, polrelid) AS visible, pg_get_expr(polwithcheck, polrelid) AS writable,
       obj_description(oid, 'pg_policy') AS comment
  FROM pg_policy WHERE polrelid = %(oid)s
 ORDER BY polname

-- statistics: extended ones
SELECT namespace.nspname AS schema_, stxname AS name, stxkind::text[] AS kinds,
       pg_get_statisticsobjdef_columns(statistics.oid) AS columns,
       nullif(stxstattarget, -1)::int AS target,
       obj_description(statistics.oid, 'pg_statistic_ext') AS comment
  FROM pg_statistic_ext AS statistics JOIN pg_namespace AS namespace ON namespace.oid = stxnamespace
 WHERE stxrelid = %(oid)s
 ORDER BY 1, 2

-- rules: its own
SELECT rulename AS name, left(definition, position(marker IN definition) - 1) AS head,
       rtrim(substr(definition, position(marker IN definition) + length(marker)), ';') AS tail,
       ev_enabled::text AS enabled, obj_description(pg_rewrite.oid, 'pg_rewrite') AS comment
  FROM pg_rewrite
  JOIN pg_class AS relation ON relation.oid = ev_class
  JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
 CROSS JOIN LATERAL pg_get_ruledef(pg_rewrite.oid) AS definition
 CROSS JOIN LATERAL format(' TO %%I.%%I', namespace.nspname, relation.relname) AS marker
 WHERE ev_class = %(oid)s
 ORDER BY rulename

-- publications: those that name the table; one of all tables, or of a schema's, takes it in by itself
SELECT pubname AS name,
       ARRAY(SELECT attname FROM unnest(prattrs::int2[]) WITH ORDINALITY AS each (number, place)
               JOIN pg_attribute ON attrelid = prrelid AND attnum = number ORDER BY place) AS columns,
       pg_get_expr(prqual, prrelid) AS condition
  FROM pg_publication_rel JOIN pg_publication ON pg_publication.oid = prpubid
 WHERE prrelid = %(oid)s
 ORDER BY pubname

-- left_out: what hangs on the table and is not rebuilt
SELECT DISTINCT 'security label of ' || provider AS what FROM pg_seclabel
 WHERE classoid = 'pg_class'::regclass AND objoid = %(oid)s
 ORDER BY 1

-- relation_grants: privileges that others than its owner have on a whole table
SELECT CASE WHEN acl.grantee = 0 THEN NULL ELSE pg_get_userbyid(acl.grantee) END AS grantee,
       acl.privilege_type AS privilege, acl.is_grantable
  FROM pg_class AS relation
  JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
 CROSS JOIN LATERAL aclexplode(relation.relacl) AS acl
 WHERE namespace.nspname = %(schema)s AND relation.relname = %(name)s AND acl.grantee <> relowner

-- origin: the server that a copy comes from, and where its log stood
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system_id,
       current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS version_num,
       current_setting('server_encoding') AS encoding,
       pg_current_wal_insert_lsn()::text AS lsn,
       clock_timestamp() AS now

-- long_columns: the columns of a table whose values may be stored outside of it, and how much is
SELECT attname AS name,
       atttypid = ANY ('{text,varchar,bpchar,bytea}'::regtype[]) AS is_counted,
       CASE WHEN reltoastrelid = 0 THEN 0 ELSE pg_relation_size(reltoastrelid) END AS toast_size
  FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
 WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND attlen = -1 AND attstorage <> 'p'
   AND attgenerated = ''
 ORDER BY attnum
