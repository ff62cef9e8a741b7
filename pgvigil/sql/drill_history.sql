-- drills: how earlier runs of restore_drill on one cluster ended and what they left to remember, newest first
SELECT run_id, happened_at AS at, detail ->> 'verdict' AS verdict, detail -> 'remembered' AS remembered
FROM pgvigil.audit
WHERE kind = 'run_ended'
    AND flow = 'restore_drill'
    AND subject = %(cluster)s
    AND coalesce(detail ->> 'dry_run', 'false') <> 'true'
ORDER BY happened_at DESC, seq DESC
LIMIT %(limit)s
