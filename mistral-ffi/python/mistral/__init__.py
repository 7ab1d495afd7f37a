"""Mistral's open-weight language models inside of your program, through the C library ``mistral``.

>>> model = mistral.Model("path/to/model")
>>> reply = model.chat({"messages": [{"role": "user", "content": "Hello"}]})
>>> session = model.session(context=2048)
>>> for event in session.generate(model.encode("Once upon a time"), max_tokens=64):
...     print(event.text, end="", flush=True)
"""

from ._chat import ChatStream
from ._errors import (
    ArgumentError,
    AuditError,
    BusyError,
    CancelledError,
    ContextFullError,
    DeviceError,
    DeviceLostError,
    Error,
    FileError,
    ForkedError,
    FormatError,
    HandleError,
    IntegrityError,
    InternalError,
    LimitError,
    OutOfMemoryError,
    SignatureError,
    UnsupportedError,
    Utf8Error,
)
from ._evidence import audit_verify, check_sidecar, verify
from ._library import build_info, devices, load_library, set_log, version
from ._model import Model, estimate
from ._session import Event, Generation, Session, TokenLogprob
from ._steering import Cancel, Progress

__all__ = [
    "ArgumentError",
    "AuditError",
    "BusyError",
    "Cancel",
    "CancelledError",
    "ChatStream",
    "ContextFullError",
    "DeviceError",
    "DeviceLostError",
    "Error",
    "Event",
    "FileError",
    "ForkedError",
    "FormatError",
    "Generation",
    "HandleError",
    "IntegrityError",
    "InternalError",
    "LimitError",
    "Model",
    "OutOfMemoryError",
    "Progress",
    "Session",
    "SignatureError",
    "TokenLogprob",
    "UnsupportedError",
    "Utf8Error",
    "audit_verify",
    "build_info",
    "check_sidecar",
    "devices",
    "estimate",
    "load_library",
    "set_log",
    "verify",
    "version",
]
