"""Logs: one JSON object per line on stderr, without the text of prompts and answers."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone

_OWN = "pyllama_long.server"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            # The message is left out, since it may quote a prompt.
            line["error"] = type(error).__name__
            frames = traceback.extract_tb(error.__traceback__)
            line["at"] = " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames[-6:]))
        return json.dumps(line, default=str)


def install(level: str = "info") -> None:
    """Sends the server's lines, and uvicorn's warnings, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, least in ((_OWN, level.upper()), ("uvicorn", "WARNING"), ("asyncio", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)


def event(name: str, **fields: object) -> None:
    logging.getLogger(_OWN).info(name, extra={"fields": fields})
