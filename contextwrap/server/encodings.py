"""How a request's body may be compressed, and how it is unpacked: never to more than its reader takes.

Knows no route.
"""

from __future__ import annotations

import zlib
from typing import Final

from contextwrap.server.refusals import Refusal

ENCODINGS: Final = ("gzip",)
"""The encodings that can be unpacked here."""


def unpacked(body: bytes, encoding: str, *, limit: int) -> bytes:
    """The body without its Content-Encoding ("" for none).

    Refusal of an encoding not in `ENCODINGS` (415), of more than `limit` bytes (413) and of what is not one whole
    stream (400).
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return body
    if name not in ENCODINGS:
        known = " or ".join(ENCODINGS)
        raise Refusal(415, f"the encoding {name[:40]!r} is not known here: send the body plain or as {known}")
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error:
        raise Refusal(400, f"the body is no {name} stream") from None
    if len(found) > limit:
        raise Refusal(413, f"the body is larger than {limit} bytes when unpacked: send less in one call")
    if not stream.eof or stream.unused_data:
        # Nor is a second stream left out in silence.
        raise Refusal(400, f"the body is not one whole {name} stream")
    return found
