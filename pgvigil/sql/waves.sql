-- begun: the newest wave of a pipeline, or the one of this name, by the run that began it
WITH begun AS (
    SELECT seq, run_id, detail ->> 'wave' AS id, (detail ->> 'due')::timestamptz AS due
    FROM pgvigil.audit
    WHERE kind = 'intent' AND flow = %(flow)s AND subject = %(pipeline)s AND step = %(step)s
        AND (%(wave)s::text IS NULL OR detail ->> 'wave' = %(wave)s)
)
SELECT b.id, b.due, b.run_id AS begun_by,
    EXISTS (
        SELECT FROM pgvigil.audit AS o
        WHERE o.kind = 'outcome' AND o.flow = %(flow)s AND o.subject = %(pipeline)s AND o.step = %(step)s
            AND o.seq > b.seq
            AND o.detail #>> '{facts,wave}' = b.id AND o.detail #>> '{facts,left}' = '0'
    ) AS finished
FROM begun AS b
WHERE b.id = (SELECT n.id FROM begun AS n ORDER BY n.seq DESC LIMIT 1)
ORDER BY b.seq
LIMIT 1

-- member_runs: the newest run of each subject within a wave; one that was cut short has no verdict
SELECT DISTINCT ON (s.subject)
    s.subject, s.run_id, e.detail ->> 'verdict' AS verdict, coalesce(e.detail ->> 'headline', '') AS headline
FROM pgvigil.audit AS s
LEFT JOIN LATERAL (
    SELECT e.detail
    FROM pgvigil.audit AS e
    -- only a run that came to its end has the digest of a report
    WHERE e.run_id = s.run_id AND e.seq > s.seq AND e.kind = 'run_ended' AND e.detail ->> 'digest' IS NOT NULL
    ORDER BY e.seq DESC
    LIMIT 1
) AS e ON true
WHERE s.kind = 'run_started' AND s.flow = %(flow)s AND s.detail ->> 'wave' = %(wave)s
    AND s.seq > (SELECT min(b.seq) FROM pgvigil.audit AS b WHERE b.run_id = %(begun_by)s)
ORDER BY s.subject, s.seq DESC
