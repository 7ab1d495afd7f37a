"""Answers a question as a stream: chat.py MODEL [QUESTION [MAX_TOKENS]]"""

import sys

import mistral

path = sys.argv[1]
question = sys.argv[2] if len(sys.argv) > 2 else "What is the capital of Japan?"
max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 128

request = {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}
with mistral.Model(path) as model:
    for chunk in model.chat(request, stream=True):
        print(chunk["choices"][0]["delta"].get("content") or "", end="", flush=True)
    print()
