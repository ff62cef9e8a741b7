-- serialize: one installation at a time, and no append meanwhile
SELECT pg_advisory_xact_lock(hashtextextended('pgvigil.audit_log', 0))

-- encoding: the chain hashes UTF-8, so the database must be able to hold all of it
SELECT current_setting('server_encoding') AS encoding

-- roles: the owner and the group of writers, neither can log in; an admin who is no superuser borrows the owner
DO $roles$
BEGIN
    BEGIN
        IF to_regrole('pgvigil_owner') IS NULL THEN
            CREATE ROLE pgvigil_owner NOLOGIN;
        END IF;
        IF to_regrole('pgvigil_writer') IS NULL THEN
            CREATE ROLE pgvigil_writer NOLOGIN;
        END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL; -- roles belong to the whole server: an installation in another database was faster
    END;
    BEGIN
        SET LOCAL ROLE pgvigil_owner;
        RESET ROLE;
    EXCEPTION WHEN insufficient_privilege THEN
        EXECUTE format('GRANT pgvigil_owner TO %I', current_user);
        PERFORM set_config('pgvigil.borrowed', current_user, true);
    END;
END
$roles$

-- schema: everything in it belongs to the owner role
CREATE SCHEMA IF NOT EXISTS pgvigil AUTHORIZATION pgvigil_owner

-- become_owner: until the end of the transaction, or become_admin
SET LOCAL ROLE pgvigil_owner

-- version_table: which migrations were applied
CREATE TABLE IF NOT EXISTS pgvigil.schema_version (
    version integer PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT clock_timestamp()
)

-- version: the last migration that was applied, 0 for none
SELECT coalesce(max(version), 0) AS version FROM pgvigil.schema_version

-- applied: remember a migration
INSERT INTO pgvigil.schema_version (version) VALUES (%s)

-- chain: migration 1, the log with its guards and the one way in
CREATE TABLE pgvigil.audit_log (
    seq bigint PRIMARY KEY,
    event_id uuid NOT NULL UNIQUE,
    body text NOT NULL,
    prev bytea NOT NULL,
    hash bytea NOT NULL
);
COMMENT ON TABLE pgvigil.audit_log IS
    'append-only; hash = sha256(prev || body in UTF-8), prev of seq 1 is 32 zero bytes';

CREATE FUNCTION pgvigil.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RAISE EXCEPTION 'pgvigil.audit_log is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'correct a wrong entry by appending the right one';
END
$body$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON pgvigil.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION pgvigil.refuse_change();
-- ALWAYS, or session_replication_role = replica would switch it off
ALTER TABLE pgvigil.audit_log ENABLE ALWAYS TRIGGER append_only;

CREATE TABLE pgvigil.presence (
    run_id uuid PRIMARY KEY,
    seen_at timestamptz NOT NULL
);
COMMENT ON TABLE pgvigil.presence IS
    'when a run in progress was last heard of; no evidence, only a sign of life';

CREATE FUNCTION pgvigil.append(event jsonb, OUT seq bigint, OUT hash bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    id uuid := (event ->> 'event_id')::uuid;
    run uuid := (event ->> 'run_id')::uuid;
    kind text := event ->> 'kind';
    last_seq bigint;
    last_hash bytea;
    document text;
BEGIN
    IF id IS NULL OR run IS NULL OR kind IS NULL OR jsonb_typeof(event -> 'detail') IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'an audit event needs event_id, run_id, kind and an object called detail'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- what the view casts must be castable, for a row can never be corrected
    PERFORM (event ->> 'pid')::bigint, (event ->> 'process_started')::bigint,
            (event ->> 'recorded_at')::timestamptz, (event ->> 'spooled')::boolean;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;

    PERFORM pg_advisory_xact_lock(hashtextextended('pgvigil.audit_log', 0));
    SELECT l.seq, l.hash INTO append.seq, append.hash FROM pgvigil.audit_log AS l WHERE l.event_id = id;
    IF FOUND THEN
        RETURN;
    END IF;

    SELECT l.seq, l.hash INTO last_seq, last_hash FROM pgvigil.audit_log AS l ORDER BY l.seq DESC LIMIT 1;
    IF NOT FOUND THEN
        last_seq := 0;
        last_hash := decode(repeat('00', 32), 'hex');
    END IF;
    append.seq := last_seq + 1;
    document := (event || jsonb_build_object(
        'seq', append.seq,
        'event_id', id,
        'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'db_user', session_user
    ))::text;
    append.hash := sha256(last_hash || convert_to(document, 'UTF8'));
    INSERT INTO pgvigil.audit_log (seq, event_id, body, prev, hash)
        VALUES (append.seq, id, document, last_hash, append.hash);
    IF kind IN ('run_ended', 'run_lost') THEN
        DELETE FROM pgvigil.presence AS p WHERE p.run_id = run;
    END IF;
END
$body$;

CREATE FUNCTION pgvigil.seen(run uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $body$
    INSERT INTO pgvigil.presence AS p (run_id, seen_at) VALUES (run, clock_timestamp())
    ON CONFLICT (run_id) DO UPDATE SET seen_at = excluded.seen_at
$body$;

CREATE VIEW pgvigil.audit AS
SELECT
    l.seq,
    (e.event ->> 'at')::timestamptz AS at,
    -- a spooled event happened before the server heard of it
    CASE WHEN (e.event ->> 'spooled')::boolean
        THEN least((e.event ->> 'at')::timestamptz, (e.event ->> 'recorded_at')::timestamptz)
        ELSE (e.event ->> 'at')::timestamptz
    END AS happened_at,
    (e.event ->> 'run_id')::uuid AS run_id,
    e.event ->> 'kind' AS kind,
    e.event ->> 'flow' AS flow,
    e.event ->> 'subject' AS subject,
    e.event ->> 'step' AS step,
    e.event ->> 'actor' AS actor,
    e.event ->> 'db_user' AS db_user,
    e.event ->> 'host' AS host,
    (e.event ->> 'pid')::bigint AS pid,
    (e.event ->> 'process_started')::bigint AS process_started,
    e.event ->> 'pid_space' AS pid_space,
    (e.event ->> 'recorded_at')::timestamptz AS recorded_at,
    coalesce((e.event ->> 'spooled')::boolean, false) AS spooled,
    e.event -> 'detail' AS detail,
    l.event_id,
    l.hash
FROM pgvigil.audit_log AS l
CROSS JOIN LATERAL (SELECT l.body::jsonb AS event) AS e;

CREATE INDEX audit_log_run ON pgvigil.audit_log (((body::jsonb ->> 'run_id')::uuid), seq);
CREATE INDEX audit_log_subject ON pgvigil.audit_log
    ((body::jsonb ->> 'subject'), (body::jsonb ->> 'flow'), (body::jsonb ->> 'kind'), seq);
CREATE INDEX audit_log_kind ON pgvigil.audit_log ((body::jsonb ->> 'kind'), seq);

-- grants: what a writer may do: append and read, nothing else
REVOKE ALL ON ALL TABLES IN SCHEMA pgvigil FROM PUBLIC, pgvigil_writer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgvigil FROM PUBLIC, pgvigil_writer;
GRANT USAGE ON SCHEMA pgvigil TO pgvigil_writer;
GRANT SELECT ON ALL TABLES IN SCHEMA pgvigil TO pgvigil_writer;
GRANT EXECUTE ON FUNCTION pgvigil.append(jsonb), pgvigil.seen(uuid) TO pgvigil_writer

-- become_admin: back to who came, without the owner role if it was only borrowed
RESET ROLE;
DO $return$
BEGIN
    IF coalesce(current_setting('pgvigil.borrowed', true), '') <> '' THEN
        EXECUTE format('REVOKE pgvigil_owner FROM %I', current_user);
    END IF;
END
$return$
