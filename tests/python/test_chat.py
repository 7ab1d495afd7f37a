"""Chats."""

import gc
import subprocess
import sys
import threading
import unittest
import unittest.mock

import mistral
from mistral import _chat
import support
from support import WithModel


class Chat(WithModel):
    REQUEST = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}

    def test_response(self):
        response = self.model.chat(self.REQUEST)
        self.assertEqual(response["object"], "chat.completion")
        choice = response["choices"][0]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertIn(choice["finish_reason"], ("stop", "length"))

    def test_the_chunks_are_the_response(self):
        with self.model.chat(self.REQUEST, stream=True) as stream:
            chunks = list(stream)
        self.assertEqual({chunk["object"] for chunk in chunks}, {"chat.completion.chunk"})
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        self.assertEqual(text, self.model.chat(self.REQUEST)["choices"][0]["message"]["content"])

    def test_a_session_does_not_evaluate_a_conversation_again(self):
        session = self.session()
        first = session.chat(self.REQUEST)
        messages = self.REQUEST["messages"] + [
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "and"},
        ]
        request = {"messages": messages, "max_tokens": 8}
        with session.chat(request, stream=True) as stream:
            text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream)
        again = session.chat(request)
        self.assertEqual(text, self.model.chat(request)["choices"][0]["message"]["content"])
        self.assertEqual(text, again["choices"][0]["message"]["content"])
        prompt = first["usage"]["prompt_tokens"]
        self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertEqual(
            again["usage"]["prompt_tokens_details"]["cached_tokens"], again["usage"]["prompt_tokens"] - 1
        )
        # The stream evaluated what the first turn had not; the last call, one token.
        evaluated = again["usage"]["prompt_tokens"] - prompt
        self.assertGreaterEqual(session.stats["prompt_tokens"], prompt + evaluated)
        self.assertLess(session.stats["prompt_tokens"], 2 * again["usage"]["prompt_tokens"])

    def test_a_stream_can_be_left(self):
        before = threading.active_count()
        for _ in range(10):
            for chunk in self.model.chat({**self.REQUEST, "max_tokens": 200}, stream=True):
                break
        gc.collect()
        self.assertEqual(threading.active_count(), before)

    def test_a_stream_that_is_closed_wakes_its_readers(self):
        end, ended = threading.Event(), []
        self.addCleanup(end.set)

        def answer(*_):
            end.wait(60)
            raise mistral.CancelledError("the answer")

        with unittest.mock.patch.object(_chat, "_chat", answer):
            stream = self.model.chat(self.REQUEST, stream=True)
        readers = [threading.Thread(target=lambda: ended.append(list(stream)), daemon=True) for _ in range(2)]
        closing = threading.Thread(target=stream.close, daemon=True)
        for thread in (*readers, closing):
            thread.start()
        for reader in readers:
            reader.join(20)
        # Closing waits for the answer to end, the readers do not.
        self.assertEqual((ended, closing.is_alive()), ([[], []], True))
        end.set()
        closing.join(20)
        self.assertFalse(closing.is_alive())

    def test_all_readers_of_a_stream_end(self):
        expected = list(self.model.chat(self.REQUEST, stream=True))
        stream, chunks = self.model.chat(self.REQUEST, stream=True), []
        readers = [threading.Thread(target=lambda: chunks.extend(stream), daemon=True) for _ in range(5)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(20)
        self.assertFalse(any(reader.is_alive() for reader in readers))
        self.assertEqual(len(chunks), len(expected))

    def test_the_request_of_a_stream_is_that_of_the_call(self):
        request = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        expected, start = self.model.chat(request)["choices"][0]["message"]["content"], threading.Event()

        class Late(threading.Thread):
            def run(self):
                start.wait(60)
                super().run()

        with unittest.mock.patch.object(threading, "Thread", Late):
            stream = self.model.chat(request, stream=True)
        request["messages"][0]["content"] = "goodbye"
        start.set()
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream)
        self.assertEqual(text, expected)

    def test_errors(self):
        for stream in (False, True):
            for request in ({}, {"messages": 1}, {"messages": [{"role": "user", "content": object()}]}):
                with self.subTest(request), self.assertRaises(mistral.ArgumentError):
                    list(self.model.chat(request, stream=stream))

    def test_the_interpreter_can_end_in_the_middle(self):
        program = (
            f"import sys; sys.path.insert(0, {sys.path[0]!r}); import mistral\n"
            f"mistral.load_library({support.LIBRARY!r})\n"
            f"model = mistral.Model({support.MODEL!r})\n"
            f"stream = model.chat({ {**self.REQUEST, 'max_tokens': 200}!r}, stream=True)\n"
            "next(stream)\n"
            "session = model.session(context=64)\n"
            "generation = session.generate([1])\n"
            "next(generation)\n"
        )
        run = subprocess.run([sys.executable, "-B", "-I", "-c", program], capture_output=True, timeout=60)
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, b"", b""))
