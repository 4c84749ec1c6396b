# SPDX-License-Identifier: Apache-2.0
"""Reads messages by counting their bytes; both ends of the benchmark's wire stand on it.

It must cost next to nothing: on two cores the client and the backend share the one that is not the
proxy's. So a message's length comes from one search for the end of its head, bodies stay in one
buffer that all connections share, and only a sample of the messages is compared byte by byte.
"""

import asyncio
from typing import cast

HEAD_END = b"\r\n\r\n"
LONGEST_HEAD_BYTES = 64 * 1024
SAMPLE_EVERY = 64

_arrived = bytearray(256 * 1024)
_arrived_view = memoryview(_arrived)


def field(head: bytes, name: bytes) -> bytes | None:
    """The value of one header field, or None."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


class CountedMessages(asyncio.BufferedProtocol):
    """One connection whose incoming messages all have the same body, of a length known beforehand.

    Calls `message_arrived()` after each, `message_refused(why)` once at the first that is not as
    expected; nothing is read after that.
    """

    transport: asyncio.Transport

    def __init__(self, *, begins: bytes, body: bytes) -> None:
        self._begins = begins
        self._body = body
        self._body_bytes = len(body)
        self._left = 0
        self._split_head = b""
        self._sample: bytearray | None = bytearray()
        self._until_sample = SAMPLE_EVERY
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by what they do, not by their class.
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _arrived_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._refused:
            return
        if self._sample is not None:
            self._sample += _arrived_view[:nbytes]
        left = self._left
        if left == 0:
            left = self._length(nbytes)
            if left == 0:
                return
        left -= nbytes
        self._left = left
        if left > 0:
            return
        if left < 0:
            self._refuse("more bytes than one message")
            return
        if self._sample is not None:
            wrong = self.what_is_wrong(bytes(self._sample))
            self._sample = None
            if wrong:
                self._refuse(wrong)
                return
        self._until_sample -= 1
        if self._until_sample == 0:
            self._until_sample = SAMPLE_EVERY
            self._sample = bytearray()
        self.message_arrived()

    def _length(self, nbytes: int) -> int:
        """How many bytes from the start of this read the message has; 0 if not known yet."""
        before = len(self._split_head)
        if before:
            return self._length_with(self._split_head + bytes(_arrived_view[:nbytes]), before)
        end = _arrived.find(HEAD_END, 0, nbytes)
        if end >= 0 and _arrived.startswith(self._begins, 0, nbytes):
            return end + len(HEAD_END) + self._body_bytes
        return self._length_with(bytes(_arrived_view[:nbytes]), 0)

    def _length_with(self, head: bytes, before: int) -> int:
        """The same for what the quick way does not take: a head in pieces, or a wrong one."""
        end = head.find(HEAD_END)
        if end >= 0 and head.startswith(self._begins):
            self._split_head = b""
            return end + len(HEAD_END) + self._body_bytes - before
        if end >= 0:
            self._refuse(_first_line(head))
        elif len(head) > LONGEST_HEAD_BYTES:
            self._refuse("a head without end")
        self._split_head = head
        return 0

    def what_is_wrong(self, message: bytes) -> str | None:
        """Compare one whole message with what it must be."""
        head, _, body = message.partition(HEAD_END)
        length = field(head, b"content-length")
        if length != b"%d" % self._body_bytes:
            return f"content-length {length!r} where {self._body_bytes} was due"
        return None if body == self._body else "a body with other bytes than were sent"

    def _refuse(self, why: str) -> None:
        self._refused = True
        self.message_refused(why)

    def message_arrived(self) -> None:
        raise NotImplementedError

    def message_refused(self, why: str) -> None:
        raise NotImplementedError


def _first_line(head: bytes) -> str:
    line = head.split(b"\r\n", 1)[0][:80].decode("latin-1")
    return f"answered or asked {line!r}"
