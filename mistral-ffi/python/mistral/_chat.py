"""Chat: answers to chat-completions requests, whole or as a stream of chunks."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import queue
import threading
import weakref
from ctypes import c_void_p
from typing import Any, Dict, Iterator, Literal, Mapping, Optional, Tuple, Union, overload

from ._handle import Handle, check_process
from ._library import ChunkFn, check, json_text, library, take
from ._steering import Cancel, handle_of


class Chats(Handle):
    """What answers chat-completions requests: models, and sessions."""

    #: The function that answers.
    _CHAT = ""

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

        Returns the response as a dictionary; with ``stream`` an iterator over the chunks of it. On a session, what the
        conversation shares with its timeline is not evaluated again:
        ``response["usage"]["prompt_tokens_details"]["cached_tokens"]`` says how many tokens that were.
        """
        # Here, not in the thread of a stream: the caller may change the messages once this has returned.
        body = request_json({**request, "stream": stream})
        if stream:
            return ChatStream(self, body, cancel)
        return _chat(self, body, cancel, ChunkFn())


def _chat(chats: Chats, body: Tuple[bytes, int], cancel: Optional[Cancel], callback: Any) -> Dict[str, Any]:
    out = c_void_p()
    function = getattr(library(), chats._CHAT)
    check(function(chats._open_handle, *body, handle_of(cancel), callback, None, ctypes.byref(out)))
    response: Dict[str, Any] = json.loads(take(out))
    return response


def request_json(request: Mapping[str, Any]) -> Tuple[bytes, int]:
    """A request as JSON, pointer and length."""
    return json_text("request", request)


class ChatStream(Iterator[Dict[str, Any]]):
    """An iterator over the chunks of a chat response. Closing it, or forgetting it, stops the answer."""

    #: Chunks that wait for the host at most; then the answer waits.
    _AHEAD = 64

    def __init__(self, chats: Chats, body: Tuple[bytes, int], cancel: Optional[Cancel]) -> None:
        self._process = os.getpid()
        self._closed = False
        # Closing stops the answer at once; but where the host gave a cancel object of its own, with the next chunk.
        self._cancel = Cancel() if cancel is None else None
        self._shared = _Shared(self._AHEAD)
        arguments = (self._shared, chats, body, cancel or self._cancel)
        self._thread = threading.Thread(target=_answer, args=arguments, name="mistral-chat", daemon=True)
        self._thread.start()
        _streams.add(self)

    def __iter__(self) -> "ChatStream":
        return self

    def __next__(self) -> Dict[str, Any]:
        if self._closed:
            raise StopIteration
        check_process(self._process, "chat stream")
        item = self._shared.get()
        if isinstance(item, bytes):
            chunk: Dict[str, Any] = json.loads(item)
            return chunk
        self.close()
        if item is not None:
            raise item
        raise StopIteration

    def close(self) -> None:
        """Stops the answer. Threads that wait for a chunk get none."""
        if self._closed:
            return
        self._closed = True
        if self._process != os.getpid():
            # The stream, and the thread that answers it, are the parent's.
            return
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

    def get(self) -> Union[bytes, BaseException, None]:
        """Waits for an item; ``None`` once the stream is closed."""
        # Not told by `close`, which the garbage collector may call while this very thread holds the lock of the queue.
        while not self.stopped:
            try:
                return self.chunks.get(timeout=0.05)
            except queue.Empty:
                continue
        return None


def _answer(
    shared: _Shared, chats: Chats, body: Tuple[bytes, int], cancel: Optional[Cancel]
) -> None:
    def on_chunk(_user_data: Any, chunk: int, size: int) -> int:
        return 0 if shared.put(ctypes.string_at(chunk, size)) else 1

    try:
        _chat(chats, body, cancel, ChunkFn(on_chunk))
        shared.put(None)
    except BaseException as error:
        shared.put(error)


_streams: "weakref.WeakSet[ChatStream]" = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """Ends the threads of streams while the interpreter can still run them."""
    for stream in list(_streams):
        stream.close()
