-- now: by the store's own clock
SELECT pg_catalog.now() AS now

-- memory: what the last watch that had something new to remember left
SELECT detail -> 'remembered' AS remembered, happened_at AS at
FROM pgvigil.audit
WHERE kind = 'run_ended' AND flow = 'keep_watch' AND subject = %(subject)s AND detail ? 'remembered'
ORDER BY seq DESC
LIMIT 1

-- horizons: per table of these databases, how far partitions reached when a roll last looked
SELECT DISTINCT ON (e.subject, h.horizon ->> 'table') e.subject, h.horizon
FROM pgvigil.audit AS e
CROSS JOIN LATERAL jsonb_path_query(e.detail, 'lax $.remembered.horizons[*]') AS h(horizon)
WHERE e.subject = ANY (%(subjects)s::text[]) AND e.flow = 'roll_partitions' AND e.kind = 'run_ended'
ORDER BY e.subject, h.horizon ->> 'table', e.seq DESC

-- at_work: those of these subjects on which a run of a flow is in progress
SELECT DISTINCT s.subject
FROM pgvigil.audit AS s
WHERE s.subject = ANY (%(subjects)s::text[]) AND s.flow = %(flow)s AND s.kind = 'run_started'
    AND NOT EXISTS (
        SELECT FROM pgvigil.audit AS e
        WHERE e.run_id = s.run_id AND e.seq > s.seq AND e.kind IN ('run_started', 'run_ended', 'run_lost')
    )

-- on_record: of each of these runs of Prefect, the newest run; among so many starts as an index finds at once
SELECT DISTINCT ON (s.flow_run) s.flow_run, s.run_id
FROM (
    SELECT seq, run_id, (detail ->> 'prefect_flow_run')::uuid AS flow_run
    FROM pgvigil.audit
    WHERE kind = 'run_started'
    ORDER BY seq DESC
    LIMIT %(most)s
) AS s
WHERE s.flow_run = ANY (%(flow_runs)s::uuid[])
ORDER BY s.flow_run, s.seq DESC
