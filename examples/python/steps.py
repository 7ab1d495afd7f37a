"""Generates step by step: looks at the logits, then chooses a token: steps.py MODEL [TEXT [MAX_TOKENS]]"""

import sys

import mistral

path = sys.argv[1]
text = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 16

with mistral.Model(path) as model, model.session() as session:
    session.prefill(model.encode(text, bos=True))
    for _ in range(max_tokens):
        # What a host looks at before it lets the library choose, or chooses itself.
        largest = max(session.logits())
        token, logprob = session.sample(temperature=0.7, seed=1)
        print(f"{largest:6.2f} {logprob:6.2f} {model.decode([token])}")
