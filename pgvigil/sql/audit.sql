-- isolate: an append must see the link that was committed while it waited for its turn
SET default_transaction_isolation = 'read committed'

-- append: add one event to the chain, or find it there
SELECT seq, hash FROM pgvigil.append(%s::jsonb)

-- seen: give a sign of life for runs in progress
SELECT pgvigil.seen(run) FROM unnest(%s::uuid[]) AS run

-- chain: every row in order, as stored
SELECT seq, event_id, body, prev, hash FROM pgvigil.audit_log ORDER BY seq

-- open_runs: runs that started and neither ended nor were given up, with the last step that has no outcome
SELECT
    s.run_id, s.seq, s.flow, s.subject, s.host, s.pid, s.process_started, s.pid_space,
    coalesce(i.step, '') AS open_step,
    h.last_seen,
    h.last_seen < clock_timestamp() - %(quiet)s::interval
        -- while the server was down nobody could give a sign of life
        AND pg_postmaster_start_time() < clock_timestamp() - %(quiet)s::interval AS is_silent
FROM pgvigil.audit AS s
LEFT JOIN pgvigil.presence AS p ON p.run_id = s.run_id
CROSS JOIN LATERAL (
    SELECT greatest(max(e.at), p.seen_at) AS last_seen FROM pgvigil.audit AS e WHERE e.run_id = s.run_id
) AS h
LEFT JOIN LATERAL (
    SELECT i.step
    FROM pgvigil.audit AS i
    WHERE i.run_id = s.run_id AND i.seq > s.seq AND i.kind = 'intent'
        AND NOT EXISTS (
            SELECT FROM pgvigil.audit AS o
            WHERE o.run_id = i.run_id AND o.kind = 'outcome' AND o.detail ->> 'intent' = i.event_id::text
        )
    ORDER BY i.seq DESC
    LIMIT 1
) AS i ON true
WHERE s.kind = 'run_started'
    AND NOT EXISTS (
        SELECT FROM pgvigil.audit AS e
        WHERE e.run_id = s.run_id AND e.seq > s.seq AND e.kind IN ('run_started', 'run_ended', 'run_lost')
    )
ORDER BY s.seq

-- runs: the newest runs, each by its last start; an end that arrives after the run was given up counts
SELECT
    s.run_id, s.flow, s.subject, s.actor, s.host, s.pid, s.happened_at AS started_at,
    e.happened_at AS ended_at,
    CASE e.kind WHEN 'run_ended' THEN 'ended' WHEN 'run_lost' THEN 'lost' ELSE 'open' END AS state,
    e.detail ->> 'verdict' AS verdict,
    coalesce(e.detail ->> 'headline', '') AS headline,
    coalesce(e.detail ->> 'dry_run', s.detail ->> 'dry_run', 'false') = 'true' AS dry_run
FROM pgvigil.audit AS s
LEFT JOIN LATERAL (
    SELECT e.kind, e.happened_at, e.detail
    FROM pgvigil.audit AS e
    WHERE e.run_id = s.run_id AND e.seq > s.seq AND e.kind IN ('run_ended', 'run_lost')
    ORDER BY e.kind = 'run_ended' DESC, e.seq DESC
    LIMIT 1
) AS e ON true
WHERE s.kind = 'run_started'
    AND (%(subject)s::text IS NULL OR s.subject = %(subject)s)
    AND (%(run_ids)s::uuid[] IS NULL OR s.run_id = ANY (%(run_ids)s))
    AND NOT EXISTS (
        SELECT FROM pgvigil.audit AS n WHERE n.run_id = s.run_id AND n.seq > s.seq AND n.kind = 'run_started'
    )
ORDER BY s.seq DESC
LIMIT %(limit)s

-- lost_runs: runs of a flow on a subject that were given up since its newest run there that ended had begun
SELECT l.run_id, l.flow, l.subject, l.step AS open_step, b.host, b.pid
FROM pgvigil.audit AS l
CROSS JOIN LATERAL (
    SELECT b.host, b.pid
    FROM pgvigil.audit AS b
    WHERE b.run_id = l.run_id AND b.seq < l.seq AND b.kind = 'run_started'
    ORDER BY b.seq DESC
    LIMIT 1
) AS b
WHERE l.kind = 'run_lost' AND l.flow = %(flow)s AND l.subject = %(subject)s
    AND l.seq > coalesce((
        SELECT s.seq
        FROM pgvigil.audit AS s
        WHERE s.kind = 'run_started' AND s.flow = %(flow)s AND s.subject = %(subject)s
            AND EXISTS (
                SELECT FROM pgvigil.audit AS e
                WHERE e.run_id = s.run_id AND e.seq > s.seq AND e.kind = 'run_ended'
            )
        ORDER BY s.seq DESC
        LIMIT 1
    ), 0)
    AND NOT EXISTS (
        SELECT FROM pgvigil.audit AS e WHERE e.run_id = l.run_id AND e.seq > l.seq AND e.kind = 'run_ended'
    )
ORDER BY l.seq

-- run_events: all events of one run in order
SELECT
    seq, at, event_id, run_id, kind, flow, subject, step, actor, db_user, host, pid, process_started, pid_space,
    recorded_at, spooled, detail, encode(hash, 'hex') AS hash
FROM pgvigil.audit
WHERE run_id = %s
ORDER BY seq

-- last_claims: per subject, flow, proof and verdict the newest claim; proof NULL is the run as a whole
-- The watch is kept every few minutes and proves nothing: its runs are passed over by the index on subject
-- and flow, unread, or they would soon be most of what is read here.
WITH RECURSIVE pairs AS (
    (SELECT subject, flow FROM pgvigil.audit ORDER BY subject, flow LIMIT 1)
    UNION ALL
    SELECT n.subject, n.flow
    FROM pairs AS p
    CROSS JOIN LATERAL (
        SELECT a.subject, a.flow
        FROM pgvigil.audit AS a
        WHERE (a.subject, a.flow) > (p.subject, p.flow)
        ORDER BY a.subject, a.flow
        LIMIT 1
    ) AS n
),
ended AS MATERIALIZED (
    SELECT e.*
    FROM pairs AS p
    CROSS JOIN LATERAL (
        SELECT a.seq, a.happened_at, a.run_id, a.flow, a.subject, a.detail
        FROM pgvigil.audit AS a
        WHERE a.subject = p.subject AND a.flow = p.flow AND a.kind = 'run_ended'
            AND coalesce(a.detail ->> 'dry_run', 'false') <> 'true'
        OFFSET 0 -- else the planner joins by a hash of the whole log
    ) AS e
    WHERE p.flow <> 'keep_watch'
),
claims AS (
    SELECT e.*, NULL::text AS proof, e.detail ->> 'verdict' AS verdict FROM ended AS e
    UNION ALL
    SELECT e.*, p.proof ->> 'name', p.proof ->> 'verdict'
    FROM ended AS e
    CROSS JOIN LATERAL jsonb_path_query(e.detail, 'lax $.proofs[*]') AS p(proof)
)
SELECT DISTINCT ON (subject, flow, proof, verdict)
    subject, flow, proof, verdict, happened_at AS at, seq, run_id, coalesce(detail ->> 'headline', '') AS headline
FROM claims
WHERE verdict IN ('verified', 'refuted', 'inconclusive')
ORDER BY subject, flow, proof, verdict, happened_at DESC, seq DESC

-- served: the newest run that a schedule started for a slot or a later one, with the same parameters
SELECT s.run_id, s.happened_at AS started_at, (s.detail ->> 'slot')::timestamptz AS slot
FROM pgvigil.audit AS s
WHERE s.kind = 'run_started' AND s.flow = %(flow)s AND s.subject = %(subject)s
    AND (s.detail ->> 'slot')::timestamptz >= %(slot)s
    AND s.detail -> 'parameters' = %(parameters)s::jsonb
    AND s.detail ->> 'prefect_flow_run' IS DISTINCT FROM %(prefect_flow_run)s
    AND NOT EXISTS (SELECT FROM pgvigil.audit AS e WHERE e.run_id = s.run_id AND e.kind = 'run_lost')
ORDER BY s.seq DESC
LIMIT 1
