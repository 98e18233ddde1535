"""The objects of a PDF as the browser writes it, and a PDF of the same objects a third as large.

Chromium writes each of its hundred thousand tags for screen readers as plain text. PDF 1.5 packs
such objects, some hundred at a time, into compressed streams. The objects themselves are not read:
they are moved as they are, and keep their numbers.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping

from formats.pages import FormatError

TABLE = re.compile(rb"startxref\s+(\d+)\s+%%EOF\s*$")
OBJECT = re.compile(rb"\s*(\d+) 0 obj\s*(.*?)\s*endobj\s*$", re.S)
TOGETHER = 200  # objects in a stream


def objects(pdf: bytes) -> dict[int, bytes]:
    """Every object of a PDF with one plain table of objects, by its number.

    Raises:
        FormatError: the file has another form, or was not written to its end.
    """
    found = TABLE.search(pdf)
    table = int(found[1]) if found else 0
    if not found or pdf[table : table + 4] != b"xref":
        raise FormatError("pdf: the browser's file has no table of objects at its end")
    starts = _starts(pdf[table:])
    ends = sorted([*starts.values(), table])
    after = dict(zip(ends, ends[1:], strict=False))
    return {number: _object(pdf, number, start, after[start]) for number, start in starts.items()}


def _starts(table: bytes) -> dict[int, int]:
    """Where each object in use begins, by its number."""
    _, head, rest = table.split(b"\n", 2)
    first, count = map(int, head.split())
    lines = (rest[20 * k : 20 * k + 20] for k in range(count))
    return {first + k: int(line[:10]) for k, line in enumerate(lines) if line[17:18] == b"n"}


def _object(pdf: bytes, number: int, start: int, end: int) -> bytes:
    found = OBJECT.match(pdf[start:end])
    if found is None or int(found[1]) != number:
        raise FormatError(f"pdf: object {number} is not where the table says")
    return found[2]


def root_of(pdf: bytes) -> int:
    """The number of the object that all others hang on."""
    found = re.search(rb"/Root (\d+) 0 R", pdf[pdf.rindex(b"trailer") :])
    if found is None:
        raise FormatError("pdf: the browser's file has no root")
    return int(found[1])


def pack(found: Mapping[int, bytes], root: int, info: int) -> bytes:
    """A PDF of these objects; the same objects give the same bytes."""
    out = bytearray(b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n")
    entries: dict[int, tuple[int, int, int]] = {0: (0, 0, 0)}
    number = max(found) + 1
    for n, body in _written(found, entries, number):
        entries[n] = (1, len(out), 0)
        out += b"%d 0 obj\n%s\nendobj\n" % (n, body)
    last = max(entries) + 1
    entries[last] = (1, len(out), 0)
    table = b"".join(struct.pack(">BIH", *entries.get(n, (0, 0, 0))) for n in range(last + 1))
    same = b"<%s>" % f"{zlib.crc32(bytes(out)):032x}".encode()
    head = b"/Type /XRef /Size %d /W [1 4 2] /Root %d 0 R /Info %d 0 R /ID [%s %s]" % (
        last + 1, root, info, same, same,
    )  # fmt: skip
    start = len(out)
    out += b"%d 0 obj\n%s\nendobj\nstartxref\n%d\n%%%%EOF\n" % (last, stream(table, head), start)
    return bytes(out)


def _written(
    found: Mapping[int, bytes], entries: dict[int, tuple[int, int, int]], number: int
) -> Iterator[tuple[int, bytes]]:
    """Streams as they are, and the rest in packs, which are noted in ``entries``."""
    plain = [n for n in sorted(found) if not found[n].endswith(b"endstream")]
    yield from ((n, found[n]) for n in sorted(found) if found[n].endswith(b"endstream"))
    for k in range(0, len(plain), TOGETHER):
        members = plain[k : k + TOGETHER]
        for index, n in enumerate(members):
            entries[n] = (2, number, index)
        yield number, _together(members, found)
        number += 1


def _together(members: list[int], found: Mapping[int, bytes]) -> bytes:
    places, bodies = [], bytearray()
    for n in members:
        places.append(b"%d %d" % (n, len(bodies)))
        bodies += found[n] + b"\n"
    head = b" ".join(places) + b"\n"
    about = b"/Type /ObjStm /N %d /First %d" % (len(members), len(head))
    return stream(head + bytes(bodies), about)


def stream(data: bytes, about: bytes = b"") -> bytes:
    """The body of an object that is a compressed stream."""
    packed = zlib.compress(data, 9)
    head = b"<< %s /Filter /FlateDecode /Length %d >>" % (about, len(packed))
    return head + b"\nstream\n" + packed + b"\nendstream"
