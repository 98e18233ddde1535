"""Whether addresses on other hosts answer."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import groupby
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

#: What an answer says of an address: there, gone, or neither (many hosts refuse programs).
Answer = tuple[str, str]
GONE = {404, 410}
SECONDS = 20.0
FIRST = 3  # hosts that are asked before all others, to see whether there is a network
HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; link check of a book)"}


def ask(urls: Sequence[str], seconds: float = SECONDS) -> dict[str, Answer] | None:
    """What each address answers; nothing at all if none of the first hosts can be reached.

    Every host gets one request at a time.
    """
    ordered = sorted(urls, key=_host)
    hosts = [list(group) for _, group in groupby(ordered, key=_host)]
    first = [_one(group[0], seconds) for group in hosts[:FIRST]]
    if not any(reached for reached, _ in first):
        return None
    with ThreadPoolExecutor(8) as pool:
        groups = pool.map(lambda group: [(url, _one(url, seconds)[1]) for url in group], hosts)
        return {url: answer for group in groups for url, answer in group}


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _one(url: str, seconds: float) -> tuple[bool, Answer]:
    """Whether the host was reached, and its answer; without the page, if the host allows that."""
    for method in ("HEAD", "GET"):
        try:
            with urlopen(Request(url, headers=HEADERS, method=method), timeout=seconds) as reply:
                return True, ("there", str(reply.status))
        except HTTPError as error:
            if method == "GET":
                state = "gone" if error.code in GONE else "unknown"
                return True, (state, f"{error.code} {error.reason}")
        except URLError as error:
            no_host = getattr(error.reason, "errno", None) == socket.EAI_NONAME
            return False, ("gone" if no_host else "unknown", str(error.reason))
        except (OSError, HTTPException, ValueError) as error:
            return False, ("unknown", str(error) or type(error).__name__)
    raise AssertionError("the last method returns")
