"""Answers a question as a stream: chat.py MODEL [QUESTION [MAX_TOKENS]] [--library PATH]"""

import argparse

import mistral

parser = argparse.ArgumentParser(description="Answers a question as a stream.")
parser.add_argument("model", help="a folder or a file")
parser.add_argument("question", nargs="?", default="What is the capital of France?")
parser.add_argument("max_tokens", nargs="?", type=int, default=128)
parser.add_argument("--library", help="libmistral.so, if it is not where the package looks")
arguments = parser.parse_args()

mistral.load_library(arguments.library)
request = {
    "messages": [{"role": "user", "content": arguments.question}],
    "max_tokens": arguments.max_tokens,
}
with mistral.Model(arguments.model) as model:
    for chunk in model.chat(request, stream=True):
        print(chunk["choices"][0]["delta"].get("content") or "", end="", flush=True)
    print()
