# SPDX-License-Identifier: Apache-2.0
"""`/metrics`. The client library is imported at the first scrape: it costs a start 50 ms."""

from serving.protocols.http import Answer, Request
from serving.worker import Worker


async def metrics(worker: Worker, _request: Request) -> Answer:
    """Everything counted, in Prometheus' text format."""
    from serving.exposition import CONTENT_TYPE, text

    return Answer(body=text(worker.telemetry), content_type=CONTENT_TYPE)
