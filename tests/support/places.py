"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
MEASUREMENTS = BOOK / "measurements"
SITE = ROOT / "_build" / "html"
