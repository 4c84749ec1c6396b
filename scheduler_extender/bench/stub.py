# SPDX-License-Identifier: Apache-2.0
"""A list-only API server in a process of its own, so that its work is not counted as ours."""

import asyncio
import random
from multiprocessing.connection import Connection

import orjson
from aiohttp import web

from scheduler_extender.bench.population import Raw, Size, bound_pods, nodes


def serve(size: Size, seed: int, port: Connection) -> None:
    """Make the cluster up, tell the port, and answer until killed."""
    asyncio.run(_serve(size, seed, port))


async def _serve(size: Size, seed: int, port: Connection) -> None:
    pages = {
        "/api/v1/nodes": _pages(list(nodes(size))),
        "/api/v1/pods": _pages(list(bound_pods(size, random.Random(seed)))),  # noqa: S311
    }

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            await asyncio.sleep(3600)
        page = pages[request.path][int(request.query.get("continue", "0"))]
        return web.Response(body=page, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port.send(runner.addresses[0][1])
    await asyncio.Event().wait()


def _pages(items: list[Raw], *, items_a_page: int = 1000) -> list[bytes]:
    count = -(-len(items) // items_a_page) or 1
    return [
        orjson.dumps(
            {
                "metadata": {
                    "resourceVersion": "1",
                    "continue": str(page + 1) if page + 1 < count else "",
                },
                "items": items[page * items_a_page : (page + 1) * items_a_page],
            }
        )
        for page in range(count)
    ]
