"""Reads a text, saves the session in session.bin, and goes on from that file: resume.py MODEL [TEXT [MAX_TOKENS]]"""

import sys
from pathlib import Path

import mistral

path = sys.argv[1]
text = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 64
file = Path("session.bin")

with mistral.Model(path) as model:
    with model.session() as session:
        session.prefill(model.encode(text, bos=True))
        file.write_bytes(session.save())
    # Here the program could end, and another go on. A file that was changed is refused.
    with model.load_session(file.read_bytes()) as session:
        for event in session.generate(max_tokens=max_tokens):
            print(event.text, end="", flush=True)
        print()
