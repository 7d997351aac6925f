"""Signals that ask a run to end: SIGTERM, and SIGUSR1, which SLURM sends before it takes a job's nodes.

A handler only takes note. Saving in it would be in the middle of a rollout step, each rank at another place.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

log = logging.getLogger(__name__)

EXIT_SAVED = 75
"""Exit status of a run that was asked to end, saved and ended: to be started again (`EX_TEMPFAIL` of sysexits.h)."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedError(SystemExit):
    """Ends a run that is saved and not finished.

    Rank 0 has the status `EXIT_SAVED`, the others 0: a launcher takes any other status of theirs for a crash, and kills
    the rest.

    >>> StoppedError(rank=0).code, StoppedError(rank=1).code
    (75, 0)
    """

    def __init__(self, rank: int) -> None:
        super().__init__(0 if rank else EXIT_SAVED)


class StopSignals:
    """Takes note of `STOP_SIGNALS`.

    Attributes:
        received: the first one since `install`.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def install(self) -> None:
        """Take the place of other handlers; in a thread that is not the main one, which gets no signals, do nothing.

        Lightning's own would save at once (SLURM) or call the other ranks out of turn, so they are replaced. It puts
        back what was there before when training ends.
        """
        self.received = None
        for number in STOP_SIGNALS:
            _handle(number, self._note)

    @staticmethod
    def default() -> None:
        """Let these signals end the process at once: where there is nothing to save."""
        for number in STOP_SIGNALS:
            _handle(number, signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        log.warning("%s: the run saves and ends after this rollout step.", signal.Signals(number).name)


def _handle(number: signal.Signals, handler: object) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)  # type: ignore[arg-type]
