# SPDX-License-Identifier: Apache-2.0
"""`tidegate signals`: what Tidegate reads in the metrics of a model server or a GPU exporter."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import httpx
import orjson
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoscaler.adapters.engines.histograms import Distribution
from autoscaler.adapters.engines.page import SCRAPE_MAX_BYTES
from autoscaler.adapters.engines.telling import AUTO, KEYS, READINGS, Told, told
from autoscaler.adapters.gpus.devices import Device, document
from autoscaler.app.signals_gpus import gpus
from autoscaler.core.signals import NoReading
from autoscaler.errors import BadInput
from autoscaler.text import nearest

PATIENCE_S: Final = 10.0  # for all of one answer
_HEADERS: Final = {"Accept": "text/plain, */*", "Accept-Encoding": "identity"}
_PIPED_WIDTH: Final = 100
_MIB: Final = 1024 * 1024

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.command("gpus")(gpus)


@app.callback()
def signals() -> None:
    """What Tidegate reads in the metrics of a model server or a GPU exporter."""


@app.command()
def parse(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|URL|-", help="A metrics page: a file, http(s)://..., or standard input."
        ),
    ],
    engine: Annotated[
        str, typer.Option(help=f"Whose metrics they are: auto, {', '.join(KEYS)}.")
    ] = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say in one vocabulary what a metrics page tells, and what it does not tell, and why.

    The engine is recognised by its names, old and new ones. Times are seconds, memory is bytes,
    parts of a whole are 0-1. Ranks that repeat one another count once, data-parallel engines are
    summed, and of their KV use it is the mean. Totals are since the server began; so are p50 and
    p95. A number that cannot be believed (NaN, negative, 2^64-1) is absent, and never 0.

    \b
      tidegate signals parse http://10.0.0.7:8000/metrics
      kubectl exec POD -- curl -s localhost:8000/metrics | tidegate signals parse -
      tidegate signals parse page.txt --json | jq .readings.queue_depth

    Exit code 0: read, even if nothing of interest is in it; 2: it is no metrics page, or of an
    engine that is not known.
    """
    if engine not in (AUTO, *KEYS):
        permitted = (AUTO, *KEYS)
        raise BadInput(
            f"--engine {engine}: no such engine{nearest(engine, permitted)}"
            f" (one of {', '.join(permitted)})"
        )
    name = "standard input" if source == "-" else source
    said = told(_text(source, name=name), key=engine)
    if isinstance(said, NoReading):
        raise BadInput(f"{name}: {said.why}")
    if as_json:
        sys.stdout.buffer.write(_json(said) + b"\n")
        return
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    for table in tables(said):
        console.print(table)


def _text(source: str, *, name: str) -> str:
    body = _body(source)
    if len(body) > SCRAPE_MAX_BYTES:
        raise BadInput(
            f"{name}: more than {SCRAPE_MAX_BYTES // _MIB} MiB; no page of metrics that a server"
            " is asked for is that long"
        )
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise BadInput(f"{name}: not text (UTF-8), and so no page of metrics") from None


def _body(source: str) -> bytes:
    """At most one byte more than what is permitted."""
    if source == "-":
        return sys.stdin.buffer.read(SCRAPE_MAX_BYTES + 1)
    if source.startswith(("http://", "https://")):
        return _fetched(source)
    try:
        with Path(source).open("rb") as opened:
            return opened.read(SCRAPE_MAX_BYTES + 1)
    except (OSError, ValueError) as trouble:  # ValueError: a zero byte in the name
        why = getattr(trouble, "strerror", None) or str(trouble)
        raise BadInput(
            f"{source}: cannot be read: {why} (a file, a URL that begins with http:// or https://,"
            " or - for standard input)"
        ) from None


def _fetched(url: str) -> bytes:
    until_s = time.monotonic() + PATIENCE_S
    body = bytearray()
    try:
        with httpx.stream("GET", url, timeout=PATIENCE_S, headers=_HEADERS) as answer:
            if answer.status_code != httpx.codes.OK:
                raise BadInput(f"{url}: answered {answer.status_code}; is the path right?")
            for piece in answer.iter_bytes(64 * 1024):
                body += piece
                if len(body) > SCRAPE_MAX_BYTES:
                    break
                if time.monotonic() > until_s:
                    raise BadInput(f"{url}: was not answered within {PATIENCE_S:g}s")
    except httpx.TimeoutException:
        raise BadInput(f"{url}: was not answered within {PATIENCE_S:g}s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as trouble:
        why = str(trouble) or type(trouble).__name__
        raise BadInput(f"{url}: cannot be asked: {why}") from None
    return bytes(body)


def _json(said: Told) -> bytes:
    return orjson.dumps(
        {
            "engine": said.engine,
            "readings": {name: _number(value) for name, value in said.readings.items()},
            "histograms": {str(name): _times(times) for name, times in said.histograms.items()},
            "absent": dict(said.absent),
            "devices": [document(device) for device in said.devices],
        },
        option=orjson.OPT_INDENT_2,
    )


def _times(times: Distribution) -> dict[str, float | None]:
    return {
        "count": _number(times.count),
        "sum": times.sum_s,
        "p50": times.p50_s,
        "p95": times.p95_s,
    }


def _number(value: float) -> float:
    return int(value) if value.is_integer() else value


def tables(said: Told) -> Iterator[Table]:
    """What a person reads: what is told, then why the rest is not, then the GPUs."""
    if said.readings or said.histograms:
        yield _readings(said)
    if said.absent:
        yield _absent(said)
    if said.devices:
        yield _devices(said.devices)


def _readings(said: Told) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"{said.name} tells", title_justify="left")
    for column in ("", "value", "count", "mean", "p50", "p95"):
        table.add_column(column, justify="left" if not column else "right")
    values = {**said.readings, **said.capacities}
    for name in (*READINGS, *said.capacities):
        if (value := values.get(name)) is not None:
            table.add_row(name, f"{value:.3g}" if name.endswith("_ratio") else f"{value:,.10g}")
    for time_name, times in said.histograms.items():
        mean = times.sum_s / times.count if times.count else None
        spans = (mean, times.p50_s, times.p95_s)
        table.add_row(time_name, "", f"{times.count:,.10g}", *(_span(span) for span in spans))
    return table


def _span(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3g}"


def _absent(said: Told) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Absent, which is not 0", title_justify="left")
    table.add_column("")
    table.add_column("why", overflow="fold")
    names_of: dict[str, list[str]] = {}
    for name, why in said.absent.items():
        names_of.setdefault(why, []).append(name)
    for why, names in names_of.items():
        table.add_row(", ".join(names), Text(why))
    return table


def _devices(devices: tuple[Device, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="GPUs", title_justify="left")
    for column in ("uuid", "MIG", "pod", "used", "active", "memory", "W", "C"):
        table.add_column(column, justify="left" if column in ("uuid", "MIG", "pod") else "right")
    for device in devices:
        mig = f"{device.mig_profile or ''} {device.mig_id or ''}".strip()
        pod = "/".join(part for part in (device.namespace, device.pod) if part)
        table.add_row(
            Text(device.uuid),
            Text(mig or "-"),
            Text(pod or "-"),
            _shown(device.utilization_ratio, "{:.0%}"),
            _shown(device.engine_active_ratio, "{:.0%}"),
            f"{_gib(device.memory_used_bytes)} of {_gib(device.memory_total_bytes)} GiB",
            _shown(device.power_w, "{:.0f}"),
            _shown(device.temperature_c, "{:.0f}"),
        )
    return table


def _gib(count_bytes: int | None) -> str:
    return "-" if count_bytes is None else f"{count_bytes / 1024**3:.1f}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
