"""Whom a call is meant for, and whose page makes it: a page of another site may not use a browser's way to the api.

A browser sends `Host`, the name in its address bar: that of another site, when the DNS of that site gives our address.
It sends `Origin` and `Sec-Fetch-Site`: whose page calls. Programs send neither, and pass. All calls are looked at
before they are routed, WebSockets too, which browsers let any page open.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from starlette.types import Scope

from service.errors import ForeignHost, ForeignOrigin, RequestError

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_PORTS: Final = {"http": ":80", "https": ":443"}
_SHOWN: Final = 100


class Names:
    """What the api may be called by, and by whose pages. `host`: the address it listens on."""

    def __init__(self, host: str = "127.0.0.1", hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._hosts = {_canonical(name) for name in (*LOOPBACK, host, *hosts)}
        self._any = "*" in self._hosts
        self._origins = {_without_port(origin) for origin in origins}

    def check(self, scope: Scope) -> None:
        """Raises RequestError, ForeignHost, ForeignOrigin."""
        headers = _headers(scope, (b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode"))
        host = self._check_host(scope, headers[b"host"])
        self._check_origin(scope, host, headers)

    def _check_host(self, scope: Scope, given: list[str]) -> str:
        if len(given) != 1 or not given[0]:
            if not given and scope.get("http_version") == "1.0":
                return ""
            found = "an empty one" if given == [""] else len(given) or "none"
            raise RequestError(f"expected one header Host, found {found}")
        host = given[0].lower()
        if not self._any and host not in self._hosts and (name := _name(host)) not in self._hosts:
            server = scope.get("server")  # an address cannot be given to another site's name
            if server is None or name != _canonical(server[0]):
                raise ForeignHost(
                    f"Host {given[0][:_SHOWN]!r} is not a name of this server: expected its address, or a name in the "
                    "setting allowed_hosts"
                )
        return host

    def _check_origin(self, scope: Scope, host: str, headers: dict[bytes, list[str]]) -> None:
        for origin in headers[b"origin"]:
            scheme, separator, name = origin.lower().partition("://")
            own = (
                separator
                and scheme in _PORTS
                and host
                and name.removesuffix(_PORTS[scheme]) == host.removesuffix(_PORTS[scheme])
            )
            if not own and _without_port(origin) not in self._origins:
                raise ForeignOrigin(
                    f"Origin {origin[:_SHOWN]!r}: pages of other sites may not call this server; expected none, "
                    f"that of {host[:_SHOWN]!r}, or one in the setting allowed_origins"
                )
        if headers[b"origin"]:
            return
        site = headers[b"sec-fetch-site"]
        if any(one not in ("same-origin", "none") for one in site) and not _follows_a_link(scope, headers):
            raise ForeignOrigin(f"Sec-Fetch-Site {site[0][:_SHOWN]!r}: pages of other sites may not call this server")


def _follows_a_link(scope: Scope, headers: dict[bytes, list[str]]) -> bool:
    """A page is opened, as by a link: that shows it to the user alone."""
    return scope.get("method") in ("GET", "HEAD") and headers[b"sec-fetch-mode"] == ["navigate"]


def _headers(scope: Scope, names: Iterable[bytes]) -> dict[bytes, list[str]]:
    found: dict[bytes, list[str]] = {name: [] for name in names}
    for name, value in scope["headers"]:
        if name in found:
            found[name].append(value.decode("latin-1").strip())
    return found


def _name(host: str) -> str:
    """Without its port.

    >>> _name("api:8000"), _name("[::1]:8000"), _name("[::1]"), _name("api:x")
    ('api', '::1', '::1', 'api:x')
    """
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal():
        name = host
    return _canonical(name)


def _canonical(name: str) -> str:
    """
    >>> _canonical("[::1]"), _canonical("Api.Example.org."), _canonical("::ffff:172.18.0.5")
    ('::1', 'api.example.org', '172.18.0.5')
    """
    name = name.strip().lower()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    return name.removesuffix(".").removeprefix("::ffff:")


def _without_port(origin: str) -> str:
    """Without the port that its scheme implies.

    >>> _without_port("https://Example.org:443"), _without_port("http://example.org:443")
    ('https://example.org', 'http://example.org:443')
    """
    origin = origin.strip().lower()
    return origin.removesuffix(_PORTS.get(origin.partition("://")[0], "\\n"))
