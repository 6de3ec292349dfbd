"""Logs of ``jupyter dsserve``: lines for people, or JSON in the names of Elastic's Common Schema (``--log-json``)."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from jupyter_dsserve.fleet.output import was_put_aside

workers = logging.getLogger("jupyter_dsserve.worker")

_SCHEMA = "8.17.0"
_FOLLOW_S = 1.0
# What `worker.__main__` writes: time, level, logger, message.
_WORKERS_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) ([\w.]+): (.*)")
_MAX_LINE = 4000


def set_up_logs(app: logging.Logger, *, is_json: bool, access: bool) -> None:
    """Everything in this process goes out as ``app`` does: our own from its level on, others' warnings."""
    for handler in app.handlers:
        if is_json:
            handler.setFormatter(json_formatter())
        handler.addFilter(Flood())
    app.propagate = False
    ours, root = logging.getLogger("jupyter_dsserve"), logging.getLogger()
    ours.handlers, ours.level, ours.propagate = app.handlers, app.level, False
    root.handlers, root.level = app.handlers, logging.WARNING
    if not access:
        logging.getLogger("jupyter_dsserve.gateway.access").setLevel(logging.CRITICAL)


def json_formatter() -> JsonFormatter:
    names = {"levelname": "log.level", "name": "log.logger", "process": "process.pid"}
    return JsonFormatter(
        ["message", "levelname", "name", "process"],
        rename_fields={**names, "exc_info": "error.stack_trace", "stack_info": "error.stack"},
        static_fields={"ecs.version": _SCHEMA, "service.name": "jupyter_dsserve"},
        timestamp="@timestamp",
    )


class Flood(logging.Filter):
    """Of warnings and errors from one place in the code ``most`` pass in ``per_s`` seconds; the next that passes says
    how many did not."""

    def __init__(self, most: int = 20, per_s: float = 10.0) -> None:
        super().__init__()
        self._most, self._per_s = most, per_s
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}  # since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or hasattr(record, "event.duration"):  # each request has its line
            return True
        if not (num_held := self.held(record.pathname, record.lineno, record.created)):
            return num_held is not None
        record.msg = f"{record.getMessage()} (and {num_held} more like it)"
        record.args = ()
        return True

    def held(self, path: str, line: int, now: float) -> int | None:
        """How many were held back before this one, which passes; None if it is held back too."""
        since, number = self._seen.get((path, line), (now, 0))
        num_held = 0
        if now - since > self._per_s:
            num_held, since, number = max(0, number - self._most), now, 0
        self._seen[path, line] = since, number + 1
        return num_held if number < self._most else None


class Followed:
    """What workers add to their files in ``directory``, each of which is named after its replica."""

    def __init__(self, directory: Path) -> None:
        """From here on: what they wrote before is not told again."""
        self._directory = directory
        self._read = {path: path.stat().st_size for path in directory.glob("*.log")}
        self._rest: dict[Path, bytes] = {}

    def tell(self) -> None:
        """Log what came since the last time, a record for each line, with its own level."""
        for path in sorted(self._directory.glob("*.log")):
            try:
                with path.open("rb") as file:
                    read, size = self._read.get(path, 0), path.stat().st_size
                    if size < read:  # it began anew, or was cut to its end before a restart
                        read = 0 if was_put_aside(path) else size
                    file.seek(read)
                    added, self._read[path] = file.read(), file.tell()
            except OSError:  # forgotten meanwhile
                continue
            *lines, self._rest[path] = (self._rest.get(path, b"") + added).split(b"\n")
            for line in lines:
                self._tell_line(path.stem, line[:_MAX_LINE].decode(errors="replace"))

    def _tell_line(self, replica: str, line: str) -> None:
        found = _WORKERS_LINE.fullmatch(line)
        level, logger, text = found.groups() if found else ("INFO", "", line)
        if text:
            fields: dict[str, Any] = {"dsserve.replica": replica} | ({"dsserve.logger": logger} if logger else {})
            workers.log(getattr(logging, level), "%s: %s", replica, text, extra=fields)


async def follow_workers(directory: Path) -> None:
    """Until it is cancelled."""
    followed = Followed(directory)
    while True:
        await asyncio.sleep(_FOLLOW_S)
        followed.tell()
