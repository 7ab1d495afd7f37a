"""Generations."""

import gc
import json
import threading

import mistral
from support import VOCAB_SIZE, WithModel, during_next


class Generating(WithModel):
    def test_events(self):
        session = self.session()
        events = list(session.generate([104, 105], max_tokens=12, ignore_eos=True, logprobs=3))
        self.assertEqual(len(events), 12)
        self.assertEqual([e.finish_reason for e in events], [None] * 11 + ["length"])
        for event in events:
            # Greedy: the token is the most probable one.
            self.assertEqual(event.token, event.top_logprobs[0].token)
            self.assertEqual(event.logprob, event.top_logprobs[0].logprob)
            self.assertEqual(len(event.top_logprobs), 3)
            self.assertLess(event.logprob, 0)
        text = "".join(event.text for event in events)
        self.assertEqual(text, self.model.decode([event.token for event in events]))

    def test_greedy_is_the_largest_logit_step_by_step(self):
        events = list(self.session().generate([104, 105], max_tokens=5, ignore_eos=True))
        self.assertTrue(all(event.logprob is None and event.top_logprobs == () for event in events))
        session, ids = self.session(), [104, 105]
        for event in events:
            session.prefill(ids)
            logits = list(session.logits())
            self.assertEqual(event.token, max(range(VOCAB_SIZE), key=logits.__getitem__))
            ids = [event.token]

    def test_the_seed_decides(self):
        def run(seed):
            options = {"max_tokens": 16, "temperature": 1.0, "seed": seed, "ignore_eos": True}
            return [event.token for event in self.session().generate([1, 2, 3], **options)]

        self.assertEqual(run(7), run(7))
        self.assertNotEqual(run(7), run(8))

    def test_stopping_early_frees_the_session(self):
        session = self.session()
        generation = session.generate([1, 2], ignore_eos=True)
        next(generation)
        for call in (session.reset, session.logits, lambda: session.generate([1])):
            with self.assertRaises(mistral.BusyError):
                call()
        generation.close()
        with self.assertRaises(StopIteration):
            next(generation)
        for event in session.generate([1, 2], ignore_eos=True):
            break
        gc.collect()
        with session.generate([3]) as generation:
            next(generation)
        session.reset()
        self.assertEqual(session.stats["tokens"], 0)

    def test_an_event_outlives_a_close_from_another_thread(self):
        options = {"ignore_eos": True, "logprobs": 3}
        with self.session().generate([104, 105], **options) as generation:
            expected = next(generation)
        session = self.session()

        def close_on_a_thread():
            thread = threading.Thread(target=generation.close)
            thread.start()
            thread.join()

        # The second as a handler of a signal does it.
        for close in (close_on_a_thread, lambda: generation.close()):
            session.reset()
            generation = session.generate([104, 105], **options)
            self.assertEqual(during_next(generation, close), expected)
            with self.assertRaises(StopIteration):
                next(generation)
        session.reset()

    def test_two_threads_ask_one_generation(self):
        options = {"ignore_eos": True, "logprobs": 3}
        with self.session().generate([104, 105], **options) as generation:
            expected = [next(generation), next(generation)]
        with self.session().generate([104, 105], **options) as generation:
            with self.assertRaises(mistral.BusyError):
                during_next(generation, lambda: next(generation))
        generation, refused = self.session().generate([104, 105], **options), []

        def ask():
            try:
                next(generation)
            except mistral.BusyError as error:
                refused.append(error)

        def ask_on_a_thread():
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()

        with generation:
            self.assertEqual(during_next(generation, ask_on_a_thread), expected[0])
            self.assertEqual(len(refused), 1)

    def test_it_goes_on_from_where_it_stopped(self):
        session = self.session()
        options = {"max_tokens": 6, "ignore_eos": True}
        tokens = [event.token for event in session.generate([5, 6], **options)]
        tokens += [event.token for event in session.generate(**options)]
        whole = [e.token for e in self.session().generate([5, 6], max_tokens=12, ignore_eos=True)]
        self.assertEqual(tokens, whole)

    def test_a_full_context_is_a_finish_reason(self):
        events = list(self.session(context=10).generate([1, 2, 3], ignore_eos=True))
        self.assertEqual(events[-1].finish_reason, "context_full")

    def test_stop_texts_do_not_leak(self):
        options = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 3}
        whole = "".join(event.text for event in self.session().generate([1], **options))
        stop = whole[10:12]
        events = list(self.session().generate([1], stop=[stop], **options))
        self.assertEqual(events[-1].finish_reason, "stop")
        self.assertEqual("".join(event.text for event in events), whole[: whole.index(stop)])

    def test_wrong_options_are_named(self):
        session = self.session()
        for options in [
            {"temprature": 1},
            {"temperature": -1},
            {"top_p": 2},
            {"max_tokens": 0},
            {"logit_bias": {"999": 1}},
            {"logprobs": 1000},
            {"stop_tokens": [VOCAB_SIZE]},
            {"seed": -1},
            {"seed": 1 << 64},
            {"top_k": 1 << 32},
            {"stop_tokens": [1 << 32]},
            {"stop": object()},
        ]:
            with self.subTest(options), self.assertRaises(mistral.ArgumentError) as caught:
                session.generate([1], **options)
            name = next(iter(options)) if options != {"stop": options.get("stop")} else "options"
            self.assertIn(name, str(caught.exception))
        self.assertEqual(session.stats["tokens"], 0)  # Nothing was evaluated, and the session is free.

    def test_constraints_are_obeyed(self):
        schema = {
            "type": "object",
            "properties": {"kind": {"enum": ["cat", "dög"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["kind", "count"],
            "additionalProperties": False,
        }
        for seed in range(5):
            options = {"max_tokens": 200, "temperature": 5.0, "seed": seed}

            def text(**constraint):
                events = list(self.session().generate([1], **options, **constraint))
                self.assertEqual(events[-1].finish_reason, "stop")
                return "".join(event.text for event in events)

            value = json.loads(text(json_schema=schema))
            self.assertEqual(list(value), ["kind", "count"])
            self.assertIn(value["kind"], ("cat", "dög"))
            self.assertIn(value["count"], range(100))
            self.assertRegex(text(regex=r"(he|ll){2}-\d{3}"), r"^(he|ll){2}-\d{3}$")
            self.assertIn(text(grammar='start: "yes" | "no"'), ("yes", "no"))
        events = list(self.session().generate([1], max_tokens=9, json_object=True))
        self.assertEqual(events[0].text, "{")

    def test_constraints_that_cannot_be_honoured_are_refused(self):
        session, deep = self.session(), {"type": "null"}
        for _ in range(200):
            deep = {"items": deep}
        for options, error, name in [
            ({"json_schema": {"not": {}}}, mistral.UnsupportedError, "json_schema"),
            ({"json_schema": {"type": "elephant"}}, mistral.ArgumentError, "json_schema"),
            ({"json_schema": {"allOf": [{"type": "null"}, {"type": "string"}]}}, mistral.ArgumentError, "json_schema"),
            # The options themselves are read no deeper than that.
            ({"json_schema": deep}, mistral.ArgumentError, "options"),
            ({"json_schema": {"const": "x" * (2 << 20)}}, mistral.LimitError, "json_schema"),
            ({"regex": "("}, mistral.ArgumentError, "regex"),
            ({"regex": ""}, mistral.ArgumentError, "regex"),
            ({"regex": "a" * 70_000}, mistral.LimitError, "regex"),
            ({"grammar": "start: start"}, mistral.ArgumentError, "grammar"),
            ({"grammar": "start: " + "(" * 50_000}, mistral.ArgumentError, "grammar"),
            ({"json_object": True, "regex": "a"}, mistral.ArgumentError, "regex"),
        ]:
            with self.subTest(str(options)[:60]), self.assertRaises(error) as caught:
                session.generate([1], **options)
            self.assertIn(name, str(caught.exception))
        self.assertEqual(session.stats["tokens"], 0)

    def test_a_constraint_of_too_much_work_ends_in_a_limit(self):
        options = {"grammar": 'start: e\ne: e e | e e e | e e e e | e e e e e | "a"', "ignore_eos": True, "max_tokens": 2000}
        with self.assertRaises(mistral.LimitError), self.session(context=4096).generate([1], **options) as generation:
            for _ in generation:
                pass

    def test_cancel_from_another_thread(self):
        cancel, session = mistral.Cancel(), self.session()
        events, others = [], []
        with self.assertRaises(mistral.CancelledError):
            for event in session.generate([1], cancel=cancel, ignore_eos=True):
                events.append(event)
                if len(events) == 3:
                    thread = threading.Thread(target=lambda: others.append(cancel.cancel()))
                    thread.start()
                    thread.join()
        self.assertEqual((len(events), others), (3, [None]))
        session.reset()

    def test_sessions_on_threads(self):
        def run(_seed, results):
            with self.model.session(context=64) as session:
                results.append([e.token for e in session.generate([9, 8], max_tokens=30, ignore_eos=True)])

        results = []
        threads = [threading.Thread(target=run, args=(seed, results)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(results), 8)
        self.assertTrue(all(tokens == results[0] for tokens in results))
