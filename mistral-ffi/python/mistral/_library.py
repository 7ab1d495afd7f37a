"""The C library: finding it, the types of its functions, and turning its statuses into exceptions."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
import threading
from ctypes import POINTER, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import _errors


class ProgressStruct(ctypes.Structure):
    """``mistral_progress``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("phase", c_char_p),
        ("done", c_uint64),
        ("total", c_uint64),
    ]


class TokenLogprobStruct(ctypes.Structure):
    """``mistral_token_logprob``."""

    _fields_ = [("token", c_uint32), ("logprob", c_float)]


class EventStruct(ctypes.Structure):
    """``mistral_event``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("text", c_void_p),
        ("text_len", c_size_t),
        ("token", c_uint32),
        ("finish_reason", c_int32),
        ("logprob", c_float),
        ("top_logprobs_len", c_uint32),
        ("top_logprobs", POINTER(TokenLogprobStruct)),
    ]


ProgressFn = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(ProgressStruct))
LogFn = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_void_p, c_size_t)
ChunkFn = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t)

_OUT = POINTER(c_void_p)
_TEXT = (c_char_p, c_size_t)
_TOKENS = (c_void_p, c_size_t)

#: The functions of ``mistral.h`` that this package calls: result and parameters.
_FUNCTIONS: Dict[str, Tuple[Any, Sequence[Any]]] = {
    "mistral_version": (c_char_p, ()),
    "mistral_build_info": (c_int32, (_OUT,)),
    "mistral_devices": (c_int32, (_OUT,)),
    "mistral_last_error_json": (c_int32, (_OUT,)),
    "mistral_set_log": (c_int32, (LogFn, c_void_p)),
    "mistral_buf_data": (c_void_p, (c_void_p,)),
    "mistral_buf_len": (c_size_t, (c_void_p,)),
    "mistral_buf_free": (c_int32, (c_void_p,)),
    "mistral_cancel_new": (c_int32, (_OUT,)),
    "mistral_cancel_trigger": (c_int32, (c_void_p,)),
    "mistral_cancel_reset": (c_int32, (c_void_p,)),
    "mistral_cancel_free": (c_int32, (c_void_p,)),
    "mistral_model_open": (c_int32, (*_TEXT, *_TEXT, c_void_p, ProgressFn, c_void_p, _OUT)),
    "mistral_model_info": (c_int32, (c_void_p, _OUT)),
    "mistral_model_estimate": (c_int32, (*_TEXT, *_TEXT, _OUT)),
    "mistral_model_free": (c_int32, (c_void_p,)),
    "mistral_encode": (c_int32, (c_void_p, *_TEXT, *_TEXT, *_TOKENS, POINTER(c_size_t))),
    "mistral_decode": (c_int32, (c_void_p, *_TOKENS, *_TEXT, _OUT)),
    "mistral_fim_encode": (c_int32, (c_void_p, *_TEXT, *_TEXT, *_TOKENS, POINTER(c_size_t))),
    "mistral_chat_encode": (c_int32, (c_void_p, *_TEXT, *_TEXT, *_TOKENS, POINTER(c_size_t))),
    "mistral_chat_render": (c_int32, (c_void_p, *_TEXT, *_TEXT, _OUT)),
    "mistral_chat_parse": (c_int32, (c_void_p, *_TEXT, *_TOKENS, *_TEXT, _OUT)),
    "mistral_session_new": (c_int32, (c_void_p, *_TEXT, _OUT)),
    "mistral_session_fork": (c_int32, (c_void_p, _OUT)),
    "mistral_session_reset": (c_int32, (c_void_p,)),
    "mistral_session_trim": (c_int32, (c_void_p, c_size_t)),
    "mistral_session_save": (c_int32, (c_void_p, *_TEXT, c_void_p, ProgressFn, c_void_p, _OUT)),
    "mistral_session_load": (
        c_int32,
        (c_void_p, *_TEXT, *_TEXT, c_void_p, ProgressFn, c_void_p, _OUT),
    ),
    "mistral_session_stats": (c_int32, (c_void_p, _OUT)),
    "mistral_session_free": (c_int32, (c_void_p,)),
    "mistral_prefill": (c_int32, (c_void_p, *_TOKENS, c_void_p, ProgressFn, c_void_p)),
    "mistral_logits": (c_int32, (c_void_p, c_void_p, c_size_t, POINTER(c_size_t))),
    "mistral_sample": (c_int32, (c_void_p, *_TEXT, c_void_p, POINTER(c_uint32), POINTER(c_float))),
    "mistral_generation_new": (
        c_int32,
        (c_void_p, *_TOKENS, *_TEXT, c_void_p, ProgressFn, c_void_p, _OUT),
    ),
    "mistral_generation_next": (c_int32, (c_void_p, POINTER(POINTER(EventStruct)))),
    "mistral_generation_free": (c_int32, (c_void_p,)),
    "mistral_audit_verify": (c_int32, (*_TEXT, *_TEXT, c_void_p, ProgressFn, c_void_p, _OUT)),
    "mistral_verify": (c_int32, (*_TEXT, *_TEXT, c_void_p, ProgressFn, c_void_p, _OUT)),
    "mistral_chat": (c_int32, (c_void_p, *_TEXT, c_void_p, ChunkFn, c_void_p, _OUT)),
    "mistral_session_chat": (c_int32, (c_void_p, *_TEXT, c_void_p, ChunkFn, c_void_p, _OUT)),
    "mistral_embed": (
        c_int32,
        (c_void_p, *_TOKENS, *_TEXT, c_void_p, c_void_p, c_size_t, POINTER(c_size_t)),
    ),
}

_lock = threading.Lock()
_loaded: Optional[ctypes.CDLL] = None
_loaded_from: Optional[Path] = None


def load_library(path: Optional[Union[str, "os.PathLike[str]"]] = None) -> Path:
    """Loads the C library, from ``path`` if it is given; returns where it was found.

    Without a path it is looked for beside this package, where a wheel puts it, and then in ``target/release`` of the source tree
    that the package lies in. It is loaded once for the process, at the latest by the first :class:`Model`.
    """
    global _loaded, _loaded_from
    with _lock:
        if _loaded is not None and _loaded_from is not None:
            if path is not None and Path(path).resolve() != _loaded_from:
                raise RuntimeError(f"the library was loaded already, from {_loaded_from}")
            return _loaded_from
        found = Path(path).resolve() if path is not None else _find()
        library = ctypes.CDLL(str(found))
        for name, (result, parameters) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = list(parameters)
        _loaded, _loaded_from = library, found
        return found


def _find() -> Path:
    name = {"win32": "mistral.dll", "darwin": "libmistral.dylib"}.get(sys.platform, "libmistral.so")
    package = Path(__file__).resolve().parent
    places = [package / name]
    if len(package.parents) > 2:
        places.append(package.parents[2] / "target" / "release" / name)
    for place in places:
        if place.is_file():
            return place
    looked = " nor ".join(str(place) for place in places)
    raise OSError(
        f"the mistral library is neither {looked}: build it with `cargo build --release -p mistral-ffi`, "
        "or give its path to mistral.load_library"
    )


def library() -> ctypes.CDLL:
    """The loaded library."""
    if _loaded is None:
        load_library()
    assert _loaded is not None
    return _loaded


def check(status: int) -> None:
    """Raises what a status says."""
    if status != _errors.OK:
        raise failure(status)


def failure(status: int) -> _errors.Error:
    """The exception of the call that has just failed on this thread."""
    out = c_void_p()
    if library().mistral_last_error_json(ctypes.byref(out)) != _errors.OK:
        return _errors.make(status, {"message": f"status {status}"})
    return _errors.make(status, json.loads(take(out)) or {})


def take(buf: c_void_p) -> bytes:
    """The bytes of a ``mistral_buf``, which is freed."""
    lib = library()
    try:
        # Not `ctypes.string_at`, whose length is an int of C: sessions are saved in more than 2 GiB.
        size: int = lib.mistral_buf_len(buf)
        return (ctypes.c_char * size).from_address(lib.mistral_buf_data(buf)).raw
    finally:
        lib.mistral_buf_free(buf)


def text(value: Union[str, bytes]) -> Tuple[bytes, int]:
    """Text as pointer and length. What is not UTF-8 goes through for the library to refuse."""
    if isinstance(value, bytes):
        return value, len(value)
    try:
        data = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half of a surrogate pair, which stands for no byte.
        data = value.encode("utf-8", "surrogatepass")
    return data, len(data)


def json_text(name: str, value: Mapping[str, Any]) -> Tuple[bytes, int]:
    """The argument ``name`` as JSON, pointer and length."""
    try:
        return text(json.dumps(value, allow_nan=False))
    except RecursionError:
        raise _errors.ArgumentError(f"argument `{name}`: found values that are nested too deeply, expected fewer levels") from None
    except (TypeError, ValueError) as error:
        raise _errors.ArgumentError(f"{name}: {error}") from None


def options(values: Mapping[str, Any]) -> Tuple[bytes, int]:
    """Options as JSON, pointer and length."""
    return json_text("options", values)


def version() -> str:
    """The version of the library."""
    found: bytes = library().mistral_version()
    return found.decode()


def build_info() -> Dict[str, Any]:
    """What this build of the library is."""
    out = c_void_p()
    check(library().mistral_build_info(ctypes.byref(out)))
    info: Dict[str, Any] = json.loads(take(out))
    return info


def devices() -> List[Dict[str, Any]]:
    """The devices that this build can open on this machine; each has a ``name``."""
    out = c_void_p()
    check(library().mistral_devices(ctypes.byref(out)))
    found: List[Dict[str, Any]] = json.loads(take(out))
    return found


_log: Optional[Callable[[int, str], object]] = None


def _on_log(_user_data: Any, level: int, message: int, size: int) -> None:
    # ctypes gives what is raised here to sys.unraisablehook.
    log = _log
    if log is not None:
        log(level, ctypes.string_at(message, size).decode())


#: What the library calls, whatever function is set: it is never freed.
_LOG = LogFn(_on_log)


def set_log(callback: Optional[Callable[[int, str], object]]) -> None:
    """Gives what the library has to say to a function, for the whole process; ``None``, as it is at first, ends that.

    The function is given a level (1: something failed that should not have) and a message, from any thread, several at once. What it raises
    goes to ``sys.unraisablehook``. It may not call this: :class:`mistral.BusyError`. When this returns, the function that was set before is not
    running and will not be called again.
    """
    global _log
    if callback is not None and not callable(callback):
        raise _errors.ArgumentError(f"argument `callback`: found {type(callback).__name__}, expected a function or None")
    # Waits for the function that was set before; refused within it, and then nothing is changed.
    check(library().mistral_set_log(LogFn(), None))
    _log = callback
    if callback is not None:
        check(library().mistral_set_log(_LOG, None))


@atexit.register
def _end_log() -> None:
    """No thread of the library is to call an interpreter that has ended."""
    if _log is not None:
        set_log(None)
