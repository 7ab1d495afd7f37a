"""Generates step by step, choosing each token itself: steps.py MODEL [TEXT [MAX_TOKENS]]"""

import sys

import mistral

path = sys.argv[1]
text = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 64

with mistral.Model(path) as model, model.session() as session:
    session.prefill(model.encode(text, bos=True))
    for _ in range(max_tokens):
        logits = session.logits()
        token = max(range(len(logits)), key=logits.__getitem__)
        print(model.decode([token]), end="", flush=True)
        session.prefill([token])
    print()
