"""`import sbnlib` needs torch and numpy only; everything else is an extra."""

import subprocess
import sys

import pytest

EXTRAS = ["matplotlib", "ipywidgets", "sklearn", "scipy", "pooch", "lightning", "lightning_fabric"]


@pytest.mark.slow
def test_import_pulls_in_no_extra():
    code = f"import sys, sbnlib; print([m for m in {EXTRAS} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
