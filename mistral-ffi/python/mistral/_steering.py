"""Following and stopping long calls."""

from __future__ import annotations

import ctypes
from ctypes import c_void_p
from dataclasses import dataclass
from typing import Any, Callable, Optional

from ._handle import Handle
from ._library import ProgressFn, check, library


class Cancel(Handle):
    """Stops the calls that were given it, from any thread; they raise :class:`mistral.CancelledError`."""

    _FREE = "mistral_cancel_free"

    def __init__(self) -> None:
        out = c_void_p()
        check(library().mistral_cancel_new(ctypes.byref(out)))
        self._own(out)

    def cancel(self) -> None:
        """Stops the calls, those that run and those to come."""
        check(library().mistral_cancel_trigger(self._open_handle))

    def reset(self) -> None:
        """Makes the object usable again."""
        check(library().mistral_cancel_reset(self._open_handle))


@dataclass(frozen=True)
class Progress:
    """How far a long call has come."""

    #: What is being done: ``"verify"``, ``"load"``, ``"prefill"``, ``"digest"`` or ``"audit"``.
    phase: str
    #: Units done: tokens while prefilling, otherwise bytes.
    done: int
    #: Units in all.
    total: int


class Reporter:
    """A progress callback for one call. What Python raises in it, Ctrl-C included, stops the call and comes out of it."""

    def __init__(self, report: Optional[Callable[[Progress], object]]) -> None:
        self._report = report
        self._error: Optional[BaseException] = None
        self.callback = ProgressFn(self._call)

    def _call(self, _user_data: Any, progress: Any) -> int:
        try:
            if self._report is not None:
                now = progress.contents
                self._report(Progress(now.phase.decode(), now.done, now.total))
            return 0
        except BaseException as error:
            self._error = error
            return 1

    def check(self, status: int) -> None:
        """Raises what the callback raised, or what the status says."""
        if self._error is not None:
            raise self._error
        check(status)


def handle_of(cancel: Optional[Cancel]) -> Optional[c_void_p]:
    """The handle of a cancel object; none of none."""
    return None if cancel is None else cancel._open_handle
