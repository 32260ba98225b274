"""The log: lines for people or JSON objects for machines, on the standard error.

Modules log by the standard library, what belongs to a line as its `extra`; structlog writes the
lines, uvicorn's too. A line that is about a request carries its `request_id`.
"""

from __future__ import annotations

import logging
import sys
import textwrap
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["console", "json"]

#: Whose lines below warnings are shown. Other libraries' may hold parts of images, such as Pillow's
#: of EXIF.
_OWN = ("app", "models", "uvicorn")


def configure(form: Format, level: str, **where: str) -> None:
    """Send everything that is logged in this process, Python's warnings too, in one format.

    Args:
        form: `console` or `json`.
        level: what is less important is left out: debug, info, warning or error.
        where: what each line says of the process, where there are several.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(form, colors=sys.stderr.isatty(), **where))
    handler.addFilter(is_shown)
    logging.basicConfig(handlers=[handler], level=level.upper())
    logging.captureWarnings(True)


def is_shown(record: logging.LogRecord) -> bool:
    """Whether a line is this service's own, or important enough."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OWN


def formatter(form: Format, colors: bool = False, **where: str) -> logging.Formatter:
    """What makes lines of log records.

    Args:
        form: `console` or `json`.
        colors: whether the console takes them.
        where: see `configure`.
    """

    def placed(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
        return {**line, **where}

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.stdlib.ExtraAdder(),
            structlog.contextvars.merge_contextvars,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _without_doubles,
            placed,
            *(_console(colors) if form == "console" else [structlog.processors.JSONRenderer()]),
        ],
    )


def _console(colors: bool) -> list[Processor]:
    return [_escaped, structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False)]


def _without_doubles(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Leave out what uvicorn, Ray, and other formatters before this one, add to a record."""
    for name in ("color_message", "message", "asctime", "_ray_timestamp_ns"):
        line.pop(name, None)
    return line


def _escaped(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Make it impossible for a text to look like a line of its own (JSON does so by itself)."""
    for name, value in line.items():
        if name == "exception":
            rows = (_escape(row) for row in value.split("\n"))
            line[name] = textwrap.indent("\n".join(rows), "    ")
        elif isinstance(value, str):
            line[name] = _escape(value)
    return line


def _escape(text: str) -> str:
    # What is not printable can end a line, steer a terminal, or turn the writing's direction.
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
