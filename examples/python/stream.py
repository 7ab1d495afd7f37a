"""Continues a text as it comes, until Enter is pressed: stream.py MODEL [TEXT [MAX_TOKENS]]"""

import sys
import threading

import mistral

path = sys.argv[1]
text = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 64

with mistral.Model(path) as model, model.session() as session:
    cancel = mistral.Cancel()

    def wait_for_enter() -> None:
        if sys.stdin.readline() == "\n":
            cancel.cancel()

    threading.Thread(target=wait_for_enter, daemon=True).start()
    try:
        for event in session.generate(model.encode(text, bos=True), cancel=cancel, max_tokens=max_tokens):
            print(event.text, end="", flush=True)
        print()
    except mistral.CancelledError:
        print(" [stopped]")
