"""How long threads wait for each other is set before torch, which reads it once, is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Imports a module and says what the variable is when torch is first looked for.
WATCHED = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            print(os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["app", "pure.__main__"])
@pytest.mark.parametrize(("before", "seen"), [(None, "1000"), ("77", "77")])
def test_torch_finds_short_waits_unless_told_otherwise(module, before, seen):
    environment = {name: v for name, v in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if before is not None:
        environment["GOMP_SPINCOUNT"] = before
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, module],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [seen]
