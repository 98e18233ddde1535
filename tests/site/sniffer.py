"""HTML_CodeSniffer, the second judge of the site's accessibility; run it to fetch it.

It is published on npm alone, as one script that a page loads. It is no part of the repository and
of no environment: `make sniffer` puts it into `build`, where the tests look for it.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "2.5.1"
SHA256 = "fbcd1b31b97e08fea1e64d12727caf63436b2d83df0b7df255836c61086067e5"  # of the package
SCRIPT = Path(__file__).resolve().parents[2] / "build" / f"HTMLCS-{VERSION}.js"


def fetch() -> None:
    """Put the script where the tests find it; SystemExit says what is missing or wrong."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("HTML_CodeSniffer comes from npm, which is not on the path: install Node.js.")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([npm, "pack", f"html_codesniffer@{VERSION}", "--silent"], cwd=folder,
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        package = next(Path(folder).glob("*.tgz")).read_bytes()
    if hashlib.sha256(package).hexdigest() != SHA256:
        sys.exit("What npm gave is not the package whose checksum stands in tests/site/sniffer.py.")
    with tarfile.open(fileobj=io.BytesIO(package)) as files:
        script = files.extractfile("package/build/HTMLCS.js")
        assert script is not None, "the package has changed"
        SCRIPT.parent.mkdir(exist_ok=True)
        SCRIPT.write_bytes(script.read())


if __name__ == "__main__" and not SCRIPT.exists():
    fetch()
