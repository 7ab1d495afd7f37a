"""What calls raise: one exception for each status of the C library."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Type


class Error(Exception):
    """A call that failed. The message says what failed, what was found and what was expected."""

    #: The number of the status in ``mistral.h``.
    status: int = 0
    #: The parts of the message by name: ``argument``, ``file``, ``key``, ``found``, ``expected``, ...
    details: Mapping[str, Any]

    def __init__(self, message: str, details: Mapping[str, Any] = {}) -> None:
        super().__init__(message)
        self.details = dict(details)


class ArgumentError(Error, ValueError):
    """An argument, an option or a field of a request is wrong."""

    status = 2


class Utf8Error(Error, ValueError):
    """Text is not UTF-8."""

    status = 3


class HandleError(Error):
    """The object was closed."""

    status = 4


class BusyError(Error):
    """Another call, or a generation that is not finished, is using the object."""

    status = 5


class OutOfMemoryError(Error, MemoryError):
    """The system gives no more memory."""

    status = 6


class LimitError(Error):
    """A bound on size, time or work would be passed."""

    status = 7


class FileError(Error, OSError):
    """The system refused to open, read or map a file."""

    status = 8

    def __init__(self, message: str, details: Mapping[str, Any] = {}) -> None:
        super().__init__(message, details)
        self.errno = self.details.get("os_error")
        self.filename = self.details.get("file")

    def __str__(self) -> str:
        return str(self.args[0])


class FormatError(Error):
    """A file is damaged, or breaks the rules of its format."""

    status = 9


class IntegrityError(Error):
    """Contents do not match their digest."""

    status = 10


class SignatureError(Error):
    """A signature is missing or wrong."""

    status = 11


class UnsupportedError(Error):
    """Correct, but not something that this library, this build or this model does."""

    status = 12


class ContextFullError(Error):
    """The tokens do not fit into the context of the session."""

    status = 13


class CancelledError(Error):
    """The call was cancelled."""

    status = 14


class DeviceError(Error):
    """A device could not be opened, or failed."""

    status = 16


class DeviceLostError(DeviceError):
    """A device went away; its models must be opened again."""

    status = 17


class AuditError(Error):
    """The audit log could not be written."""

    status = 18


class ForkedError(Error):
    """The object was made before ``fork``, by the parent of this process."""

    status = 19


class InternalError(Error):
    """A bug of the library. The object that was in use can only be closed."""

    status = 20


OK = 0
BUFFER_TOO_SMALL = 15

_BY_STATUS: Dict[int, Type[Error]] = {
    kind.status: kind
    for kind in (
        ArgumentError,
        Utf8Error,
        HandleError,
        BusyError,
        OutOfMemoryError,
        LimitError,
        FileError,
        FormatError,
        IntegrityError,
        SignatureError,
        UnsupportedError,
        ContextFullError,
        CancelledError,
        DeviceError,
        DeviceLostError,
        AuditError,
        ForkedError,
        InternalError,
    )
}


def make(status: int, details: Mapping[str, Any]) -> Error:
    """The exception of a status that is not OK."""
    error = _BY_STATUS.get(status, Error)(str(details.get("message", "")), details)
    error.status = status
    return error
