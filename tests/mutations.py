"""The mutation check: each central safety check is disabled once, and the suite must notice.

`make mutations` runs it whole and writes docs/mutations.md; with ONLY=NAME, or several names given to this
script, it runs those and leaves the page's other rows as they are. A mutation is a patch of one function,
applied to a copy of the tree and never to this one. First its tests must be green in the copy as it is, then
at least one must be red in the patched one.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mutations.md"
COPIED = ("pgvigil", "tasks", "flows", "deployments", "infra", "tests", "pyproject.toml", "prefect.yaml")


@dataclass(frozen=True)
class Mutation:
    """One check, and how it is disabled: `before` stands in `file` exactly once."""

    name: str
    check: str
    file: str
    function: str
    before: str
    after: str
    tests: tuple[str, ...]

    @property
    def done(self) -> str:
        """How it was disabled, in one line."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"`{before}` became `{after}`" if after else f"`{before}` was removed"


MUTATIONS = (
    Mutation(
        "segment-sha1",
        "a stored segment's content has the sha1 of its name",
        "pgvigil/wal/content.py",
        "judge",
        "if content.sha1 != file.sha1:",
        "if False:",
        ("live/test_verify_wal_archive.py::test_a_segment_that_holds_other_wal_is_corrupt",),
    ),
    Mutation(
        "wal-gap",
        "no segment is missing between backups",
        "pgvigil/wal/examine.py",
        "_Examination.run",
        "            self._missing(found)\n",
        "            pass\n",
        ("live/test_verify_wal_archive.py::test_several_lost_segments_in_a_row_are_one_finding",),
    ),
    Mutation(
        "manifest-sum",
        "a backup's manifest has the checksum that it tells",
        "pgvigil/wal/manifests.py",
        "_content_fault",
        "return ManifestFault(name, CORRUPT, content.fault) if content.fault else None",
        "return None",
        ("live/test_verify_wal_archive_files.py::test_manifests_by_which_nothing_can_be_restored_refute",),
    ),
    Mutation(
        "page-checksum",
        "pgBackRest met no page checksum error, though it ends with 0",
        "pgvigil/backup/prove.py",
        "_check_pages",
        "    if backup.error:\n",
        "    if False:\n",
        ("live/test_nightly_backup.py::test_a_corrupt_page_in_the_source_refutes_the_backup",),
    ),
    Mutation(
        "files-stored",
        "every file that a manifest names lies in the repository",
        "pgvigil/backup/prove.py",
        "_check_files",
        '        faults += _missing_objects(pgbackrest, repo, f"{folder}/{label}", objects)\n',
        "        pass\n",
        ("live/test_nightly_backup.py::test_a_damaged_data_file_in_the_repository_refutes_the_backup",),
    ),
    Mutation(
        "last-proven-full",
        "only proven fulls count for retention",
        "pgvigil/backup/expire.py",
        "plan_expire",
        "[b for b in fulls if b.note(PROOF_NOTE) and not b.error]",
        "fulls",
        ("live/test_nightly_backup_world.py::test_an_unproven_full_pushes_no_proven_one_out",),
    ),
    Mutation(
        "stanza-lock",
        "one run at a time per stanza",
        "pgvigil/lock.py",
        "hold",
        'connection.execute(query("cluster", "take_lock"), key)',
        "pass",
        ("live/test_nightly_backup_world.py::test_a_stanza_in_use_is_left_alone_and_its_owner_named",),
    ),
    Mutation(
        "lock-still-held",
        "a run whose lock is lost changes nothing more",
        "pgvigil/lock.py",
        "HeldLock.check",
        'if not row or not row["held"]:',
        "if False:",
        ("live/test_nightly_backup_world.py::test_a_lock_that_was_let_go_stops_the_run",),
    ),
    Mutation(
        "replay-position",
        "recovery reached its target before anything is compared",
        "pgvigil/drill/proving.py",
        "judge_recovery",
        "    if not recovery.reached:\n",
        "    if False:\n",
        ("live/test_restore_drill.py::test_wal_that_is_missing_before_the_target_refutes_the_drill",),
    ),
    Mutation(
        "archive-off",
        "a drill's copy archives nothing",
        "pgvigil/drill/copy.py",
        "_isolation",
        '"archive_mode": "off"',
        '"archive_mode": "on"',
        ("live/test_drill_recover.py::test_a_promoted_copy_archives_nothing_and_listens_nowhere",),
    ),
    Mutation(
        "rows-equal",
        "every table of the copy has the source's rows",
        "pgvigil/drill/compare.py",
        "_outcome",
        "if (ours.rows, ours.hash) == (theirs.rows, theirs.hash):",
        "if True:",
        ("unit/test_drill_judges.py::test_other_rows_are_refuted_with_the_table_and_both_counts",),
    ),
    Mutation(
        "strangers-code",
        "nothing is planned for a table that has come to call functions of a role that is no superuser",
        "pgvigil/drill/digest.py",
        "hash_piece",
        "        if found:",
        "        if False:",
        ("live/test_drill_digest.py::test_what_a_stranger_builds_in_after_the_mark_is_told",),
    ),
    Mutation(
        "amcheck-coverage",
        "a table that pg_amcheck passed over is not proven",
        "pgvigil/drill/amcheck.py",
        "_doubt",
        "    if missed or not due:\n",
        "    if False:\n",
        ("unit/test_drill_judges.py::test_amcheck_is_believed_by_its_words_and_its_coverage",),
    ),
    Mutation(
        "read-back",
        "a partition is dropped only after its copy was read back and found equal",
        "pgvigil/partitions/leaving.py",
        "prove",
        "if conclude([check for each in proven for check in each.checks]) is not Verdict.VERIFIED:",
        "if False:",
        (
            "live/test_roll_partitions_faults.py::test_a_copy_that_is_not_what_was_sent_refutes_and_nothing_is_dropped",
        ),
    ),
    Mutation(
        "fence",
        "nobody writes to a partition from before its export until its drop",
        "pgvigil/partitions/ledger.py",
        "_create_triggers",
        "FOR EACH {} EXECUTE FUNCTION pgvigil.refuse_write()",
        "FOR EACH {} WHEN (false) EXECUTE FUNCTION pgvigil.refuse_write()",
        ("live/test_roll_partitions.py::test_nobody_can_write_to_a_table_that_is_being_archived",),
    ),
    Mutation(
        "unchanged-since-export",
        "the fence has held since the export, looked at under the lock of the drop",
        "pgvigil/partitions/drop.py",
        "check_unchanged",
        "if entry.fence is None or fence != entry.fence:",
        "if False:",
        ("live/test_roll_partitions.py::test_a_fence_that_was_opened_after_the_proof_stops_the_drop",),
    ),
    Mutation(
        "copy-of-its-own",
        "each fence means a copy of its own, and no older one is taken for it",
        "pgvigil/partitions/ledger.py",
        "raise_fence",
        "    new = uuid4()\n",
        "    new = id_\n",
        ("live/test_roll_partitions_faults.py::test_the_copy_of_an_abandoned_timeline_counts_for_nothing",),
    ),
    Mutation(
        "manifest-on-record",
        "the manifest that a table is dropped for is the one whose hash the database has",
        "pgvigil/archive/manifest.py",
        "read_manifest",
        "    if committed is not None and committed != (own := hashlib.sha256(data).hexdigest()):\n",
        "    if False:\n",
        ("live/test_roll_partitions_s3.py::test_a_manifest_that_was_replaced_with_its_rows_is_not_believed",),
    ),
    Mutation(
        "object-as-sent",
        "the object that was proven has the version and ETag that its upload was answered with",
        "pgvigil/archive/proving.py",
        "_marks",
        'return f"{stored.size} bytes, ETag {stored.etag}, version {stored.version_id}"',
        'return f"{stored.size} bytes"',
        ("live/test_roll_partitions_s3.py::test_an_object_that_is_replaced_while_it_is_proven_refutes",),
    ),
    Mutation(
        "rows-by-name",
        "the table whose rows are read has the OID that was fenced",
        "pgvigil/archive/tree.py",
        "_require_named",
        '    if session.execute(query("archive", "is_named"), asked).fetchone() is None:\n',
        "    if False:\n",
        ("live/test_partition_trees.py::test_a_leaf_that_is_renamed_while_others_are_copied_is_not_lost",),
    ),
    Mutation(
        "copy-at-the-drop",
        "the copy is looked at once more at the moment of the drop",
        "pgvigil/partitions/leaving.py",
        "drop",
        "    manifest = proving.require(managed.store, entry.manifest, entry.manifest_sha256)\n",
        '    manifest = proving.read_manifest(managed.store, entry.manifest or "")\n',
        (
            "live/test_roll_partitions_faults.py::test_a_copy_that_vanished_before_the_drop_stops_it",
            "live/test_roll_partitions_s3.py::test_an_object_that_was_replaced_is_not_dropped_for",
        ),
    ),
    Mutation(
        "table-digest",
        "a partition that comes back has the rows that were archived",
        "pgvigil/archive/restoring.py",
        "_fill",
        "    if conclude(found) is not Verdict.VERIFIED:\n",
        "    if False:\n",
        ("live/test_restore_partition.py::test_a_copy_with_other_rows_is_refuted",),
    ),
    Mutation(
        "manifest-trust",
        "the manifest of an archived partition has the checksum that it tells",
        "pgvigil/archive/manifest.py",
        "read_manifest",
        "    if found != wanted:\n",
        "    if False:\n",
        ("live/test_restore_partition.py::test_a_manifest_that_was_edited_is_not_believed",),
    ),
    Mutation(
        "cursor-in-transaction",
        "a backfill's cursor commits in the transaction of its rows",
        "pgvigil/backfill/batch.py",
        "run_batch",
        "        row = job.ledger.advance(connection, lease, step)\n",
        "    with session.transaction(job.bounds) as connection:\n"
        "        row = job.ledger.advance(connection, lease, step)\n",
        ("live/test_backfill.py::test_rows_whose_cursor_cannot_move_are_not_changed",),
    ),
    Mutation(
        "intent-first",
        "what is about to be done is on record before it is done",
        "pgvigil/audit.py",
        "step",
        "    log.append(intent)\n",
        "",
        ("live/test_audit.py::test_an_intent_is_committed_before_the_body_runs",),
    ),
    Mutation(
        "chain-link",
        "every event of the audit log follows the one before it",
        "pgvigil/chain.py",
        "_verify",
        "_row_fault(row, length + 1, last) or _anchor_fault(row, anchors)",
        "_anchor_fault(row, anchors)",
        ("live/test_audit.py::test_a_change_within_the_chain_is_found_and_named",),
    ),
    Mutation(
        "chain-anchor",
        "the audit log ends no earlier than its anchor outside",
        "pgvigil/chain.py",
        "_missing_anchor",
        "    if not beyond:\n",
        "    if True:\n",
        ("live/test_audit.py::test_a_change_that_keeps_the_chain_whole_is_found_through_a_head",),
    ),
    Mutation(
        "secrets",
        "an error holds no secret, wherever it is written down",
        "pgvigil/errors.py",
        "PgvigilError.__init__",
        "mask = redactor()",
        "mask = str",
        ("unit/test_redaction.py::test_an_error_holds_no_secret_from_its_making_on",),
    ),
    Mutation(
        "tool-secrets",
        "what a tool says holds no secret of its environment",
        "pgvigil/processes.py",
        "_Tool._take_lines",
        'line = self.redact(told.decode(errors="replace").rstrip("\\r"))',
        'line = told.decode(errors="replace").rstrip("\\r")',
        ("live/test_processes.py::test_secrets_reach_no_line_no_transcript_and_no_error",),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What the suite said of one mutation: which tests went red; `fault` when it could not be tried."""

    mutation: Mutation
    red: tuple[str, ...] = ()
    fault: str = ""

    @property
    def line(self) -> str:
        """One line for who waits."""
        return f"{self.mutation.name}: {self.fault or ', '.join(self.red) or 'survived: no test went red'}"


def copy_tree(place: Path) -> Path:
    """Copy what the tests need into a fresh directory, and return that."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    return place


def failures(tree: Path, tests: tuple[str, ...]) -> tuple[int, list[str]]:
    """Run tests against a tree; returns pytest's exit code and the names of those that failed."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", "--no-header"]
    words += [f"tests/{test}" for test in tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    found = re.findall(r"^FAILED tests/(\S+::\w+)", done.stdout, re.MULTILINE)
    if done.returncode not in {0, 1} or (done.returncode == 1 and not found):
        sys.stderr.write(done.stdout[-3000:] + done.stderr[-1000:])
    return done.returncode, list(dict.fromkeys(found))


def patch(tree: Path, mutation: Mutation) -> None:
    """Disable a check in a copied tree; raises ValueError where the code is not what the patch knows."""
    file = tree / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.before) != 1:
        raise ValueError(f"{mutation.file} has the line {text.count(mutation.before)} times, expected once")
    file.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")


def attempt(mutation: Mutation) -> Outcome:
    """Try one mutation in a copy of its own."""
    with tempfile.TemporaryDirectory(prefix="pgvigil-mutation-") as place:
        tree = copy_tree(Path(place))
        try:
            patch(tree, mutation)
        except ValueError as error:
            return Outcome(mutation, fault=str(error))
        code, red = failures(tree, mutation.tests)
    if code not in {0, 1} or (code == 1 and not red):
        return Outcome(mutation, fault=f"pytest ended with {code}")
    return Outcome(mutation, tuple(red))


def page(outcomes: list[Outcome], before: str) -> str:
    """Write the list as docs/mutations.md has it; who was not tried keeps the row that it had before."""
    rows = {line.split(" | ")[0]: line for line in before.splitlines() if line.startswith("| ")}
    rows |= {row.split(" | ")[0]: row for row in map(_row, outcomes)}
    known = [f"| {mutation.check}" for mutation in MUTATIONS]
    return "\n".join([HEAD, *(rows[check] for check in known if check in rows), ""])


def _row(outcome: Outcome) -> str:
    mutation = outcome.mutation
    red = "<br>".join(f"`{test}`" for test in outcome.red)
    return f"| {mutation.check} | `{mutation.file}`: `{mutation.function}` | {mutation.done} | {red} |"


HEAD = """\
# Mutation check

A check that cannot fail proves nothing, and neither does a test of it. Here each central safety check was \
disabled once, in a copy of the tree, and tests were run against that: those named last went red. Before, \
all of them were green in the same copy. `make mutations` does it again and writes this page; the patches \
are data in `tests/mutations.py`.

| check | where | how it was disabled | what went red |
|---|---|---|---|"""


def main(names: list[str]) -> int:
    """Try the mutations of these names, or all, and write what went red; 1 if one survived."""
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    if len(chosen) < len(names):
        sys.stderr.write(f"unknown mutation among {names}; there are {[m.name for m in MUTATIONS]}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="pgvigil-mutation-") as place:
        tests = tuple(dict.fromkeys(test for m in chosen for test in m.tests))
        code, red = failures(copy_tree(Path(place)), tests)
    if code:
        sys.stderr.write(f"not green before anything was disabled: {red or code}\n")
        return 2
    outcomes = []
    for mutation in chosen:
        outcomes.append(attempt(mutation))
        print(outcomes[-1].line, flush=True)  # noqa: T201 - for who waits
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(page([outcome for outcome in outcomes if outcome.red], before), encoding="utf-8")
    return 0 if all(outcome.red for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
