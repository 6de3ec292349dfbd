"""`Reading`: what is noted of a request's chunks on their way from a replica to the caller."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from jupyter_dsserve.fleet.observations import Watch
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.stats import Served, Window
from jupyter_dsserve.fleet.tracing import Attempt
from jupyter_dsserve.protocol.errors import ReplicaLost
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Usage

_NO_USAGE = Usage(0, 0)


class Reading:
    """Of one request, whichever replicas it is sent to. ``begun`` is monotonic seconds; a ``watch`` and an ``attempt``
    are told too.

    A plain call a chunk, and no generator: every token of every answer passes here.
    """

    __slots__ = ("_begun", "_can_turn", "_first_token_s", "_window", "attempt", "queued_s", "watch")

    def __init__(self, window: Window, begun: float) -> None:
        self._window = window
        self._begun = begun
        self._first_token_s: float | None = None
        self._can_turn = True  # to another replica: until the caller has heard something, and once only
        self.queued_s = 0.0
        self.watch: Watch | None = None
        self.attempt: Attempt | None = None

    def see(self, chunk: Chunk, replica: Replica, num_spare: Callable[[Replica], int]) -> bool:
        """Note ``chunk``. False if the caller is not to have it: ``replica`` was lost before it said anything, and one
        of the ``num_spare`` others is to be asked."""
        now = monotonic()
        if self.watch:
            self.watch.see(chunk, now)
        if chunk.num_tokens:
            if self._first_token_s is None:
                self._first_token_s = now - self._begun
                if self.attempt:
                    self.attempt.first_token_s = now
        elif self._can_turn and not chunk.text and isinstance(chunk.error, ReplicaLost) and num_spare(replica) > 0:
            self._can_turn = False
            if self.attempt:
                self.attempt.see_last(chunk, now, "lost")
            return False
        self._can_turn = False
        self._window.add_tokens(now, chunk.num_tokens)
        if chunk.finish_reason:
            self._note_end(chunk, chunk.finish_reason, now)
        return True

    def refused(self, now: float) -> None:
        """Note that it ended without a chunk: in line, or for want of a replica."""
        waited_s = now - self._begun
        self._window.add(Served(now, waited_s, None, 0, is_error=True, queued_s=waited_s))

    def _note_end(self, last: Chunk, reason: FinishReason, now: float) -> None:
        is_error = reason is FinishReason.ERROR and not _is_callers_fault(last)
        said = last.usage or _NO_USAGE
        self._window.add(
            Served(
                now,
                now - self._begun,
                self._first_token_s,
                said.completion_tokens,
                is_error,
                self.queued_s,
                said.prompt_tokens,
                said.cached_tokens,
            )
        )
        if self.attempt:
            self.attempt.see_last(last, now, reason.value)


def _is_callers_fault(chunk: Chunk) -> bool:
    return chunk.error is not None and 400 <= chunk.error.status < 500
