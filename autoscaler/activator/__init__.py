# SPDX-License-Identifier: Apache-2.0
"""The proxy that holds requests while a service wakes, and loses none.

Read first: `holding.py` (who waits, who goes where, and every bound: pure), then `wire.py` (bytes
of HTTP/1.1 in and out: pure), `proxy.py` and `upstream.py` (the two ends of one exchange),
`desk.py` (one service: its queue, its connections), `app.py` (the process). `link.py` is the
channel to the controller; `listener.py` a port, `lobby.py` one that several services share.
`discovery.py` says which endpoints may be used (pure), `probing.py` asks those that are not ready,
`finding.py` keeps all that current. `paths.py` says which paths never wake a service, `errors.py`
how a refusal reads, `health.py` and `metrics.py` what the process tells of itself.
"""
