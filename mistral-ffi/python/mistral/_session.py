"""Sessions and what they generate."""

from __future__ import annotations

import array
import ctypes
import json
import os
import threading
from ctypes import POINTER, c_float, c_size_t, c_uint32, c_void_p
from math import isnan
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, NamedTuple, Optional, Tuple, Union

from . import _errors
from ._chat import Chats
from ._handle import Handle, check_process
from ._library import EventStruct, check, failure, library, options, take
from ._steering import Cancel, Progress, Reporter, handle_of

if TYPE_CHECKING:
    from ._model import Model

_FINISH_REASONS = (None, "stop", "length", "context_full")


class TokenLogprob(NamedTuple):
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


class Event(NamedTuple):
    """One step of a generation: exactly one for each token."""

    #: Text that became certain with this token: whole characters, often none.
    text: str
    #: The token.
    token: int
    #: Its log-probability in the model's own distribution, if the option ``logprobs`` asks for it.
    logprob: Optional[float]
    #: On the last event ``"stop"``, ``"length"`` or ``"context_full"``.
    finish_reason: Optional[str]
    #: The most probable tokens, best first, if the option ``logprobs`` asks for them.
    top_logprobs: Tuple[TokenLogprob, ...] = ()


class Session(Chats):
    """One timeline of tokens on a model. Made by :meth:`Model.session`; used by one thread at a time."""

    _FREE = "mistral_session_free"
    _CHAT = "mistral_session_chat"

    def __init__(self, model: "Model", values: Dict[str, Any]) -> None:
        out = c_void_p()
        check(library().mistral_session_new(model._open_handle, *options(values), ctypes.byref(out)))
        self._set(model, out)

    @classmethod
    def _of(cls, model: "Model", handle: c_void_p) -> "Session":
        """The session of a handle that the library made."""
        session = cls.__new__(cls)
        session._set(model, handle)
        return session

    def _set(self, model: "Model", handle: c_void_p) -> None:
        self._model = model
        self._vocab_size = 0
        self._own(handle)

    @property
    def model(self) -> "Model":
        """The model."""
        return self._model

    def prefill(
        self,
        ids: Iterable[int],
        *,
        progress: Optional[Callable[[Progress], object]] = None,
        cancel: Optional[Cancel] = None,
    ) -> None:
        """Appends tokens and evaluates them; :meth:`logits` then has the logits of the last one."""
        reporter = Reporter(progress)
        tokens, count = token_array(ids)
        status = library().mistral_prefill(
            self._open_handle, tokens, count, handle_of(cancel), reporter.callback, None
        )
        reporter.check(status)

    def logits(self) -> memoryview[float]:
        """The logits after the last token, one for each token of the vocabulary, as floats of 32 bits.

        Where that token is not evaluated yet (see :meth:`sample`, :meth:`trim`), it is evaluated first. The memory is the caller's own. ``numpy.asarray`` takes it without another copy.
        """
        count = c_size_t()
        # Other threads may set it meanwhile.
        size = self._vocab_size
        while True:
            values = (c_float * size)()
            status = library().mistral_logits(self._open_handle, values, size, ctypes.byref(count))
            if status != _errors.BUFFER_TOO_SMALL or count.value == size:
                break
            size = self._vocab_size = count.value
        check(status)
        return memoryview(values).cast("B").cast("f")

    def generate(
        self,
        ids: Iterable[int] = (),
        *,
        progress: Optional[Callable[[Progress], object]] = None,
        cancel: Optional[Cancel] = None,
        **values: Any,
    ) -> "Generation":
        """Appends tokens, evaluates them, and iterates over the events of what follows.

        Options: ``max_tokens``, ``temperature`` (0, the default, takes the most probable token), ``top_k``, ``top_p``, ``min_p``,
        ``repetition_penalty``, ``presence_penalty``, ``frequency_penalty``, ``penalty_window``, ``logit_bias``, ``seed``,
        ``stop``, ``stop_tokens``, ``ignore_eos``, ``prompt_lookup`` (0 to 32: guess so many tokens at a time from the text so far; the answer is the
        same, sooner where it repeats what stands before it), ``logprobs``, ``show_special``, and at most one of ``json_object=True``,
        ``json_schema`` (a dict), ``regex`` and ``grammar`` (in Lark's syntax), which the answer then obeys. Until the generation
        has ended or is closed, other calls on the session raise :class:`mistral.BusyError`.
        """
        return Generation(self, ids, values, progress, cancel)

    def sample(self, *, cancel: Optional[Cancel] = None, **values: Any) -> TokenLogprob:
        """Chooses the next token from the logits after the last one, and appends it; the next call evaluates it.

        Options: ``temperature`` (0, the default, takes the most probable token), ``top_k``, ``top_p``, ``min_p``,
        ``repetition_penalty``, ``presence_penalty``, ``frequency_penalty``, ``penalty_window``, ``logit_bias``, ``seed``. The same
        seed gives the tokens that :meth:`generate` gives: the random numbers go on from call to call while the options stay
        the same.
        """
        token, logprob = c_uint32(), c_float()
        status = library().mistral_sample(
            self._open_handle, *options(values), handle_of(cancel), ctypes.byref(token), ctypes.byref(logprob)
        )
        check(status)
        return TokenLogprob(token.value, logprob.value)

    def fork(self) -> "Session":
        """A second session with the same timeline, which goes on by itself; the memory is shared until one of them does."""
        out = c_void_p()
        check(library().mistral_session_fork(self._open_handle, ctypes.byref(out)))
        return Session._of(self._model, out)

    def trim(self, count: int) -> None:
        """Keeps the first ``count`` tokens, as if no others had ever come."""
        # ctypes would cut off what a size_t does not hold.
        if not isinstance(count, int) or c_size_t(count).value != count:
            raise _errors.ArgumentError(f"argument `count`: found {count!r}, expected 0 to the number of tokens")
        check(library().mistral_session_trim(self._open_handle, count))

    def save(
        self,
        key: Optional[Union[str, bytes]] = None,
        *,
        progress: Optional[Callable[[Progress], object]] = None,
        cancel: Optional[Cancel] = None,
    ) -> bytes:
        """The session as bytes, for :meth:`Model.load_session`: tokens, and keys and values of the positions in use.

        ``key``, at least 16 bytes (as text: hexadecimal digits or Base64), keeps others from making or changing such bytes; without
        one, only damage is found. They hold the conversation, and are not encrypted. The first call on a model reads all its
        files, to bind the bytes to them.
        """
        reporter = Reporter(progress)
        out = c_void_p()
        status = library().mistral_session_save(
            self._open_handle,
            *options({"key": key_text(key)}),
            handle_of(cancel),
            reporter.callback,
            None,
            ctypes.byref(out),
        )
        reporter.check(status)
        return take(out)

    def reset(self) -> None:
        """Forgets all tokens; the memory stays allocated."""
        check(library().mistral_session_reset(self._open_handle))

    @property
    def stats(self) -> Dict[str, Any]:
        """What the session holds and has done.

        ``tokens`` on the timeline, those ``evaluated``, positions in all (``context``), ``cache_type``, ``cache_bytes``; and since
        it was made ``prompt_tokens``, ``prompt_seconds``, ``prompt_tokens_per_second`` (evaluated several at a time), and the
        same for ``decode`` (one at a time).
        """
        out = c_void_p()
        check(library().mistral_session_stats(self._open_handle, ctypes.byref(out)))
        found: Dict[str, Any] = json.loads(take(out))
        return found


class Generation(Handle, Iterator[Event]):
    """An iterator over the events of a generation. It ends by itself, or is closed, and then its session is free again."""

    _FREE = "mistral_generation_free"

    def __init__(
        self,
        session: Session,
        ids: Iterable[int],
        values: Dict[str, Any],
        progress: Optional[Callable[[Progress], object]],
        cancel: Optional[Cancel],
    ) -> None:
        self._session = session
        self._process = os.getpid()
        self._closed = False
        # Held while an event is asked for and copied, and while the generation is freed. Nobody waits for it, so nobody can wait for ever.
        self._in_use = threading.Lock()
        self._event = POINTER(EventStruct)()
        self._next = library().mistral_generation_next
        reporter = Reporter(progress)
        tokens, count = token_array(ids)
        out = c_void_p()
        status = library().mistral_generation_new(
            session._open_handle,
            tokens,
            count,
            *options(values),
            handle_of(cancel),
            reporter.callback,
            None,
            ctypes.byref(out),
        )
        reporter.check(status)
        self._own(out)

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Event:
        if self._closed:
            raise StopIteration
        if not self._in_use.acquire(blocking=False):
            check_process(self._process, "generation")
            if self._closed:
                raise StopIteration
            raise _errors.BusyError("the generation: another call is using it")
        try:
            # Another thread may have closed it meanwhile.
            handle = self._handle
            if handle is None:
                raise StopIteration
            status = self._next(handle, self._event)
            if status != _errors.OK:
                self._closed = True
                raise failure(status)
            event = _event(self._event.contents)
            if event.finish_reason is not None:
                self._closed = True
            return event
        finally:
            self._in_use.release()
            if self._closed:
                self.close()

    def close(self) -> None:
        """Ends it, and gives its session back. A call that is using it goes on, and the session is free when that ends."""
        self._closed = True
        # The event of a call that is running lies in the memory of the generation: that call frees it then.
        if self._in_use.acquire(blocking=False):
            try:
                super().close()
            finally:
                self._in_use.release()


def _event(event: Any) -> Event:
    text = ctypes.string_at(event.text, event.text_len).decode() if event.text_len else ""
    logprob = event.logprob
    top = event.top_logprobs
    return Event(
        text,
        event.token,
        None if isnan(logprob) else logprob,
        _FINISH_REASONS[event.finish_reason],
        tuple(TokenLogprob(top[i].token, top[i].logprob) for i in range(event.top_logprobs_len)),
    )


def key_text(key: Optional[Union[str, bytes]]) -> Optional[str]:
    """A key as the library takes it."""
    return key.hex() if isinstance(key, bytes) else key


def token_array(ids: Iterable[int]) -> Tuple[Any, int]:
    """Tokens as an array of C; a buffer of 32-bit unsigned integers (``array.array("I")``, ``numpy.uint32``) is taken without a copy."""
    buffer = _tokens_of_buffer(ids)
    if buffer is not None:
        return buffer, len(buffer)
    values = list(ids)
    try:
        packed = array.array("I", values)
    except (TypeError, OverflowError) as error:
        raise _errors.ArgumentError(f"tokens: {error}") from None
    # C has no empty array, but the pointer must be one.
    return (c_uint32 * len(values)).from_buffer(packed) if values else (c_uint32 * 1)(), len(values)


def _tokens_of_buffer(ids: Any) -> Any:
    """The memory of a one-dimensional, writable buffer of tokens that is not empty; ``None`` for anything else."""
    try:
        view = memoryview(ids)
    except TypeError:
        return None
    if view.format != "I" or view.ndim != 1 or not view.c_contiguous or view.readonly or not len(view):
        return None
    return (c_uint32 * len(view)).from_buffer(view)
