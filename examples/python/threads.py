"""Four threads continue a text at once, on one model: threads.py MODEL [TEXT [MAX_TOKENS]]"""

import sys
from concurrent.futures import ThreadPoolExecutor

import mistral

path = sys.argv[1]
text = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 64


def answer(seed: int) -> str:
    """In a session of its own: one thread at a time uses it, while any number share the model."""
    with model.session() as session:
        events = session.generate(model.encode(text), max_tokens=max_tokens, temperature=1, seed=seed)
        return "".join(event.text for event in events)


with mistral.Model(path) as model, ThreadPoolExecutor(4) as pool:
    for line in pool.map(answer, range(4)):
        print(line)
