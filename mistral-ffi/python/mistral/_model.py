"""Models: open, encode, decode, chat, and its steps."""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import c_float, c_size_t, c_uint32, c_void_p
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from . import _errors
from ._chat import Chats, request_json
from ._library import check, library, options, take, text
from ._session import Session, key_text, token_array
from ._steering import Cancel, Progress, Reporter, handle_of


class Model(Chats):
    """A model that was opened. Immutable: any number of threads and sessions may use it at once.

    ``path`` is a folder or a file. Options: ``threads``, ``quantize`` (``"q8_0"``, ``"q4_0"``, ``"q4_k"``), ``activation``
    (``"int8"``, ``"f32"``), ``weights`` (``False`` opens the tokenizer alone), ``tokenizer_version``; ``verify`` (the options of
    :func:`mistral.verify`: the model opens only if its files are those that were vouched for), ``audit`` (what runs is written down: ``path``,
    ``required``, ``key``, ``text``, ``rotate_bytes``, ``sync_every``, ``checkpoint``, ``caller_ref``, as ``mistral.h`` says); ``reproducible`` (the same
    input gives the same tokens, tested before the model is used: ``info["determinism"]``), ``lock_memory`` (keys and values of sessions stay out of
    the swap), ``large_pages`` (``False`` leaves the weights in ordinary pages: for a model that is opened for a few tokens); and bounds, which raise
    :class:`mistral.LimitError`: ``max_memory``, ``max_model_bytes``, ``max_sessions``, and for each call
    ``max_prompt_tokens``, ``max_output_tokens``, ``max_time_ms``.
    """

    _FREE = "mistral_model_free"
    _CHAT = "mistral_chat"

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
        self._dim = 0
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
        """A new, empty session of ``context`` positions, with a cache of ``"f16"`` (the default), ``"f32"`` or ``"q8_0"`` (about half of ``"f16"``).

        Its own bounds ``max_prompt_tokens``, ``max_output_tokens``, ``max_time_ms`` hold beside those of the model.
        """
        return Session(self, {"context": context, "cache_type": cache_type, **values})

    def load_session(
        self,
        blob: Union[bytes, bytearray, "memoryview[int]"],
        key: Optional[Union[str, bytes]] = None,
        *,
        progress: Optional[Callable[[Progress], object]] = None,
        cancel: Optional[Cancel] = None,
        **values: Any,
    ) -> Session:
        """The session that :meth:`Session.save` gave ``blob`` of, on the same model; it goes on bit for bit.

        A damaged or foreign ``blob``, or another ``key``, raises :class:`mistral.IntegrityError`. Options: ``context`` (as many
        positions as it had, if not given), ``cache_type``, and the bounds of a session. The first call on a model reads
        all its files, to know that it is the same.
        """
        reporter = Reporter(progress)
        data = blob if isinstance(blob, bytes) else bytes(blob)
        out = c_void_p()
        status = library().mistral_session_load(
            self._open_handle,
            data,
            len(data),
            *options({"key": key_text(key), **values}),
            handle_of(cancel),
            reporter.callback,
            None,
            ctypes.byref(out),
        )
        reporter.check(status)
        return Session._of(self, out)

    def embed(
        self,
        written: Union[str, bytes, Iterable[int]],
        *,
        pooling: str = "mean",
        normalize: bool = True,
        cancel: Optional[Cancel] = None,
    ) -> "memoryview[float]":
        """One vector for a text or for tokens, as floats of 32 bits: the hidden states of the tokens, pooled.

        ``pooling`` is ``"mean"`` or ``"last"``; ``normalize`` scales the vector to a length of 1. A text begins with the
        beginning-of-sequence token, if the tokenizer wants one. Mistral's generative models were not trained to embed:
        expect rough similarities of them.
        """
        if isinstance(written, (str, bytes)):
            written = self.encode(written, bos=True)
        tokens, token_count = token_array(written)
        values = options({"pooling": pooling, "normalize": normalize})
        count = c_size_t()
        # Other threads may set it meanwhile.
        dim = self._dim
        while True:
            vector = (c_float * dim)()
            status = library().mistral_embed(
                self._open_handle, tokens, token_count, *values, handle_of(cancel), vector, dim, ctypes.byref(count)
            )
            if status != _errors.BUFFER_TOO_SMALL or count.value == dim:
                break
            dim = self._dim = count.value
        check(status)
        return memoryview(vector).cast("B").cast("f")

    def chat_encode(self, request: Mapping[str, Any], *, mode: str = "test", local_time: Optional[int] = None) -> List[int]:
        """The tokens that the model reads for a chat-completions request.

        ``mode`` names the rules of how a conversation may end, as in mistral-common: ``"test"``, ``"serving"``,
        ``"finetuning"``, ``"agnostic"``. ``local_time`` (seconds since 1970) is for templates that write the date.
        """
        data, size = request_json(request)
        values = options({"mode": mode, "local_time": local_time})
        return self._tokens("mistral_chat_encode", size, data, size, *values)

    def chat_render(self, request: Mapping[str, Any], *, mode: str = "test", local_time: Optional[int] = None) -> str:
        """The text that the model reads for a request, control tokens by their names: for people, not for encoding."""
        out = c_void_p()
        values = options({"mode": mode, "local_time": local_time})
        check(library().mistral_chat_render(self._open_handle, *request_json(request), *values, ctypes.byref(out)))
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


def estimate(path: Union[str, bytes, "os.PathLike[str]"], **values: Any) -> Dict[str, Any]:
    """What a model would take, without opening it: ``weights_bytes``, ``cache_bytes`` of one session, ``total_bytes``, and what it is.

    Options: those of :class:`Model`, ``context`` and ``cache_type`` of a session, and ``sessions``, how many there are to be.
    """
    out = c_void_p()
    check(library().mistral_model_estimate(*text(os.fspath(path)), *options(values), ctypes.byref(out)))
    found: Dict[str, Any] = json.loads(take(out))
    return found
