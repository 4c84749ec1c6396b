# SPDX-License-Identifier: Apache-2.0
"""Every route has a port of its own, and keeps it."""

import pytest

from autoscaler.adapters.kubernetes.ports import COUNT, FIRST, PortsOfRoutes
from autoscaler.errors import GiveUp


def test_no_two_routes_share_a_port_and_none_changes_its_own() -> None:
    """The port is all that says whom a request is for."""
    ports = PortsOfRoutes()
    names = [f"ns/service-{n}:http" for n in range(3000)]
    given = {name: ports.of(name) for name in names}
    assert len(set(given.values())) == len(names)
    assert all(FIRST <= port < FIRST + COUNT for port in given.values())
    assert {name: ports.of(name) for name in names} == given


def test_a_port_that_a_slice_names_is_kept_after_a_restart() -> None:
    """Connections that were made under the last controller still arrive there."""
    ports = PortsOfRoutes()
    ports.keep("ns/iris:http", FIRST + 17)
    assert ports.of("ns/iris:http") == FIRST + 17


def test_a_port_is_not_taken_from_another_route() -> None:
    """Two slices that name one port cannot both be right."""
    ports = PortsOfRoutes()
    ports.keep("ns/iris:http", FIRST)
    ports.keep("ns/other:http", FIRST)
    assert ports.of("ns/iris:http") == FIRST
    assert ports.of("ns/other:http") != FIRST


def test_when_all_ports_are_taken_it_says_so() -> None:
    """An error that names the limit and the remedy, never a port twice."""
    ports = PortsOfRoutes()
    for n in range(COUNT):
        ports.of(f"ns/service-{n}:http")
    with pytest.raises(GiveUp, match="no port is left"):
        ports.of("ns/one-more:http")
