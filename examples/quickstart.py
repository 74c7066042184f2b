"""Restore examples/cat.png through a running demo: `python examples/quickstart.py [ADDRESS]`.

Prints what the model perceives and understands as it comes, then saves the picture here.
"""

import shutil
import sys
from pathlib import Path

from gradio_client import Client, handle_file

PHOTO = Path(__file__).with_name("cat.png")


def main() -> None:
    """Ask the demo at an address, by default the one `python app.py` serves."""
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860"
    client = Client(address, verbose=False, analytics_enabled=False)
    run = client.submit(image=handle_file(str(PHOTO)), scale=4, seed=0, api_name="/restore")
    told = set()
    for progress, picture, card in run:
        for what in ("label", "caption"):
            if progress[what] and what not in told:
                told.add(what)
                print(f"{what.capitalize()}: {progress[what]}")
        print(f"\r{progress['done']:4.0%} after {progress['seconds']:.0f} s", end="", flush=True)
        if picture:
            saved = Path(card["output"]["file"])
            shutil.copy(picture, saved)
            print(f"\nSaved {saved}, {' × '.join(map(str, card['output']['size']))} pixels.")


if __name__ == "__main__":
    main()
