"""Models: open, encode, decode, chat, and its steps."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import queue
import threading
import weakref
from ctypes import c_size_t, c_uint32, c_void_p
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Literal,
    Mapping,
    Optional,
    Tuple,
    Union,
    overload,
)

from . import _errors
from ._handle import Handle
from ._library import ChunkFn, check, library, options, take, text
from ._session import Session, token_array
from ._steering import Cancel, Progress, Reporter, handle_of


class Model(Handle):
    """A model that was opened. Immutable: any number of threads and sessions may use it at once.

    ``path`` is a folder or a file. Options: ``threads``, ``quantize`` (``"q8_0"``, ``"q4_0"``, ``"q4_k"``), ``activation``
    (``"int8"``, ``"f32"``), ``max_memory``, ``weights`` (``False`` opens the tokenizer alone), ``tokenizer_version``.
    """

    _FREE = "mistral_model_free"

    def __init__(
        self,
        path: Union[str, bytes, "os.PathLike[str]"],
        device: str = "cpu",
        *,
        progress: Optional[Callable[[Progress], object]] = None,
        cancel: Optional[Cancel] = None,
        **values: Any,
    ) -> None:
        reporter = Reporter(progress)
        out = c_void_p()
        status = library().mistral_model_open(
            *text(os.fspath(path)),
            *options({"device": device, **values}),
            handle_of(cancel),
            reporter.callback,
            None,
            ctypes.byref(out),
        )
        reporter.check(status)
        self._own(out)

    @property
    def info(self) -> Dict[str, Any]:
        """What the model is: its architecture and shape, device, files, tokenizer."""
        out = c_void_p()
        check(library().mistral_model_info(self._open_handle, ctypes.byref(out)))
        found: Dict[str, Any] = json.loads(take(out))
        return found

    def encode(self, string: Union[str, bytes], *, bos: bool = False, special: bool = False) -> List[int]:
        """The tokens of a text.

        ``bos`` puts the beginning-of-sequence token first, if the tokenizer wants one; ``special`` reads the names of control
        tokens as these tokens: not for text of users.
        """
        data, size = text(string)
        return self._tokens("mistral_encode", size, data, size, *options({"bos": bos, "special": special}))

    def _tokens(self, name: str, size: int, *arguments: Any) -> List[int]:
        """What a function that gives tokens gives for a text of ``size`` bytes."""
        count = c_size_t()
        # Hardly any text has more tokens than bytes.
        capacity = size + 2
        while True:
            tokens = (c_uint32 * capacity)()
            status = getattr(library(), name)(
                self._open_handle, *arguments, tokens, capacity, ctypes.byref(count)
            )
            if status != _errors.BUFFER_TOO_SMALL or count.value <= capacity:
                break
            capacity = count.value
        check(status)
        return tokens[: count.value]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens; ``special`` writes the names of control tokens."""
        tokens, count = token_array(ids)
        out = c_void_p()
        values = options({"special": special})
        status = library().mistral_decode(
            self._open_handle, tokens, count, *values, ctypes.byref(out)
        )
        check(status)
        return take(out).decode()

    def session(self, context: Optional[int] = None, cache_type: Optional[str] = None, **values: Any) -> Session:
        """A new, empty session of ``context`` positions, with a cache of ``"f16"`` (the default) or ``"f32"``."""
        return Session(self, {"context": context, "cache_type": cache_type, **values})

    def chat_encode(self, request: Mapping[str, Any], *, mode: str = "test", local_time: Optional[int] = None) -> List[int]:
        """The tokens that the model reads for a chat-completions request.

        ``mode`` names the rules of how a conversation may end, as in mistral-common: ``"test"``, ``"serving"``,
        ``"finetuning"``, ``"agnostic"``. ``local_time`` (seconds since 1970) is for templates that write the date.
        """
        data, size = _json(request)
        values = options({"mode": mode, "local_time": local_time})
        return self._tokens("mistral_chat_encode", size, data, size, *values)

    def chat_render(self, request: Mapping[str, Any], *, mode: str = "test", local_time: Optional[int] = None) -> str:
        """The text that the model reads for a request, control tokens by their names: for people, not for encoding."""
        out = c_void_p()
        values = options({"mode": mode, "local_time": local_time})
        check(library().mistral_chat_render(self._open_handle, *_json(request), *values, ctypes.byref(out)))
        return take(out).decode()

    def fim_encode(self, prompt: Union[str, bytes], suffix: Union[str, bytes]) -> List[int]:
        """The tokens from which a model of the Codestral family writes what stands between two texts."""
        before, after = text(prompt), text(suffix)
        return self._tokens("mistral_fim_encode", before[1] + after[1], *before, *after)

    def chat_parse(
        self, written: Union[str, bytes, Iterable[int]], *, tokenizer_version: Optional[str] = None
    ) -> Dict[str, Any]:
        """Reads what a model has written, a text with the names of control tokens or its tokens, as a message.

        The message has ``content``, and where there are any ``reasoning_content``, ``tool_calls``, and
        ``broken_tool_calls`` for those that are cut off or malformed.
        """
        string: Tuple[Optional[bytes], int] = (None, 0)
        tokens: Tuple[Any, int] = (None, 0)
        if isinstance(written, (str, bytes)):
            string = text(written)
        else:
            tokens = token_array(written)
        out = c_void_p()
        values = options({"tokenizer_version": tokenizer_version})
        check(library().mistral_chat_parse(self._open_handle, *string, *tokens, *values, ctypes.byref(out)))
        message: Dict[str, Any] = json.loads(take(out))
        return message

    @overload
    def chat(
        self,
        request: Mapping[str, Any],
        stream: Literal[False] = False,
        *,
        cancel: Optional[Cancel] = None,
    ) -> Dict[str, Any]: ...

    @overload
    def chat(
        self, request: Mapping[str, Any], stream: Literal[True], *, cancel: Optional[Cancel] = None
    ) -> "ChatStream": ...

    def chat(
        self, request: Mapping[str, Any], stream: bool = False, *, cancel: Optional[Cancel] = None
    ) -> Union[Dict[str, Any], "ChatStream"]:
        """Answers a chat-completions request: the body that Mistral's and OpenAI's APIs take, as a dictionary.

        Returns the response as a dictionary; with ``stream`` an iterator over the chunks of it.
        """
        body = {**request, "stream": stream}
        if stream:
            return ChatStream(self, body, cancel)
        return _chat(self, body, cancel, ChunkFn())


def _chat(model: Model, body: Mapping[str, Any], cancel: Optional[Cancel], callback: Any) -> Dict[str, Any]:
    out = c_void_p()
    handle = model._open_handle
    check(library().mistral_chat(handle, *_json(body), handle_of(cancel), callback, None, ctypes.byref(out)))
    response: Dict[str, Any] = json.loads(take(out))
    return response


def _json(request: Mapping[str, Any]) -> Tuple[bytes, int]:
    try:
        return text(json.dumps(request, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise _errors.ArgumentError(f"request: {error}") from None


class ChatStream(Iterator[Dict[str, Any]]):
    """An iterator over the chunks of a chat response. Closing it, or forgetting it, stops the answer."""

    #: Chunks that wait for the host at most; then the answer waits.
    _AHEAD = 64

    def __init__(self, model: Model, body: Mapping[str, Any], cancel: Optional[Cancel]) -> None:
        self._closed = False
        # Closing stops the answer at once; but where the host gave a cancel object of its own, with the next chunk.
        self._cancel = Cancel() if cancel is None else None
        self._shared = _Shared(self._AHEAD)
        arguments = (self._shared, model, dict(body), cancel or self._cancel)
        self._thread = threading.Thread(target=_answer, args=arguments, name="mistral-chat", daemon=True)
        self._thread.start()
        _streams.add(self)

    def __iter__(self) -> "ChatStream":
        return self

    def __next__(self) -> Dict[str, Any]:
        if self._closed:
            raise StopIteration
        item = self._shared.chunks.get()
        if isinstance(item, bytes):
            chunk: Dict[str, Any] = json.loads(item)
            return chunk
        self.close()
        if item is not None:
            raise item
        raise StopIteration

    def close(self) -> None:
        """Stops the answer."""
        if self._closed:
            return
        self._closed = True
        self._shared.stopped = True
        if self._cancel is not None:
            self._cancel.cancel()
        self._thread.join()

    def __enter__(self) -> "ChatStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:
            # The interpreter is ending, and parts of it are gone.
            pass


class _Shared:
    """What a stream and the thread that answers have in common; the thread does not keep the stream itself alive."""

    def __init__(self, ahead: int) -> None:
        self.chunks: "queue.Queue[Union[bytes, BaseException, None]]" = queue.Queue(ahead)
        self.stopped = False

    def put(self, item: Union[bytes, BaseException, None]) -> bool:
        """Waits for room; false once the stream is closed."""
        while not self.stopped:
            try:
                self.chunks.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


def _answer(
    shared: _Shared, model: Model, body: Mapping[str, Any], cancel: Optional[Cancel]
) -> None:
    def on_chunk(_user_data: Any, chunk: int, size: int) -> int:
        return 0 if shared.put(ctypes.string_at(chunk, size)) else 1

    try:
        _chat(model, body, cancel, ChunkFn(on_chunk))
        shared.put(None)
    except BaseException as error:
        shared.put(error)


_streams: "weakref.WeakSet[ChatStream]" = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Ends the threads of streams while the interpreter can still run them."""
    for stream in list(_streams):
        stream.close()
