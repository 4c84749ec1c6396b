# SPDX-License-Identifier: Apache-2.0
"""The proxy that holds requests while a service wakes, and loses none.

Read first: `holding.py` (who waits, who goes where, and every bound: pure), then `wire.py` (bytes
of HTTP/1.1 in and out: pure), `proxy.py` and `upstream.py` (the two ends of one exchange),
`desk.py` (one service: its port, its queue, its connections), `app.py` (the process and its channel
to the controller). `paths.py` says which paths never wake a service, `errors.py` how a refusal
reads.
"""
