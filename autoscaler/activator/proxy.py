# SPDX-License-Identifier: Apache-2.0
"""The client's end of an exchange: one connection, its requests one after the other.

Only here is decided what a client is told. The way of a request:

    head read -> a seat at once -> a pooled connection -> sent -> answered -> next head
                 or held          or a new one             (or split after a 101: bytes both ways)

The common case (a whole small request in one read, a free seat, a pooled connection) makes no task,
no future and no timer, and one write to each side. A head that equals the connection's previous one
to the byte, or but for values that nothing here depends on, is not parsed again.

What is tried a second time: a request whose connection was refused, always, since nobody saw it;
one that was sent on a reused connection that turned out closed before a byte of the answer, if
its method is idempotent, or if the peer had closed before a byte of the request reached it (its
last segment tells, see `Upstream.eof_received`). Never once a byte of the answer came, never
after a part of the body has gone that is not kept.

A client that closes its side is gone: what it waits for is cancelled.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from autoscaler.activator import errors
from autoscaler.activator.holding import Ticket, TicketState, Work
from autoscaler.activator.paths import WhenAsleep, asleep_body, quiet
from autoscaler.activator.tokens import (
    BYTES_PER_TOKEN,
    LOOK_BYTES,
    asked_output_tokens,
    generates,
)
from autoscaler.activator.wire import (
    CONTINUE,
    H2_GO_AWAY,
    H2_PREFACE,
    HEAD_END,
    MAX_HEAD_BYTES,
    UNSENT_BYTES,
    Chunks,
    RequestHead,
    WireError,
    asks_who_answers,
    parse_request,
    request_like,
)

if TYPE_CHECKING:
    from autoscaler.activator.desk import Desk
    from autoscaler.activator.lobby import Lobby
    from autoscaler.activator.upstream import Upstream

MAX_HELD_BODY_BYTES: Final = (
    64 * 1024
)  # of one request's body while it waits; the rest stays unread
MAX_PIPELINED_BYTES: Final = 64 * 1024
MAX_DISCARD_BYTES: Final = 256 * 1024  # of a body nobody wants, to keep the connection usable
HEAD_TIMEOUT_S: Final = 30.0
BODY_TIMEOUT_S: Final = 60.0  # between two reads of a body: who sends so slowly blocks a slot
LINGER_S: Final = 2.0
# Load balancers keep idle connections for up to 600 s; the side that closes first must be theirs.
IDLE_CLIENT_S: Final = 620.0

_IDEMPOTENT: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))
_WITHOUT_END: Final = 1 << 62

# Every read lands here and is copied out before the next: one buffer serves all connections, and
# its size, not the kernel's, bounds what a single read can bring.
_BUFFER: Final = memoryview(bytearray(256 * 1024))
_HEAD_ROOM: Final = _BUFFER[:MAX_HEAD_BYTES]


class _State(Enum):
    """Where a client's connection is."""

    IDLE = "between requests, or inside a head"
    HELD = "its request waits for a seat"
    CONNECTING = "its request has a seat, the connection is being made"
    SENT = "its request is with a replica"
    RAW = "bytes go both ways unseen"
    DISCARD = "answered before its body ended; the rest is thrown away"
    LINGER = "answered for the last time; waiting for the client to close"
    CLOSED = "gone"


_IDLE, _HELD, _CONNECTING, _SENT = _State.IDLE, _State.HELD, _State.CONNECTING, _State.SENT
_RAW, _DISCARD, _LINGER, _CLOSED = _State.RAW, _State.DISCARD, _State.LINGER, _State.CLOSED


def _h2_head() -> RequestHead:
    """HTTP/2 by prior knowledge is not parsed: the connection as a whole is one request."""
    head = RequestHead()
    head.raw = head.forward = H2_PREFACE[: H2_PREFACE.index(HEAD_END) + len(HEAD_END)]
    head.method, head.path, head.host = "PRI", "*", b""
    head.length = _WITHOUT_END
    head.chunked = head.keep_alive = head.expects = head.upgrades = head.version_10 = False
    return head


_H2_HEAD: Final = _h2_head()


class Client(asyncio.BufferedProtocol):
    """One client's connection. What has no underscore is read by `upstream.py` and `desk.py`.

    `plain`: the answer may go to the client as it is. `body_done`: the request has come in whole.
    A client that came in through a `lobby` has no desk of its own before its first head.
    """

    __slots__ = (
        "_address",
        "_attempt",
        "_buffer",
        "_chunks",
        "_close_after",
        "_desk",
        "_endpoint",
        "_left",
        "_lobby",
        "_memo",
        "_memo_bytes",
        "_memo_generates",
        "_memo_plain",
        "_memo_quiet",
        "_more",
        "_out",
        "_reading_paused",
        "_scanned",
        "_since_s",
        "_state",
        "_ticket",
        "_unlooked",
        "_upstream",
        "_writing_paused",
        "body_done",
        "head",
        "plain",
        "transport",
    )

    transport: asyncio.Transport
    head: RequestHead

    def __init__(self, desk: Desk, *, lobby: Lobby | None = None) -> None:
        self._desk = desk
        self._lobby = lobby
        self.plain = True
        self.body_done = True
        self._state = _IDLE
        self._since_s = 0.0  # when the present state began, where somebody asks
        self._buffer = bytearray()  # bytes after the present request, or an unfinished head
        self._scanned = 0  # so many bytes of it are known to hold no end of a head
        self._memo: RequestHead | None = None
        self._memo_plain = True
        self._memo_bytes = 0  # what holding such a request takes at most
        self._memo_quiet: WhenAsleep | None = None
        self._memo_generates = False
        self._unlooked = 0  # so many bytes of the body are still to be searched for a token limit
        self._out = b""  # the request as it goes upstream, as long as it may have to go twice
        self._more: bytearray | None = None  # further body that came while it waited
        self._left = 0
        self._chunks: Chunks | None = None
        self._ticket: Ticket | None = None
        self._endpoint = ""
        self._upstream: Upstream | None = None
        self._attempt = 0
        self._close_after = False
        self._reading_paused = False
        self._writing_paused = False
        self._address = b""

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        self.transport.set_write_buffer_limits(*UNSENT_BYTES)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]).encode("ascii") if peer else b"unknown"
        self._since_s = monotonic()
        if not self._desk.admit(self):
            self._state = _LINGER
            words = "too many connections are open here; come again later"
            self.transport.write(
                errors.error_response("/", 503, words, service=self._desk.route.service, close=True)
            )
            self.transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        state = self._state
        if state is _IDLE:
            return _HEAD_ROOM
        if state is _HELD or state is _CONNECTING:
            return _BUFFER[: max(1, self._room())]
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_BUFFER[:nbytes])
        state = self._state
        if state is _IDLE:
            memo = self._memo
            if self._buffer:
                self._buffer += data
            elif memo is not None and data.startswith(memo.raw):
                self._request(memo, data, len(memo.raw))
            elif (end := data.find(HEAD_END)) > 0:
                self._parse(data, end + len(HEAD_END))
            else:
                self._buffer += data
            if self._buffer:
                self._proceed()
        elif state is _SENT:
            self._pass_body(data)
        elif state is _RAW:
            if self._upstream is not None:
                self._upstream.transport.write(data)
        elif state is _HELD or state is _CONNECTING:
            self._keep_body(data)
        elif state is _DISCARD:
            self._discard(data)

    def eof_received(self) -> bool:
        self._gone()
        return False  # the transport flushes what it has and closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        self._state = _CLOSED
        self._desk.forget(self)

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._upstream is not None:
            self._upstream.resume_reading()

    # Reading requests

    def _proceed(self) -> None:
        """Take requests out of the buffer while they can be taken."""
        buffer = self._buffer
        while self._state is _IDLE and buffer:
            if not self._scanned:
                self._since_s = monotonic()
                while buffer[:2] == b"\r\n":  # RFC 9112 2.2: empty lines before a request
                    del buffer[:2]
            end = buffer.find(HEAD_END, max(0, self._scanned - 3))
            if end < 0 or end + len(HEAD_END) > MAX_HEAD_BYTES:
                self._scanned = len(buffer)
                if end >= 0 or len(buffer) >= MAX_HEAD_BYTES:
                    self._reject(431, f"the head is larger than {MAX_HEAD_BYTES // 1024} KiB")
                break
            data = bytes(buffer)
            buffer.clear()
            self._scanned = 0
            self._parse(data, end + len(HEAD_END))
        if self._state is _IDLE and self._reading_paused:
            self._resume_reading()

    def _parse(self, data: bytes, end: int) -> None:
        if data.startswith(_H2_HEAD.raw):
            if self._lobby is not None:
                self.head, self.body_done = _H2_HEAD, False
                self._refuse(404, "HTTP/2 names no host that can be read here")
                return
            self._memo_quiet, self._memo_plain, self._memo_generates = None, False, False
            self._memo_bytes = MAX_HELD_BODY_BYTES
            self._request(_H2_HEAD, data, end)
            return
        raw = data[:end]
        head = None if self._memo is None else request_like(self._memo, raw)
        if head is None:
            try:
                head = parse_request(raw, client=self._address)
            except WireError as error:
                self._reject(error.status, error.why)
                return
            if self._lobby is not None and not self._go_to_desk(self._lobby, head):
                return
            if asks_who_answers(raw):
                self._say_who_answers()
                return
            self._memo_quiet = None if head.upgrades else quiet(head.method, head.path)
            self._memo_generates = generates(head.method, head.path)
            self._memo_plain = head.keep_alive and not head.version_10 and head.method != "HEAD"
        self._memo = head
        self._memo_bytes = len(head.forward) + (
            MAX_HELD_BODY_BYTES if head.chunked else min(head.length, MAX_HELD_BODY_BYTES)
        )
        self._request(head, data, end)

    def _go_to_desk(self, lobby: Lobby, head: RequestHead) -> bool:
        """Find the desk that the head asks for; false: there is none, and the client knows."""
        found = lobby.find(head.host)
        if isinstance(found, str):
            self._reject(404, found, path=head.path)
            return False
        if found is not self._desk:
            self._desk.pass_on(self, found)
            self._desk = found
        return True

    def _say_who_answers(self) -> None:
        """The controller asks whether what it sends to this service arrives here."""
        name = self._desk.shared.name
        self._answer(
            errors.response(
                200,
                errors.activator_body(name),
                service=self._desk.route.service,
                close=True,
                extra_lines=errors.activator_line(name),
            ),
            close=True,
        )

    def unlearn(self) -> None:
        """The same head may mean another service from now on."""
        self._memo = None

    def _request(self, head: RequestHead, data: bytes, end: int) -> None:
        """A request begins: `data` is its head, as long as `end`, and whatever came with it."""
        desk = self._desk
        self.head = head
        self.plain = self._memo_plain and not desk.draining
        size = len(data) - end
        if size == head.length and not head.chunked:
            self._out = head.forward + data[end:] if size else head.forward
            self.body_done = True
        else:
            self._chunks = Chunks() if head.chunked else None
            self._left = head.length
            self._unlooked = 0
            self.body_done = False
            self._since_s = monotonic()
            try:
                self._out = head.forward + self._body_of(data, end)
            except WireError as error:
                self._reject(error.status, error.why)
                return
        if self._memo_quiet is not None:
            self._request_quietly(self._memo_quiet)
            return
        now_s = monotonic()
        work = self._work_of(data, end) if self._memo_generates else None
        ticket = desk.holding.arrive(now_s, size_bytes=self._memo_bytes, owner=self, work=work)
        self._ticket = ticket
        if ticket.state is TicketState.IN_FLIGHT:
            self._endpoint = ticket.endpoint
            self._start(now_s)
        else:
            self._placed(now_s)

    def _work_of(self, data: bytes, start: int) -> Work:
        """What the request is estimated to cost, by its length and what of its body is here."""
        head = self.head
        end = len(data) if head.chunked else min(len(data), start + head.length)
        prompt = (end - start if head.chunked else head.length) // BYTES_PER_TOKEN
        output = asked_output_tokens(data, start, end)
        if output is not None:
            return prompt, output, 0
        self._unlooked = 0 if self.body_done else max(0, LOOK_BYTES - (end - start))
        return prompt, 0, int(not self._unlooked)

    def _look_at(self, part: bytes) -> None:
        """More of the body came: see whether it says how many tokens the answer may have."""
        output = asked_output_tokens(part, 0, min(len(part), self._unlooked))
        self._unlooked = max(0, self._unlooked - len(part))
        if output is not None or self.body_done or not self._unlooked:
            self._unlooked = 0
            if self._ticket is not None:
                self._desk.holding.allows(self._ticket, output)

    def _request_quietly(self, answer: WhenAsleep) -> None:
        """A health check or the like: it goes to a replica uncounted, or is answered here."""
        endpoint = self._desk.holding.choose()
        if endpoint is not None:
            self._endpoint = endpoint
            self._since_s = monotonic()
            self._start(self._since_s)
            return
        route = self._desk.route
        if answer is WhenAsleep.LIST:
            self._refuse(503, f"{route.service} is {route.state}; this path does not wake it")
            return
        close = self._closes()
        body = asleep_body(answer, self.head.path, state=route.state)
        self._answer(
            errors.response(
                200,
                body,
                service=route.service,
                close=close,
                head_only=self.head.method == "HEAD",
                extra_lines=errors.state_line(route.state),
            ),
            close=close,
        )

    # Bodies

    def _body_of(self, data: bytes, start: int = 0) -> bytes:
        """The part of `data[start:]` that is this request's body; what follows it is kept."""
        if self.body_done:
            end = start
        elif self._chunks is not None:
            end = self._chunks.feed(data, start)
            self.body_done = self._chunks.done
        else:
            end = min(len(data), start + self._left)
            self._left -= end - start
            self.body_done = not self._left
        if end < len(data):
            self._buffer += data[end:]
            if len(self._buffer) > MAX_PIPELINED_BYTES:
                self._pause_reading()
        return data[start:end] if start or end < len(data) else data

    def _room(self) -> int:
        """How many bytes may still be read while the request waits."""
        if self.body_done:
            return MAX_PIPELINED_BYTES - len(self._buffer)
        kept = len(self._out) - len(self.head.forward) + len(self._more or b"")
        return MAX_HELD_BODY_BYTES - kept

    def _keep_body(self, data: bytes) -> None:
        """Bytes came in while the request waits: keep them, up to the bound."""
        try:
            part = self._body_of(data)
        except WireError as error:
            self._desk.leave(self._ticket, monotonic())
            self._reject(error.status, error.why)
            return
        if self._unlooked:
            self._look_at(part)
        if part:
            if self._more is None:
                self._more = bytearray()
            self._more += part
        if self._room() <= 0:
            self._pause_reading()

    def _pass_body(self, data: bytes) -> None:
        """Bytes came in while the request is with a replica: pass on what belongs to it."""
        try:
            part = self._body_of(data)
        except WireError:
            self.cut()  # the replica has half a request; neither side can be told any other way
            return
        if self._unlooked:
            self._look_at(part)
        if part and self._upstream is not None:
            self._since_s = monotonic()
            self._out = b""  # what has gone is not kept, so this request can go only once
            self._upstream.send_more(part)

    def _discard(self, data: bytes) -> None:
        try:
            self._body_of(data)
        except WireError:
            self.transport.abort()
            return
        if self.body_done:
            self._state = _IDLE
            self._proceed()

    def upstream_full(self) -> None:
        """The replica takes the body more slowly than it comes."""
        self._pause_reading()

    def upstream_drained(self) -> None:
        """The replica takes more again."""
        if len(self._buffer) <= MAX_PIPELINED_BYTES:
            self._resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
            self._desk.watch(self)  # nobody sees the end of a connection that is not read

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._desk.unwatch(self)
            self.transport.resume_reading()

    # On the way to a replica

    def _placed(self, now_s: float) -> None:
        """Do what the ticket's state says."""
        ticket = self._ticket
        if ticket is None:
            raise RuntimeError("only a request with a ticket has a place")
        state = ticket.state
        if state is TicketState.IN_FLIGHT:
            self._endpoint = ticket.endpoint
            self._start(now_s, fresh=True)
        elif state is TicketState.HELD:
            self._state = _HELD
            self.plain = False
            if self._room() <= 0:
                self._pause_reading()
            self._desk.waits(cold=ticket.cold)
        elif state is TicketState.REFUSED:
            self._ticket = None
            self._refuse(503, self._desk.overflow_words())
        else:
            self.expire()

    def released(self, now_s: float) -> None:
        """A seat came free for this held request."""
        if self._ticket is None:
            raise RuntimeError("only a request with a ticket can be released")
        self._endpoint = self._ticket.endpoint
        self._start(now_s)

    def expire(self) -> None:
        """This request has waited too long."""
        self._ticket = None
        self._refuse(504, self._desk.expiry_words())

    def dismiss(self) -> None:
        """The service is no longer routed here: let go of a held request."""
        if self._state is _HELD:
            self._desk.leave(self._ticket, monotonic())
            self._ticket = None
            self._refuse(503, f"{self._desk.route.service} is no longer served here")

    def _start(self, now_s: float, *, fresh: bool = False) -> None:
        pool = self._desk.pools[self._endpoint]
        upstream = None if fresh else pool.take(now_s)
        if upstream is not None:
            self._send(upstream)
        else:
            self._state = _CONNECTING
            self._attempt += 1
            pool.connect(self, self._attempt)

    def connected(self, attempt: int, upstream: Upstream) -> bool:
        """A new connection is there; false if it is not wanted any more."""
        if self._state is not _CONNECTING or attempt != self._attempt:
            return False
        self._send(upstream)
        return True

    def unreachable(self, attempt: int, why: str) -> None:
        """The connection could not be made: nobody has seen the request, so it may go elsewhere."""
        if self._state is not _CONNECTING or attempt != self._attempt:
            return
        if self._ticket is None:
            self._refuse(503, f"the replica of {self._desk.route.service} cannot be reached: {why}")
        else:
            self._bounce(blame=True)

    def _bounce(self, *, blame: bool) -> None:
        if self._ticket is None:
            raise RuntimeError("only a request with a ticket can look for another place")
        now_s = monotonic()
        other = self._desk.holding.bounce(self._ticket, now_s, blame=blame)
        self._desk.plan_sweep()
        self._placed(now_s)
        if other is not None:
            other.owner.released(now_s)

    def _send(self, upstream: Upstream) -> None:
        out = self._out
        if self._more is not None:
            self._out = out = out + bytes(self._more)
            self._more = None
        self._upstream = upstream
        if self._writing_paused:  # the client has not yet taken in the answer before this one
            upstream.pause_reading()
        if self.head is _H2_HEAD:
            self._out = b""
            self._begin_tunnel()
            upstream.splice(self, out)
            self._resume_reading()
            return
        self._state = _SENT
        upstream.send(self, out)
        if not upstream.reused:
            self._out = b""  # only a reused connection gives cause for a second try
        if not self.body_done:
            self._since_s = monotonic()
            if self.head.expects and len(out) == len(self.head.forward):
                self.transport.write(CONTINUE)
            if not upstream.writing_paused:
                self._resume_reading()

    # What the replica's end calls

    def decorate(self, forward: bytes, *, close: bool) -> bytes:
        """The answer's head for this client: how long it was held, whether the line stays up."""
        lines = b""
        ticket = self._ticket
        if ticket is not None and ticket.was_held:
            cold = b"true" if ticket.cold else b"false"
            lines = b"X-Tidegate-Held-S: %.3f\r\nX-Cold-Start: %b\r\n" % (ticket.held_s, cold)
        if close or self._closes():
            self._close_after = True
            lines += b"Connection: close\r\n"
        elif self.head.version_10:
            lines += b"Connection: keep-alive\r\n"
        return b"%b%b\r\n" % (forward[:-2], lines)

    def answered(self) -> None:
        """The answer has gone out whole."""
        self._upstream = None
        ticket = self._ticket
        if ticket is not None:
            self._ticket = None
            desk = self._desk
            self._since_s = now_s = monotonic()
            following = desk.holding.finish(ticket, now_s)
            if following is not None:
                following.owner.released(now_s)
        self._end_request(self._close_after)

    def switched(self, upstream: Upstream) -> None:
        """The replica agreed to the upgrade: from here on bytes go both ways unseen."""
        self._begin_tunnel()
        if self._buffer:
            upstream.transport.write(bytes(self._buffer))
            self._buffer.clear()
        self._resume_reading()

    def _begin_tunnel(self) -> None:
        self._state = _RAW
        self._desk.tunnels += 1
        self._desk.tunnels_total += 1

    def _end_tunnel(self) -> None:
        """Once, whichever of the two has left first."""
        if self._ticket is not None:
            self._desk.leave(self._ticket, monotonic(), TicketState.ANSWERED)
            self._desk.tunnels -= 1
            self._ticket = None

    def broke_off(self) -> None:
        """The answer turned out malformed when a part of it had gone out."""
        self._broken()
        self.cut()

    def failed(self, why: str) -> None:
        """The replica's answer could not be used, and nothing of it went out."""
        self._upstream = None
        self._broken()
        self._refuse(502, f"{self._desk.route.service}: {why}")

    def upstream_lost(self, upstream: Upstream, *, untouched: bool) -> None:
        """The connection to the replica ended before the answer did."""
        self._upstream = None
        if self._state is _RAW:
            self._end_tunnel()
            self.transport.close()
        elif upstream.begun:
            self._broken()
            # A length or a last chunk is missing, so the client can tell; else only a reset tells.
            if upstream.framed:
                self.transport.close()
            else:
                self.transport.abort()
        elif self._out and upstream.reused and (untouched or self.head.method in _IDEMPOTENT):
            if self._ticket is None and self._memo_quiet is not None:
                self._request_quietly(self._memo_quiet)
            else:
                self._bounce(blame=False)
        else:
            self._broken()
            self._refuse(
                502,
                f"the replica of {self._desk.route.service} ended before it answered; "
                "whether it did the work is not known",
            )

    def cut(self) -> None:
        """End the connection in the middle of an answer, so that the client can tell."""
        self._leave_replica()
        self.transport.abort()

    # Answers in the activator's own name

    def _closes(self) -> bool:
        return not self.head.keep_alive or self._desk.draining

    def _refuse(self, status: int, message: str) -> None:
        if self.head is _H2_HEAD:
            self.transport.write(H2_GO_AWAY)
            self._end_request(True)
            return
        unwanted = self._chunks is not None or self._left > MAX_DISCARD_BYTES or self.head.expects
        close = self._closes() or (not self.body_done and unwanted)
        self._answer(
            errors.error_response(
                self.head.path,
                status,
                message,
                service=self._desk.route.service,
                close=close,
                head_only=self.head.method == "HEAD",
            ),
            close=close,
        )

    def _reject(self, status: int, why: str, *, path: str = "/") -> None:
        """The bytes are no request that can be passed on; nothing that follows can be trusted."""
        self._ticket = None
        self._buffer.clear()
        self._scanned = 0
        self.body_done = False
        self._answer(
            errors.error_response(path, status, why, service=self._desk.route.service, close=True),
            close=True,
        )

    def _answer(self, data: bytes, *, close: bool) -> None:
        self._since_s = monotonic()
        self.transport.write(data)
        self._end_request(close)

    def _end_request(self, close: bool) -> None:
        """An answer is out; get ready for the next request, or part."""
        self._out = b""
        self._more = None
        self._close_after = False
        # Nobody is cut off who was not told so: who is to leave hears it with the next answer.
        if close or self._state is _CLOSED:
            self._part()
        elif self.body_done:
            self._state = _IDLE
            if self._buffer or self._reading_paused:
                self._desk.soon(self._proceed)
        elif self._chunks is not None or self._left > MAX_DISCARD_BYTES:
            self._part()
        else:
            self._state = _DISCARD
            self._resume_reading()

    def _part(self) -> None:
        """Close so that the answer arrives: while bytes come in unread, a close would reset it."""
        self._state = _LINGER
        self._buffer.clear()
        if self.body_done:
            self.transport.close()
        elif not self.transport.is_closing():
            self._since_s = monotonic()
            self.transport.write_eof()
            self._resume_reading()

    # Endings

    def _gone(self) -> None:
        """The client has left, whatever it was waiting for."""
        if self._reading_paused:
            self._reading_paused = False
            self._desk.unwatch(self)
        if self._state is _RAW:
            upstream, self._upstream = self._upstream, None
            self._end_tunnel()
            if upstream is not None:
                upstream.client = None
                upstream.transport.close()
        else:
            self._leave_replica()
        self._state = _LINGER
        self._since_s = monotonic()

    def _leave_replica(self) -> None:
        """Let go of seat and connection because the exchange cannot go on."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
        ticket, self._ticket = self._ticket, None
        self._desk.leave(ticket, monotonic())

    def _broken(self) -> None:
        ticket, self._ticket = self._ticket, None
        self._desk.leave(ticket, monotonic(), TicketState.BROKEN)

    def departed(self) -> None:
        """The client closed its side while nothing was being read from it."""
        self.transport.abort()

    def drain(self) -> None:
        """From now on every answer says that the connection closes."""
        self.plain = False

    def close_if_idle(self, *, since_s: float = float("inf")) -> None:
        """Close a connection that waits for a next request, and has done so since then."""
        if self._state is _IDLE and not self._buffer and self._since_s <= since_s:
            self.transport.close()

    def tick(self, now_s: float) -> None:
        """Called every second or so: end what has lasted too long."""
        if self._state is _IDLE:
            if self._buffer and now_s - self._since_s > HEAD_TIMEOUT_S:
                self._reject(408, f"no whole head came within {HEAD_TIMEOUT_S:g} s")
            elif now_s - self._since_s > IDLE_CLIENT_S:
                self.transport.close()
        elif self._state is _LINGER:
            if now_s - self._since_s > LINGER_S:
                self.transport.abort()
        elif self._state is _SENT or self._state is _DISCARD:
            late = now_s - self._since_s > BODY_TIMEOUT_S
            if late and not self.body_done and not self._reading_paused:
                self.cut()
