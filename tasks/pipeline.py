"""How a report becomes a Prefect run: its final state, its page in the UI, its return value."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import Flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed
from rich.console import Console
from typing_extensions import override

from pgvigil.errors import PgvigilError
from pgvigil.pages import markdown
from pgvigil.redaction import redactor
from pgvigil.reports import Report, Verdict, headline
from tasks.schedule import for_the_record, served_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import State

WAVE = "wave:"  # begins the tag of a run that belongs to a wave over the fleet

# A subject that its key spells out; with both signs "a/b-c" and "a-b/c" would be one.
_SPELLED = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*|[a-z0-9]+(/[a-z0-9]+)*")

_log = logging.getLogger(__name__)
# What the call that is under way has come to, for its caller, who must not lose it together with the server.
_kept: ContextVar[list[Report]] = ContextVar("_kept")

P = ParamSpec("P")
R = TypeVar("R", bound=Report)


class NotVerifiedError(PgvigilError):
    """A run that ended refuted or inconclusive; `context["report"]` has all of it."""

    code = "PGV-001"


class Pipeline(Flow[P, R]):
    """A flow whose call returns its report for every verdict, while its state in Prefect tells the verdict.

    Refuted and Inconclusive are failed states by name, so that no automation takes them for success;
    in Python the caller reads `report.verdict`.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # type: ignore[override]
        """Run the flow and return its report; with `return_state=True`, Prefect's state instead."""
        if kwargs.pop("return_state", False):
            return super().__call__(*args, return_state=True, **kwargs)
        kept: list[Report] = []
        token = _kept.set(kept)
        try:
            state = super().__call__(*args, return_state=True, **kwargs)
        except Exception as error:  # Prefect's: its server went away, and the work is done and on record
            if not kept:
                raise
            _log.warning("the Prefect server did not hear how the run ended: %s", error)
            return kept[-1]
        finally:
            _kept.reset(token)
        return report_of(state)


def pipeline(**options: Any) -> Callable[[Callable[P, R]], Pipeline[P, R]]:
    """Make a flow of a function that returns a report."""

    def decorate(function: Callable[P, R]) -> Pipeline[P, R]:
        signature = inspect.signature(function, eval_str=True)

        @wraps(function)
        def conclude(*args: P.args, **kwargs: P.kwargs) -> Any:
            outlive_the_worker()
            speak_plainly()
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            served = served_by(options["name"], str(next(iter(given.arguments.values()))))
            # Its slot is served, so nothing is wrong; and nothing was proven, so no clock is set back.
            if served:
                return Completed(name="Skipped", message=served)
            report = function(*args, **kwargs)
            _kept.get([]).append(report)
            return to_state(report)

        # Prefect reads types where the wrapper lives; they must be resolved where the function lives.
        conclude.__signature__ = signature  # type: ignore[attr-defined]
        conclude.__annotations__ = inspect.get_annotations(function, eval_str=True)
        # Prefect stores the description as the flow's page and its Args as the form's help texts.
        return Pipeline(conclude, description=inspect.getdoc(function), **options)

    return decorate


def outlive_the_worker() -> None:
    """Go on when the worker, who reads our output, is killed: the run's evidence does not depend on it."""
    for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            console = getattr(handler, "console", None)
            if isinstance(console, Console):
                # Rich ends the whole process at the first line that nobody reads.
                console.on_broken_pipe = partial(_fall_silent, console)  # type: ignore[method-assign]


class _Plainly(logging.Filter):
    """Masks secrets, and leaves the stack trace of an expected error out: its message has what to do."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        mask = redactor()
        record.msg, record.args = mask(record.getMessage()), None
        if record.exc_info and isinstance(record.exc_info[1], PgvigilError):
            record.exc_info = record.exc_text = None
        elif record.exc_info:
            record.exc_text = mask(_stack.formatException(record.exc_info))  # formatters take what is there
        return True


_PLAINLY = _Plainly()
_stack = logging.Formatter()


def speak_plainly() -> None:
    """Keep secrets, and stack traces of steps that were tried again in vain, out of Prefect's log."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_PLAINLY)


def _fall_silent(console: Console) -> None:
    console.quiet = True


def to_state(report: Report) -> State[Any]:
    """Publish the report's page and name the final state after its verdict."""
    publish(report)
    message = headline(report)
    if report.verdict is Verdict.VERIFIED:
        return Completed(message=message, data=report)
    error = NotVerifiedError(f"{report.verdict}: {message}", report=report)
    return Failed(name=report.verdict.capitalize(), message=message, data=error)


def report_of(state: State[Any]) -> Any:
    """Return the report that a final state carries, or raise what ended the run without one."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, NotVerifiedError):
        return result.context["report"]
    if isinstance(result, BaseException):
        raise result
    return result


def publish(report: Report) -> None:
    """Put the report's page beside the run in the UI; evidence is stored already: its loss only warns."""
    if FlowRunContext.get() is None:
        return
    try:
        create_markdown_artifact(markdown(report), key=artifact_key(report), description=headline(report))
    except Exception as error:
        get_run_logger().warning("the report's page could not be put into the UI: %s", error)


def artifact_key(report: Report) -> str:
    """Return the key of a report's page: small letters, digits and dashes, as Prefect wants it.

    A subject of other signs has a digest behind, so that "Ä" and "Ö" have a history each. All subjects of a
    flow have as many slashes, so those that are spelled out meet nobody.
    """
    key = re.sub(r"[^a-z0-9]+", "-", f"{report.flow}-{report.subject}".lower()).strip("-")
    if _SPELLED.fullmatch(report.subject):
        return key
    return f"{key}-{hashlib.sha256(report.subject.encode()).hexdigest()[:8]}"


def context() -> dict[str, Any]:
    """Tell the audit log which Prefect run this is, and who or what started it as far as Prefect knows."""
    if FlowRunContext.get() is None:
        return {}
    wave = next((tag.removeprefix(WAVE) for tag in flow_run.tags or () if tag.startswith(WAVE)), None)
    return {
        "prefect_flow_run": flow_run.id,
        "prefect_deployment": deployment.name,
        **({"wave": wave} if wave else {}),
        **for_the_record(),
    }
