"""What models, sessions, generations and cancel objects share: a handle that is freed once."""

from __future__ import annotations

import os
from ctypes import c_void_p
from types import TracebackType
from typing import NoReturn, Optional, Type, TypeVar

from . import _errors
from ._library import library

_Self = TypeVar("_Self", bound="Handle")


def check_process(process: int, name: str) -> None:
    """Raises where what was made in ``process`` is used in a child of it."""
    if process != os.getpid():
        raise _errors.ForkedError(f"the {name} belongs to the parent of this process")


class Handle:
    """An object of the C library. Closing it twice does nothing; it closes itself at the end of ``with``, or when it is forgotten."""

    #: The function that frees it.
    _FREE = ""
    _handle: Optional[c_void_p] = None

    def _own(self, handle: c_void_p) -> None:
        self._handle = handle

    @property
    def _open_handle(self) -> c_void_p:
        # Another thread may close it meanwhile.
        handle = self._handle
        if handle is None:
            raise _errors.HandleError(f"the {type(self).__name__.lower()} was closed")
        return handle

    def close(self) -> None:
        """Frees it. Calls that are using it go on. In the child of a fork, what belongs to the parent stays its own."""
        handle, self._handle = self._handle, None
        if handle is not None:
            getattr(library(), self._FREE)(handle)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} belongs to the process that made it: make one where it is needed")

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:
            # The interpreter is ending, and parts of it are gone.
            pass
