"""The built site in a real browser, as a reader meets it.

Skipped where there is no built book or no Chromium; with SBN_REQUIRE_BROWSER=1 (as in .ci/run)
that is a failure. One browser and one small server serve all tests of a process. The browser
knows no host but that server, and what a page asks of any other is counted as an error. A page
takes longer to open than to look at: where a module asks much of every page, its reader opens
each once.
"""

import contextlib
import functools
import http.server
import os
import sys
import threading
from pathlib import Path

import pytest
import sniffer
import visit
from places import ROOT, SITE

sys.path.insert(0, str(ROOT / "book" / "tools"))

from formats import browser as tools  # noqa: E402
from formats.pages import FormatError  # noqa: E402

SWITCHES = [*tools.SWITCHES[:-1], f"{tools.SWITCHES[-1]}, EXCLUDE 127.0.0.1"]


def missing(what, kind="BROWSER"):
    if os.environ.get(f"SBN_REQUIRE_{kind}") == "1":
        pytest.fail(what)
    pytest.skip(what)


class Handler(http.server.SimpleHTTPRequestHandler):
    """The site, and beside it the wide fonts; silent, one connection for many files."""

    protocol_version = "HTTP/1.1"

    def translate_path(self, path):
        if path.startswith(visit.FONT_FOLDER):
            return str(visit.FONT_FILES / Path(path).name)
        return super().translate_path(path)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A page that is closed while it loads breaks its connections, which is no error."""


@contextlib.contextmanager
def serving(folder):
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def site():
    if not (SITE / "index.html").exists():
        missing("no built book: run `make book`")
    with serving(SITE) as address:
        yield address


@pytest.fixture(scope="session")
def serve():
    """serve(folder): a context in which a folder is at the address that it gives."""
    return serving


@pytest.fixture(scope="session")
def codesniffer():
    """The script of HTML_CodeSniffer."""
    if not sniffer.SCRIPT.exists():
        missing(f"no build/{sniffer.SCRIPT.name}: run `make sniffer`, npm has it", "SNIFFER")
    return sniffer.SCRIPT.read_text("utf-8")


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    try:
        executable = tools.executable()
    except FormatError as error:
        missing(str(error))
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=SWITCHES)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def new_reader(site, browser):
    """new_reader(width=…, dark=…, javascript=…): one more reader, with a tab of their own."""
    readers = []

    def new_reader(**given):
        readers.append(visit.Reader(browser, site, **given))
        return readers[-1]

    yield new_reader
    for reader in readers:
        reader.context.close()
