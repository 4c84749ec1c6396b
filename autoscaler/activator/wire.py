# SPDX-License-Identifier: Apache-2.0
"""Bytes of HTTP/1.1, in and out: the only file that knows how a head or a chunk is written.

Pure: no socket, no clock. Heads are read by llhttp at its strictest, then checked once more for
what makes two parsers disagree about where a message ends (request smuggling): whatever is
ambiguous is refused, never mended. A head goes on as the bytes it came in as, unless a header in
it belongs to one hop only; then it is written anew from what was understood.
Source: RFC 9112 sections 2.2, 3.2, 6, 7.1 and 11.2; RFC 9110 sections 7.6.1, 10.1.1 and 15.2.
"""

import re
from typing import Final

import httptools

MAX_HEAD_BYTES: Final = 64 * 1024
# What may wait to be written to one side before the other is no longer read, and how little of it
# must be left until it is read again: enough that the writing side never runs dry in between.
UNSENT_BYTES: Final = (256 * 1024, 64 * 1024)
MAX_CHUNK_LINE_BYTES: Final = 4096  # size and extensions of one chunk; real ones have 3 to 8 bytes
MAX_TRAILER_BYTES: Final = 64 * 1024
HEAD_END: Final = b"\r\n\r\n"
# What an HTTP/2 client that knows the server speaks it says first (h2c by prior knowledge; gRPC).
H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# An empty SETTINGS frame, then GOAWAY(last stream 0, NO_ERROR): "none of your streams was touched",
# upon which a gRPC client may send them again without asking anybody.
H2_GO_AWAY: Final = bytes.fromhex("0000000400000000000000080700000000000000000000000000")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

# Headers that speak of one hop (RFC 9110 7.6.1, and those that pre-date it).
_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"upgrade")
)
_SPECIAL_IN_REQUESTS: Final = _HOP | {
    b"content-length",
    b"expect",
    b"host",
    b"transfer-encoding",
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-tidegate-probe",
}
_PLAIN_IN_REQUESTS: Final = frozenset((b"host", b"content-length"))
_SPECIAL_IN_RESPONSES: Final = _HOP | {b"content-length", b"transfer-encoding"}
# A request may not name these in `Connection`: dropping them would change what the message means.
_NOT_HOP: Final = frozenset(
    (b"content-length", b"host", b"transfer-encoding", b"x-forwarded-for", b"x-forwarded-proto")
)
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_TRAILER_LINE: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\x00]*)?\r\n")

# How the controller asks whether what it sends to a service arrives here.
_PROBE: Final = re.compile(rb"\r\nx-tidegate-probe:", re.IGNORECASE)

# What a value may hold so that no reader can take it for more than one: no control character.
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

Header = tuple[bytes, bytes]


class WireError(Exception):
    """A message that cannot be passed on: `status` is the answer to a client, `why` its text."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Mould:
    """The lines of a head that was parsed, to know another of the same shape without parsing it.

    Clients and replicas say nearly the same head again and again: another request id, another date,
    another length. A line that is the same to the byte means the same. Where one differs, only its
    value may, only in a header that nothing here depends on, and only in bytes that llhttp takes
    in a value: so what fits would be parsed to the same head with that value in it.
    """

    __slots__ = ("_digits", "_length_at", "_lines", "_names")

    def __init__(self, raw: bytes, special: frozenset[bytes]) -> None:
        self._lines = raw.split(b"\r\n")
        self._names: list[bytes] = []  # with their colons; empty: the line must be the same
        self._length_at = -1
        self._digits = b""
        for at, line in enumerate(self._lines):
            name, colon, value = line.partition(b":")
            lower = name.lower()
            self._names.append(name + colon if at and colon and lower not in special else b"")
            if lower == b"content-length":
                self._length_at, self._digits = at, value.strip()

    def length_digits(self, raw: bytes) -> bytes | None:
        """The digits of Content-Length, empty if there is none; None: `raw` has another shape."""
        lines = raw.split(b"\r\n")
        if len(lines) != len(self._lines):
            return None
        found = self._digits
        for at, (line, known) in enumerate(zip(lines, self._lines, strict=True)):
            if line == known:
                continue
            if at == self._length_at:
                name, _, found = line.partition(b": ")
                if not known.startswith(name + b": ") or not found.isdigit() or len(found) > 18:
                    return None
            else:
                name = self._names[at]
                if not name or not line.startswith(name) or not _VALUE.fullmatch(line, len(name)):
                    return None
        return found


class RequestHead:
    """What a request's head says. `forward` is the head to send upstream, its last empty line too.

    `host` is what the request asked for: its target's, else its Host's; empty if neither is there.
    `length` is the body's in bytes, meaningless if `chunked`. `expects` means that the client waits
    for `100 Continue`, `upgrades` that it asks for a WebSocket.
    """

    __slots__ = (
        "chunked",
        "expects",
        "forward",
        "host",
        "keep_alive",
        "length",
        "method",
        "mould",
        "path",
        "raw",
        "tail",
        "upgrades",
        "version_10",
    )

    raw: bytes
    forward: bytes
    host: bytes
    method: str
    path: str
    length: int
    chunked: bool
    keep_alive: bool
    expects: bool
    upgrades: bool
    version_10: bool
    tail: bytes | None  # `forward` is `raw` with this for its last line; None: it was written anew
    mould: Mould | None


class ResponseHead:
    """What a response's head says. `forward` is the head for an HTTP/1.1 client.

    `length` None and not `chunked`: the body lasts until the connection closes. `keep_alive_s` is
    what the server says of its idle connections, if it says so.
    """

    __slots__ = (
        "chunked",
        "forward",
        "keep_alive",
        "keep_alive_s",
        "length",
        "mould",
        "raw",
        "status",
        "switches",
    )

    raw: bytes
    forward: bytes
    status: int
    length: int | None
    chunked: bool
    keep_alive: bool
    keep_alive_s: float | None
    switches: bool
    mould: Mould | None


class _Seen:
    """Collects what llhttp reports of one head."""

    __slots__ = ("complete", "headers", "target")

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.target = b""
        self.complete = False

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True

    def among(self, names: frozenset[bytes]) -> dict[bytes, list[bytes]]:
        """The values of the headers of these names (in lower case), in the order they came."""
        found: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            lower = name.lower()
            if lower in names:
                found.setdefault(lower, []).append(value)
        return found


def _read(
    parser: httptools.HttpRequestParser | httptools.HttpResponseParser, seen: _Seen, raw: bytes
) -> str:
    """Run llhttp over one whole head; the reason if it is not exactly one, else an empty string."""
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade as upgrade:
        if upgrade.args[0] != len(raw):
            return "bytes after the end of the head"
    except httptools.HttpParserError as error:
        return str(error)
    return "" if seen.complete else "the head does not end where it should"


def _tokens(values: list[bytes]) -> set[bytes]:
    return {token.strip().lower() for value in values for token in value.split(b",")}


def _length(values: list[bytes]) -> int:
    if len(values) > 1:
        raise WireError(400, "more than one Content-Length")
    # isdigit() is true for ASCII digits alone; 18 of them are 888 PiB.
    if not values[0].isdigit() or len(values[0]) > 18:
        raise WireError(400, "Content-Length is not a plain number")
    return int(values[0])


def parse_request(raw: bytes, *, client: bytes) -> RequestHead:
    """Read one request head, `raw` including its empty line. `client`: the peer's IP address.

    Raises `WireError` for what is malformed, ambiguous or not spoken here.
    """
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen)
    problem = _read(parser, seen, raw)
    if problem:
        raise WireError(400, problem)
    version = parser.get_http_version()
    method = parser.get_method()
    if version not in ("1.1", "1.0"):
        raise WireError(505, f"HTTP/{version} is not spoken here")
    if method == b"CONNECT":
        raise WireError(501, "CONNECT is not supported")
    special = seen.among(_SPECIAL_IN_REQUESTS)
    head = RequestHead()
    head.raw = raw
    head.method = method.decode("ascii")
    head.version_10 = version == "1.0"
    head.keep_alive = not head.version_10
    head.expects = head.upgrades = False
    _read_framing(head, special)
    connection: set[bytes] = set()
    if not special.keys() <= _PLAIN_IN_REQUESTS:
        connection = _read_connection(head, special)
    target = seen.target
    host = b""
    if not target.startswith(b"/") and (absolute := _ABSOLUTE.match(target)):
        host = absolute.group(1)
        target = target[absolute.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    head.path = target.split(b"?", 1)[0].decode("ascii", "replace")
    hosts = special.get(b"host", ())
    if len(hosts) != 1 and (hosts or not head.version_10):
        raise WireError(400, "a request needs exactly one Host")
    if hosts and not host:
        host = hosts[0]
    head.host = host
    head.forward = _forward_request(
        head, seen.headers, special, target=target, host=host, client=client, connection=connection
    )
    as_it_came = raw[:-2]
    head.tail = head.forward[len(as_it_came) :] if head.forward.startswith(as_it_came) else None
    head.mould = None
    return head


def asks_who_answers(raw: bytes) -> bool:
    """Whether a head is the controller's probe, which the activator answers in its own name."""
    return _PROBE.search(raw) is not None


def request_like(known: RequestHead, raw: bytes) -> RequestHead | None:
    """What `parse_request(raw)` gives, for the client of `known`; None if that must be asked."""
    if known.tail is None:
        return None
    mould = known.mould
    if mould is None:
        mould = known.mould = Mould(known.raw, _SPECIAL_IN_REQUESTS)
    digits = mould.length_digits(raw)
    if digits is None:
        return None
    head = RequestHead()
    head.raw = raw
    head.forward = raw[:-2] + known.tail
    head.length = int(digits) if digits else 0
    head.host = known.host
    head.method, head.path, head.chunked = known.method, known.path, known.chunked
    head.keep_alive, head.version_10 = known.keep_alive, known.version_10
    head.expects, head.upgrades = known.expects, known.upgrades
    head.tail, head.mould = known.tail, mould
    return head


def _read_connection(head: RequestHead, special: dict[bytes, list[bytes]]) -> set[bytes]:
    """What the request says about its own hop; the header names listed in `Connection`."""
    connection = _tokens(special.get(b"connection", []))
    if connection & _NOT_HOP:
        raise WireError(400, "Connection names a header that is not the hop's")
    head.keep_alive = b"keep-alive" in connection if head.version_10 else b"close" not in connection
    head.expects = _expects(special) and not head.version_10
    head.upgrades = (
        b"upgrade" in connection
        and _tokens(special.get(b"upgrade", [])) == {b"websocket"}
        and not head.version_10
    )
    if head.upgrades and (head.length or head.chunked):
        raise WireError(400, "an upgrade with a body")
    return connection


def _read_framing(head: RequestHead, special: dict[bytes, list[bytes]]) -> None:
    encodings = special.get(b"transfer-encoding", [])
    lengths = special.get(b"content-length", [])
    head.chunked = bool(encodings)
    head.length = 0
    if encodings:
        if head.version_10:
            raise WireError(400, "Transfer-Encoding in an HTTP/1.0 request")
        if lengths:
            raise WireError(400, "both Content-Length and Transfer-Encoding")
        if len(encodings) > 1 or encodings[0].lower() != b"chunked":
            raise WireError(501, "the only Transfer-Encoding spoken here is chunked")
    elif lengths:
        head.length = _length(lengths)


def _expects(special: dict[bytes, list[bytes]]) -> bool:
    expectations = _tokens(special.get(b"expect", []))
    if expectations - {b"100-continue"}:
        raise WireError(417, "the only expectation met here is 100-continue")
    return bool(expectations)


def _forward_request(
    head: RequestHead,
    headers: list[Header],
    special: dict[bytes, list[bytes]],
    *,
    target: bytes,
    host: bytes,
    client: bytes,
    connection: set[bytes],
) -> bytes:
    """The head as it goes upstream: always HTTP/1.1, one Host, nothing of the client's own hop."""
    proto = b"" if b"x-forwarded-proto" in special else b"X-Forwarded-Proto: http\r\n"
    if special.keys() <= {b"host", b"content-length", b"transfer-encoding", b"x-forwarded-proto"}:
        # "GET  /" has a space too many, which some take for an empty target: such a line is
        # written anew below. An absolute target cannot follow a method and one space either.
        start = b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), target)
        if head.raw.startswith(start) and host:
            return b"%bX-Forwarded-For: %b\r\n%b\r\n" % (head.raw[:-2], client, proto)
    drop = _HOP | connection | {b"expect", b"host", b"x-forwarded-for"}
    lines = [b"%b %b HTTP/1.1" % (head.method.encode("ascii"), target)]
    lines.append(b"Host: " + host)  # empty if the client named none (RFC 9112 3.2)
    lines += [b"%b: %b" % (n, v) for n, v in headers if n.lower() not in drop]
    if b"trailers" in _tokens(special.get(b"te", [])):
        lines.append(b"TE: trailers")
        if not head.upgrades:
            lines.append(b"Connection: TE")
    if head.upgrades:
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
    chain = [*special.get(b"x-forwarded-for", []), client]
    lines.append(b"X-Forwarded-For: " + b", ".join(chain))
    return b"\r\n".join(lines) + b"\r\n" + proto + b"\r\n"


def parse_response(raw: bytes) -> ResponseHead:
    """Read one response head, `raw` including its empty line. Raises `WireError` (502)."""
    seen = _Seen()
    parser = httptools.HttpResponseParser(seen)
    problem = _read(parser, seen, raw)
    if problem:
        raise WireError(502, f"the replica's answer is malformed: {problem}")
    special = seen.among(_SPECIAL_IN_RESPONSES)
    encodings = special.get(b"transfer-encoding", [])
    lengths = special.get(b"content-length", [])
    if encodings and (lengths or len(encodings) > 1 or encodings[0].lower() != b"chunked"):
        raise WireError(502, "the replica's answer has an ambiguous length")
    head = ResponseHead()
    head.raw = raw
    head.status = parser.get_status_code()
    head.chunked = bool(encodings)
    try:
        head.length = _length(lengths) if lengths else None
    except WireError as error:
        raise WireError(502, f"the replica's answer: {error.why}") from error
    connection = _tokens(special.get(b"connection", []))
    version_11 = parser.get_http_version() == "1.1"
    head.keep_alive = version_11 and b"close" not in connection
    head.keep_alive_s = _keep_alive_s(special.get(b"keep-alive", []))
    head.switches = head.status == 101
    plain = version_11 and special.keys() <= {b"content-length", b"transfer-encoding"}
    if plain or head.switches:
        head.forward = raw
    else:
        head.forward = _rewrite_response(raw, seen.headers, _HOP | (connection - _NOT_HOP))
    head.mould = None
    return head


def response_like(known: ResponseHead, raw: bytes) -> ResponseHead | None:
    """What `parse_response(raw)` gives; None if that must be asked."""
    if known.forward is not known.raw or known.switches:
        return None
    mould = known.mould
    if mould is None:
        mould = known.mould = Mould(known.raw, _SPECIAL_IN_RESPONSES)
    digits = mould.length_digits(raw)
    if digits is None:
        return None
    head = ResponseHead()
    head.raw = head.forward = raw
    head.length = int(digits) if digits else None
    head.status, head.chunked, head.switches = known.status, known.chunked, False
    head.keep_alive, head.keep_alive_s = known.keep_alive, known.keep_alive_s
    head.mould = mould
    return head


def _rewrite_response(raw: bytes, headers: list[Header], drop: frozenset[bytes]) -> bytes:
    status_line = b"HTTP/1.1" + raw[8 : raw.index(b"\r\n")]
    lines = [status_line] + [b"%b: %b" % (n, v) for n, v in headers if n.lower() not in drop]
    return b"\r\n".join(lines) + HEAD_END


def without_chunking(head: ResponseHead) -> bytes:
    """The head for a client that knows no chunks (HTTP/1.0): the close ends the body."""
    seen = _Seen()
    _read(httptools.HttpResponseParser(seen), seen, head.forward)
    return _rewrite_response(head.forward, seen.headers, _HOP | {b"transfer-encoding"})


def _keep_alive_s(values: list[bytes]) -> float | None:
    for token in _tokens(values):
        name, _, seconds = token.partition(b"=")
        if name.strip() == b"timeout" and seconds.strip().isdigit():
            return float(seconds)
    return None


class Chunks:
    """Finds the end of a chunked body in the bytes that go by, and can hand out what is inside.

    Strict: sizes are bare hexadecimal, every line ends in CR LF. `done` once the last byte went by.
    """

    __slots__ = ("_in_trailer", "_left", "_tail", "_trailer_bytes", "done")

    def __init__(self) -> None:
        self.done = False
        self._left = 0  # bytes of the present chunk still to come, its CR LF included
        self._tail = b""  # the beginning of a line whose end has not come yet
        self._in_trailer = False
        self._trailer_bytes = 0

    def feed(self, data: bytes, start: int = 0, *, into: list[bytes] | None = None) -> int:
        """Go over `data[start:]`; returns where the body ends in it, or `len(data)` if it goes on.

        The payload is appended to `into` if given. Raises `WireError` (400) on anything ambiguous.
        """
        before = len(self._tail)
        if before:
            data = self._tail + (data[start:] if start else data)
            self._tail = b""
            at = 0
        else:
            at = start
        size = len(data)
        while at < size and not self.done:
            if self._left:
                at = self._through_chunk(data, at, into)
                continue
            match = (_TRAILER_LINE if self._in_trailer else _CHUNK_SIZE).match(data, at)
            if match is None:
                self._keep_tail(data, at)
                at = size
            elif self._in_trailer:
                self._trailer_bytes += match.end() - at
                if self._trailer_bytes > MAX_TRAILER_BYTES:
                    raise WireError(431, "trailers are too large")
                self.done = match.end() - at == 2
                at = match.end()
            else:
                chunk = int(match.group(1), 16)
                at = match.end()
                self._in_trailer = chunk == 0
                self._left = chunk + 2 if chunk else 0
        return at - before + (start if before else 0)

    def _through_chunk(self, data: bytes, at: int, into: list[bytes] | None) -> int:
        end = min(at + self._left, len(data))
        payload_end = min(end, at + max(0, self._left - 2))
        if into is not None and payload_end > at:
            into.append(data[at:payload_end])
        ending = data[payload_end:end]
        if ending != (b"\r\n" if self._left > 1 else b"\n")[: len(ending)]:
            raise WireError(400, "a chunk is longer than its size")
        self._left -= end - at
        return end

    def _keep_tail(self, data: bytes, at: int) -> None:
        tail = data[at:]
        limit = MAX_HEAD_BYTES if self._in_trailer else MAX_CHUNK_LINE_BYTES
        cr = tail.find(b"\r")
        if b"\n" in tail or (0 <= cr < len(tail) - 1) or len(tail) > limit:
            raise WireError(400, "a malformed chunk line")
        if not self._in_trailer and not tail[:1].isalnum():
            raise WireError(400, "a malformed chunk size")
        self._tail = tail
