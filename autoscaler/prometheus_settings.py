# SPDX-License-Identifier: Apache-2.0
"""`[prometheus]` of both config files: which Prometheus is asked, how, and as whom.

Secrets stand in files of their own, which are read anew for every query; the config file names
them. Without `url` none is asked.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from autoscaler.config_table import FileKey, Table, between_s
from autoscaler.text import DURATION, Unreadable

SECTION: Final = "prometheus"
URL: Final = "http:// or https://, a host, and the path before /api where there is one"
A_FILE: Final = "a file that can be read"


@dataclass(frozen=True, slots=True)
class PrometheusSettings:
    """`[prometheus]`. At most one of `bearer_token_file` and `username` is set."""

    url: str
    refresh_s: float = 5.0  # from the end of one round of queries to the next
    timeout_s: float = 5.0  # for one query
    window_s: float = 60.0  # what rates are the mean of
    stale_after_s: float = 90.0  # of the newest sample, by Prometheus' own clock
    bearer_token_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure_skip_verify: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


PROMETHEUS_KEYS: Final[tuple[FileKey, ...]] = (
    FileKey(SECTION, "url", URL,
            "the Prometheus, Thanos or Mimir that is asked for signals, such as "
            "http://mimir:8080/prometheus", "none is asked"),
    FileKey(SECTION, "refresh", DURATION + ", from 1s to 1m", "time between two rounds of queries",
            "5s"),
    FileKey(SECTION, "timeout", DURATION + ", from 100ms to 30s", "how long one query may take",
            "5s"),
    FileKey(SECTION, "window", DURATION + ", from 10s to 1h",
            "rates are means over this time; make it four times the scrape interval", "1m"),
    FileKey(SECTION, "stale-after", DURATION + ", from 5s to 5m",
            "a sample older than this is no reading; make it longer than the scrape interval",
            "90s"),
    FileKey(SECTION, "bearer-token-file", A_FILE, "holds the token to log in with", "none"),
    FileKey(SECTION, "username", "a name", "to log in with, by a password", "none"),
    FileKey(SECTION, "password-file", A_FILE, "holds the password of `username`", "none"),
    FileKey(SECTION, "ca-file", A_FILE, "certificates that the server's is checked with",
            "those of the certifi package"),
    FileKey(SECTION, "cert-file", A_FILE, "our certificate, for mutual TLS", "none"),
    FileKey(SECTION, "key-file", A_FILE, "the key of `cert-file`", "none"),
    FileKey(SECTION, "insecure-skip-verify", "true, false",
            "do not check the server's certificate", "false"),
    FileKey(SECTION, "headers", "a table NAME = TEXT",
            'sent with every query, such as X-Scope-OrgID = "team" for a tenant', "none"),
)  # fmt: skip


def take_prometheus(table: Table, base: Path) -> PrometheusSettings | None:
    """The section's settings, None without any; what is wrong is noted in `table.problems`.

    Relative paths are relative to `base`.
    """
    if not table.values:
        return None
    permitted = {key.name: key.permitted for key in PROMETHEUS_KEYS}
    written = set(table.values)
    before = len(table.problems)
    fields = {
        name: table.take(key, None, read, permitted[key])
        for key, (name, read) in _readers(base).items()
        if key in written
    }
    table.refuse_rest(list(permitted))
    if len(table.problems) == before:
        table.problems += [table.where + problem for problem in _contradictions(written, fields)]
    return PrometheusSettings(**fields) if len(table.problems) == before else None


def _contradictions(written: set[str], fields: Mapping[str, Any]) -> list[str]:
    problems = []
    if "url" not in written:
        problems.append(f"url: missing; permitted: {URL}")
    for one, other in (("username", "password-file"), ("cert-file", "key-file")):
        if (one in written) != (other in written):
            lacking = other if one in written else one
            problems.append(f"{lacking}: missing; give {one} and {other} together, or neither")
    logins = {"bearer-token-file", "username"} & written
    if any(name.lower() == "authorization" for name in fields.get("headers", ())):
        logins.add("headers.Authorization")
    if len(logins) > 1:
        problems.append(f"{min(logins)}: stands beside {max(logins)}; log in by one of the two")
    if fields.get("insecure_skip_verify") and "ca-file" in written:
        problems.append("ca-file: is of no use with insecure-skip-verify; give one of the two")
    return problems


def _readers(base: Path) -> Mapping[str, tuple[str, Callable[[object], Any]]]:
    """By key: the field, and who reads it."""

    def file(value: object) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise Unreadable
        path = base / value
        try:
            path.open("rb").close()
        except OSError as trouble:
            raise Unreadable(f"{path}: {trouble.strerror}") from None
        return path

    return {
        "url": ("url", _url),
        "refresh": ("refresh_s", between_s(1.0, 60.0)),
        "timeout": ("timeout_s", between_s(0.1, 30.0)),
        "window": ("window_s", between_s(10.0, 3600.0)),
        "stale-after": ("stale_after_s", between_s(5.0, 300.0)),
        "bearer-token-file": ("bearer_token_file", file),
        "username": ("username", _name),
        "password-file": ("password_file", file),
        "ca-file": ("ca_file", file),
        "cert-file": ("cert_file", file),
        "key-file": ("key_file", file),
        "insecure-skip-verify": ("insecure_skip_verify", _flag),
        "headers": ("headers", _headers),
    }


def _url(value: object) -> str:
    if not isinstance(value, str) or re.search(r"[\s\x00-\x1f]", value):
        raise Unreadable
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as why:
        raise Unreadable(str(why)) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise Unreadable
    if parts.username is not None:
        raise Unreadable("a login does not stand in the URL: use username and password-file")
    if parts.query or parts.fragment:
        raise Unreadable("nothing may follow the path")
    path = parts.path.rstrip("/")
    if path.endswith(("/api/v1", "/api/v1/query")):
        raise Unreadable("leave out the path from /api on, it is added")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _name(value: object) -> str:
    if not isinstance(value, str) or not value or ":" in value or not value.isprintable():
        raise Unreadable
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unreadable
    return value


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Unreadable
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise Unreadable(f"{name!r} is no name of a header")
        if not isinstance(text, str) or not text.isprintable() or text != text.strip():
            raise Unreadable(f"the header {name} is no text of one line")
        if not text.isascii():
            raise Unreadable(f"the header {name} has other than ASCII characters")
    return dict(value)
