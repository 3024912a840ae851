"""What the page's server lets in: its own page with its token, from this machine, in bounded time and memory."""

import asyncio
import hmac
from collections import OrderedDict
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# A request must be there, whole but for its body, within this time; so many connections may be at that at once.
SECONDS_TO_ASK, MOST_ASKING = 5.0, 64
MOST_HEADER_BYTES = 16_384
TOKEN_HEADER = b"x-anyecg-token"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}


class PatientProtocol(H11Protocol):
    """HTTP that waits for a request's head for a limited time, from a limited number of connections.

    Where more are at it, the one that has waited longest is closed: who sends slowly cannot keep others out.
    """

    _asking: ClassVar[OrderedDict] = OrderedDict()

    def connection_made(self, transport):
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data):
        """Take what came; wait on where it is only part of a request's head."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._end_wait()

    def connection_lost(self, exc):
        """Forget the connection."""
        self._end_wait()
        super().connection_lost(exc)

    def _wait(self):
        if self in self._asking:
            return
        self._asking[self] = self.loop.call_later(SECONDS_TO_ASK, self.transport.abort)
        if len(self._asking) > MOST_ASKING:
            oldest = next(iter(self._asking))
            oldest._end_wait()
            oldest.transport.abort()

    def _end_wait(self):
        timer = self._asking.pop(self, None)
        if timer is not None:
            timer.cancel()


class Guard:
    """The outermost layer: checks Host, Origin and token before anything else, and sets the headers of every answer.

    Parameters
    ----------
    app : ASGI application
    token : str
    port : int
    """

    def __init__(self, app, token, port):
        self._app, self._token = app, token.encode()
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}

    async def __call__(self, scope, receive, send):
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def send_guarded(message):
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = {**HEADERS, b"content-security-policy": POLICY.encode()}
                pairs = [(name, value) for name, value in more.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *pairs]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        body = refusal[1].encode()
        # Closed at once: what the body of a refused request holds is never read.
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await send_guarded({"type": "http.response.start", "status": refusal[0], "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope):
        """Return status and reason where a request is refused, None where it may pass."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        hosts, origins = headers.get(b"host", []), headers.get(b"origin", [])
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return 421, "wanted the address that 'anyecg serve' has printed, by that name"
        if any(origin != b"http://" + hosts[0] for origin in origins):
            return 403, "asked for by another page"
        if headers.get(b"sec-fetch-site", [b"same-origin"])[0] not in (b"same-origin", b"none"):
            return 403, "asked for by another page"
        if scope["path"].startswith("/api/"):
            tokens = headers.get(TOKEN_HEADER, [])
            if len(tokens) != 1 or not hmac.compare_digest(tokens[0], self._token):
                return 403, "no token, or another one; open the address that 'anyecg serve' has printed"
        elif scope["method"] not in ("GET", "HEAD"):
            return 405, "wanted GET"
        return None


class TooSlow(Exception):
    """A body that comes more slowly than any working page sends it."""


class TooLarge(Exception):
    """A body beyond its limit."""


async def chunks_of(request, *, limit, seconds=10.0, bytes_per_second=65_536):
    """Yield the body of a request.

    Raises
    ------
    TooLarge
        More than ``limit`` bytes, announced or sent.
    TooSlow
        A wait of ``seconds`` for the next part, or fewer bytes than that rate after it.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > limit:
        raise TooLarge
    start, n_bytes = asyncio.get_running_loop().time(), 0
    stream = request.stream()
    while True:
        try:
            part = await asyncio.wait_for(anext(stream, None), seconds)
        except TimeoutError:
            raise TooSlow from None
        if part is None:
            return
        n_bytes += len(part)
        if n_bytes > limit:
            raise TooLarge
        if asyncio.get_running_loop().time() - start > seconds + n_bytes / bytes_per_second:
            raise TooSlow
        yield part
