"""Continues a text, token by token: generate.py MODEL [TEXT [MAX_TOKENS]] [--library PATH]"""

import argparse

import mistral

parser = argparse.ArgumentParser(description="Continues a text, token by token.")
parser.add_argument("model", help="a folder or a file")
parser.add_argument("text", nargs="?", default="Once upon a time")
parser.add_argument("max_tokens", nargs="?", type=int, default=64)
parser.add_argument("--library", help="libmistral.so, if it is not where the package looks")
arguments = parser.parse_args()

mistral.load_library(arguments.library)
with mistral.Model(arguments.model) as model:
    ids = model.encode(arguments.text, bos=True)
    with model.session(context=len(ids) + arguments.max_tokens) as session:
        for event in session.generate(ids, max_tokens=arguments.max_tokens):
            print(event.text, end="", flush=True)
        print(f"\n[{session.stats['tokens']} tokens, {event.finish_reason}]")
