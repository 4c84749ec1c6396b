# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard of the chart: a table of panels, and what turns it into Grafana's JSON.

Levels are taken as `max by (namespace, name)`, for two controllers may both be scraped while one
hands over; rates are summed, for each series counts on its own.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_CHOSEN = '{namespace=~"$namespace", name=~"$name"%s}'


def _level(metric: str, extra: str = "", *, by: str = "") -> str:
    return f"max by (namespace, name{by}) (tidegate_{metric}{_chosen(extra)})"


def _rate(metric: str, extra: str = "", *, by: str) -> str:
    return f"sum by ({by}) (rate(tidegate_{metric}{_chosen(extra)}[$__rate_interval]))"


def _grown(metric: str, extra: str = "", *, by: str) -> str:
    return f"sum by ({by}) (increase(tidegate_{metric}{_chosen(extra)}[$__rate_interval]))"


def _chosen(extra: str) -> str:
    return _CHOSEN % (f", {extra}" if extra else "")


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `queries`: legend -> PromQL. `width`: of 24."""

    title: str
    meaning: str
    queries: Mapping[str, str]
    unit: str = "short"
    width: int = 12
    kind: str = "timeseries"


_SERVICE = "{{namespace}}/{{name}}"
_LOST = 'outcome=~"overflow|expired|broken"'

PANELS: tuple[Panel, ...] = (
    Panel(
        "Services by state",
        "How many services are asleep, waking, active or draining.",
        {"{{state}}": f"sum by (state) ({_level('service_state', by=', state')})"},
        width=9,
        kind="stat",
    ),
    Panel(
        "Held now",
        "Requests that wait in the activators for a replica.",
        {"held": f"sum({_level('held_requests')})"},
        width=5,
        kind="stat",
    ),
    Panel(
        "Lost in the last hour",
        "Requests that got an error for lack of a replica: too many held, held too long, or broken "
        "by one.",
        {"lost": f"sum(increase(tidegate_requests_ended_total{_chosen(_LOST)}[1h]))"},
        width=5,
        kind="stat",
    ),
    Panel(
        "Cold starts in the last hour",
        "Replicas that became ready.",
        {"starts": f"sum(increase(tidegate_cold_starts_total{_chosen('')}[1h]))"},
        width=5,
        kind="stat",
    ),
    Panel(
        "Replicas wished for",
        "What the last decision asked for.",
        {_SERVICE: _level("wanted_replicas")},
    ),
    Panel(
        "Replicas by state",
        "What there is.",
        {f"{_SERVICE} {{{{state}}}}": _level("replicas", by=", state") + " > 0"},
    ),
    Panel(
        "Requests held",
        "They wait for a replica; at a bound the next one is refused.",
        {_SERVICE: _level("held_requests")},
    ),
    Panel(
        "Requests in flight and queued in replicas",
        "What replicas work on, and what waits inside them.",
        {
            f"{_SERVICE} in flight": _level("in_flight_requests"),
            f"{_SERVICE} queued": _level("waiting_requests"),
        },
    ),
    Panel(
        "Requests arriving",
        "Seen by activators or reported by replicas.",
        {_SERVICE: _rate("requests_total", by="namespace, name")},
        unit="reqps",
    ),
    Panel(
        "Requests lost",
        "By how they ended: overflow (503), expired (504), broken by a replica.",
        {
            f"{_SERVICE} {{{{outcome}}}}": _grown(
                "requests_ended_total", _LOST, by="namespace, name, outcome"
            )
        },
    ),
    Panel(
        "Cold starts",
        "Replicas that became ready.",
        {_SERVICE: _grown("cold_starts_total", by="namespace, name")},
    ),
    Panel(
        "Lead time",
        "Learned time from deciding to ready; decisions look this far ahead.",
        {f"{_SERVICE} p{{{{quantile}}}}": _level("lead_time_seconds", by=", quantile")},
        unit="s",
    ),
    Panel(
        "Decisions by rule",
        "What bound the counts of the services, as a part of all decisions.",
        {
            "{{rule}}": f"{_rate('decisions_total', by='rule')} "
            f"/ ignoring(rule) group_left {_rate('decisions_total', by='')}"
        },
        unit="percentunit",
    ),
    Panel(
        "Readings that are missing",
        "No count falls on them; `GET /v1/services` says why they are missing.",
        {f"{_SERVICE} {{{{quantity}}}}": _level("reading_absent", by=", quantity")},
    ),
    Panel(
        "Sources: answering",
        "1 while nothing is wrong with a source; `GET /v1/sources` says what is.",
        {"{{source}}": "min by (source) (tidegate_source_up)"},
        width=8,
    ),
    Panel(
        "Sources: age",
        "Time since a source last answered.",
        {"{{source}}": "min by (source) (tidegate_source_age_seconds)"},
        unit="s",
        width=8,
    ),
    Panel(
        "Sources: failing",
        "Part of the questions to a source that got no answer.",
        {
            "{{source}}": "sum by (source) (rate(tidegate_source_failed_total[$__rate_interval])) "
            "/ sum by (source) (rate(tidegate_source_asked_total[$__rate_interval]))"
        },
        unit="percentunit",
        width=8,
    ),
    Panel(
        "Requests through the activators",
        "By Service; zero once a service is warm and they have left its path.",
        {
            "{{namespace}}/{{service}}": "sum by (namespace, service) "
            '(rate(tidegate_activator_requests_total{namespace=~"$namespace"}[$__rate_interval]))'
        },
        unit="reqps",
    ),
    Panel(
        "Memory held by the activators",
        "What held requests may take, by pod.",
        {"{{pod}}": "sum by (pod) (tidegate_activator_held_bytes)"},
        unit="bytes",
    ),
    Panel(
        "Activators by whether they hear the controller",
        "Without it they serve by the routes they know.",
        {
            "connected": "sum(tidegate_activator_channel_up)",
            "alone": "count(tidegate_activator_channel_up == 0) or vector(0)",
        },
    ),
)


def dashboard() -> str:
    """Grafana's JSON, the same bytes for the same panels."""
    board = {
        "title": "Tidegate",
        "uid": "tidegate",
        "tags": ["tidegate"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_placed(PANELS)),
    }
    return json.dumps(board, indent=2) + "\n"


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}
    chosen = {"namespace": "", "name": '{namespace=~"$namespace"}'}
    for label, among in chosen.items():
        yield {
            "name": label,
            "type": "query",
            "label": {"namespace": "Namespace", "name": "Service"}[label],
            "datasource": _SOURCE,
            "query": f"label_values(tidegate_wanted_replicas{among}, {label})",
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
            "sort": 1,
        }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_ROW, _HEIGHT = 24, 8


def _placed(panels: Iterable[Panel]) -> Iterator[dict[str, Any]]:
    """From left to right, top to bottom."""
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _ROW:
            x, y = 0, y + _HEIGHT
        yield {
            "id": number,
            "type": panel.kind,
            "title": panel.title,
            "description": panel.meaning,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {
                    "refId": chr(ord("A") + n),
                    "datasource": _SOURCE,
                    "expr": expr,
                    "legendFormat": legend,
                }
                for n, (legend, expr) in enumerate(panel.queries.items())
            ],
        }
        x += panel.width
