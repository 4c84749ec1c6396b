# SPDX-License-Identifier: Apache-2.0
"""A streaming reverse proxy as one writes it with aiohttp and uvloop: the rival in Python.

`python -m autoscaler.bench.aiohttp_proxy http://HOST:PORT` prints the port that it listens on and
ends when its standard input does. It is set up to be fast: no cookies, no limit of connections, no
access log, no decompression, large read buffers, and a small body is read before it is sent on.
"""

import sys
from collections.abc import Mapping

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict

from autoscaler.bench.parent import parent_ended, tell

_OF_ONE_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_SMALL_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024


def passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers that are meant for the other end, not for this hop."""
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in _OF_ONE_HOP)


class Forwarder:
    """Sends each request to one target and streams the answer back."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        self._target = target
        self._session = session

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        length = request.content_length
        small = length is not None and length <= _SMALL_BYTES
        async with self._session.request(
            request.method,
            self._target + request.raw_path,
            headers=passed_on(request.headers),
            data=await request.read() if small else request.content,
            allow_redirects=False,
        ) as upstream:
            answer = web.StreamResponse(status=upstream.status, headers=passed_on(upstream.headers))
            await answer.prepare(request)
            async for piece in upstream.content.iter_any():
                await answer.write(piece)
            await answer.write_eof()
            return answer


async def serve(target: str) -> None:
    """Proxy to `target` on a port that the kernel chose, printed as the first line of stdout."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        read_bufsize=_READ_BYTES,
    ) as session:
        runner = web.ServerRunner(web.Server(Forwarder(target, session), access_log=None))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        tell(runner.addresses[0][1])
        await parent_ended()
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
