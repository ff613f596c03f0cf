"""What the user sees: data on stdout, everything else on stderr; progress, log, colours, errors.

Names, titles, ids and texts come from documents and files, and may hold what a terminal obeys. So all that is printed
goes through here, where control characters become escapes; commands print nothing by themselves.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from ragadapt.text import printable, printable_json

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task, TaskID

    from ragadapt.values import Progress

SCHEMA_VERSION = 1
ERROR, USAGE, NO_GAIN, MISSING_EXTRA, INTERRUPTED = 1, 2, 3, 4, 130

_SILENT_SECONDS = 60.0  # without a terminal, a stage that is under way says so as often

LinePart = str | tuple[str, Mapping[str, Any]]
"""A part of a line; with the settings of click.style where it has a style."""

_SHORT_SECONDS = 2.0  # a finished stage that took less leaves no line behind


@dataclass
class Terminal:
    """How to talk in this call. resume: the interrupted command goes on where it stopped if it is run again."""

    verbosity: int = 0
    quiet: bool = False
    json: bool = False
    resume: bool = False
    _handlers: list[tuple[logging.Logger, logging.Handler]] = field(default_factory=list)

    def set(self, *, verbose: int = 0, quiet: bool = False, json: bool = False) -> None:
        """Add what the options of a command say; called once for the group and once for the command."""
        self.verbosity += verbose
        self.quiet = self.quiet or quiet
        self.json = self.json or json
        self._start_log()

    # Data

    def write(self, *pieces: LinePart) -> None:
        """A line of data. Newlines within it are escaped as all control characters are; see `write_lines`."""
        colours = self.colours
        line = "".join(
            printable(piece)
            if isinstance(piece, str)
            else click.style(printable(piece[0]), **piece[1])
            if colours
            else printable(piece[0])
            for piece in pieces
        )
        click.echo(line, color=colours or None)

    def write_lines(self, text: str) -> None:
        """Lines of data, as they stand in a text of ours; what comes from documents must be `printable` in it."""
        for line in text.split("\n"):
            self.write(line)

    def write_json(self, command: str, values: Mapping[str, Any]) -> None:
        """The one document that --json promises."""
        document = {"schema_version": SCHEMA_VERSION, "command": command, **values}
        click.echo(printable_json(json.dumps(_plain(document), ensure_ascii=False, indent=2, allow_nan=False)))

    def note(self, text: str) -> None:
        """Something for a person beside the data, on a line; not under --quiet or --json."""
        if not self.quiet and not self.json:
            click.echo(printable(text), err=True)

    @property
    def colours(self) -> bool:
        """Whether data may carry escape codes: a terminal that wants them. FORCE_COLOR overrules a pipe."""
        if os.environ.get("NO_COLOR") or self.json:
            return False
        return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")

    # Progress

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A Progress callback that draws bars on stderr while the block runs; a line for each stage where stderr is no
        terminal; nothing under --quiet and --json."""
        if self.quiet or self.json:
            from ragadapt.values import no_progress

            yield no_progress
            return
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            lines = ProgressLines(lambda text: click.echo(text, err=True))
            yield lines
            lines.close()
            return
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[count]}", markup=False),
            _time_column(),
        )
        with Bars(*columns, console=Console(stderr=True), refresh_per_second=5, redirect_stdout=False) as bars:
            stages = Stages(bars)
            yield stages
            stages.close()

    # The log

    def _start_log(self) -> None:
        self._stop_log()
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonFormatter() if self.json else _LineFormatter())
        ours, others = self._levels()
        for name, level in (("ragadapt", ours), ("", others)):
            logger = logging.getLogger(name)
            logger.addHandler(handler)
            logger.setLevel(level)
            self._handlers.append((logger, handler))
        logging.getLogger("ragadapt").propagate = False
        logging.captureWarnings(True)
        if self.verbosity < 2:  # other libraries' bars would tear ours
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("TQDM_DISABLE", "1")
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    def _levels(self) -> tuple[int, int]:
        """(ragadapt, other libraries). Under --json a warning would spoil the one document of an error."""
        if self.verbosity >= 2:
            return logging.DEBUG, logging.INFO
        if self.verbosity == 1:
            return logging.INFO, logging.WARNING
        return (logging.ERROR if self.quiet or self.json else logging.WARNING), logging.ERROR

    def _stop_log(self) -> None:
        for logger, handler in self._handlers:
            logger.removeHandler(handler)
        self._handlers.clear()

    def close(self) -> None:
        """Give the log back."""
        if self._handlers:
            self._stop_log()
            logging.captureWarnings(False)
            logging.getLogger("ragadapt").propagate = True


class ProgressLines:
    """progress(stage, done, total) → a line when a stage is done, and once a minute while it is not.

    A stage that runs again has another line only if it took long.
    """

    def __init__(self, write: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self.write, self.now = write, now
        self.started: dict[str, float] = {}
        self.counts: dict[str, str] = {}
        self.told: set[str] = set()
        self.last = self.before = now()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self.now()
        started = self.started.setdefault(stage, self.before)
        self.counts[stage] = f"{done:,}/{total:,}" if total else f"{done:,}"
        if total and done >= total:
            if stage not in self.told or now - started >= _SHORT_SECONDS:
                self._tell(stage, f"{done:,}", now)
            self.told.add(stage)
            del self.started[stage], self.counts[stage]
        elif now - self.last >= _SILENT_SECONDS:
            self._tell(stage, self.counts[stage], now)
        self.before = now

    def _tell(self, stage: str, count: str, now: float) -> None:
        name = stage[:1].upper() + stage[1:]
        self.write(f"{name:<20} {count:>15} {now - self.started[stage]:>9,.1f} s")
        self.last = now

    def close(self) -> None:
        """Stages that never said how much there was are done too."""
        for stage in list(self.started):
            self._tell(stage, self.counts[stage], self.now())


class Stages:
    """progress(stage, done, total) → one bar for each stage; the bars of short stages go when they are done.

    Between stages (a model is loaded, a file is written) a line says that work goes on.
    """

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.idle = bars.add_task("Working", total=None, count="", first=0, at=0.0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.tasks:
            name = stage[:1].upper() + stage[1:]
            # first: where an interrupted stage goes on; only what is done from here on says how fast it is.
            self.tasks[stage] = self.bars.add_task(name, total=total or None, count="", first=done, at=0.0)
        task = next(task for task in self.bars.tasks if task.id == self.tasks[stage])
        count = f"{done:,}/{total:,}" if total else f"{done:,}"
        self.bars.update(task.id, completed=done, total=total or None, count=count, at=task.elapsed or 0.0)
        if total and done >= total:
            self.bars.stop_task(task.id)
            del self.tasks[stage]
            if (task.elapsed or 0.0) < _SHORT_SECONDS:
                self.bars.remove_task(task.id)
        self._show_idle(not self.tasks)

    def _show_idle(self, visible: bool) -> None:
        idle = next((task for task in self.bars.tasks if task.id == self.idle), None)
        if idle is not None and idle.visible != visible:
            self.bars.reset(self.idle, visible=visible)

    def close(self) -> None:
        """All is done: nothing is being worked on any more."""
        for task in [self.idle, *self.tasks.values()]:
            self.bars.remove_task(task)


def times(task: Task) -> str:
    """What remains, counting down; the time so far while little is known; the whole once it is done."""
    elapsed = task.elapsed or 0.0
    done = task.completed - task.fields["first"]
    if task.finished or task.total is None or done <= 0 or elapsed < 1:
        return clock(elapsed)
    at = task.fields["at"]  # when `completed` was reached
    left = at / done * (task.total - task.completed) - (elapsed - at)
    return f"{clock(max(0.0, left))} left"


def _time_column() -> Any:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Times(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(times(task))

    return Times()


def clock(seconds: float) -> str:
    """0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def note_skipped(terminal: Terminal, skipped: Sequence[Any], total: int | None = None) -> None:
    """What could not be read, by reason. total: how many there are where only some are given."""
    if skipped:
        from ragadapt.corpus.sources import by_reason

        terminal.note(f"Skipped     {total or len(skipped):,}; --json lists them")
        for line in by_reason(skipped):
            terminal.note(f"            {line}")


# Errors


def report_error(error: BaseException, terminal: Terminal) -> int:
    """Say on stderr what went wrong; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        again = " Run the same command again to resume." if terminal.resume else ""
        return _say(error, INTERRUPTED, f"Interrupted.{again}", terminal)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    from ragadapt.secrets import redacted

    if isinstance(error, click.ClickException):
        error.__dict__["message"] = redacted(error.message)  # it quotes what was typed
        if terminal.json:
            return _say(error, error.exit_code, error.format_message(), terminal)
        if error.message:  # before click takes colours out, and leaves the rest
            error.__dict__["message"] = printable(error.message)
        shown = io.StringIO()
        error.show(shown)  # with the usage, on lines of its own
        click.echo(_lines(shown.getvalue()), err=True, nl=False)
        return error.exit_code
    # Here, so that nothing of it is imported when all goes well.
    from ragadapt.errors import MissingExtra, RagadaptError

    if isinstance(error, RagadaptError):
        code = MISSING_EXTRA if isinstance(error, MissingExtra) else ERROR
        return _say(error, code, f"Error: {error}", terminal, trace=terminal.verbosity > 0)
    if isinstance(error, OSError):
        return _say(error, ERROR, f"Error: {_of_system(error)}", terminal, trace=terminal.verbosity > 0)
    message = f"Unexpected error: {type(error).__name__}: {error}. This is a fault in ragadapt: please report it."
    return _say(error, ERROR, message, terminal, trace=True)


def _of_system(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename is not None else ""
    return f"{place}{error.strerror or error}"


def _say(error: BaseException, code: int, message: str, terminal: Terminal, trace: bool = False) -> int:
    from ragadapt.secrets import redacted

    message = redacted(message)
    lines = redacted("".join(traceback.format_exception(error))) if trace else None
    with suppress(OSError, ValueError):  # nobody reads stderr any more
        if terminal.json:
            values: dict[str, Any] = {
                "type": type(error).__name__,
                "message": message.removeprefix("Error: "),
                "exit_code": code,
            }
            if lines:
                values["traceback"] = lines
            document = {"schema_version": SCHEMA_VERSION, "error": values}
            click.echo(printable_json(json.dumps(document, ensure_ascii=False)), err=True)
        else:
            if lines:
                click.echo(_set_in(lines.rstrip("\n")), err=True)
            click.echo(printable(message), err=True)
    return code


def _logged(text: str) -> str:
    """A log line, of ours or of a library, without secrets."""
    from ragadapt.secrets import redacted

    return redacted(text)


def _lines(text: str) -> str:
    """Text whose newlines are ours, with all other control characters escaped."""
    return "\n".join(map(printable, text.split("\n")))


def _set_in(text: str) -> str:
    """`_lines` with all but the first set in: no name or quoted line can look like one of ours."""
    return _lines(text).replace("\n", "\n  ")


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = _set_in(_logged(super().format(record)))
        return message if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: {message}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = {"level": record.levelname.lower(), "logger": record.name, "message": _logged(super().format(record))}
        return printable_json(json.dumps({"schema_version": SCHEMA_VERSION, "log": values}, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """The value as JSON: paths as text, models as objects, numbers that are not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(mode="json", exclude_none=True))
    raise TypeError(f"{type(value).__name__} is not JSON")
