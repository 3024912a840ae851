"""What the routes of the page share: refusals, and the JSON that a request carries."""

import json

from anyecg.app.server_guard import chunks_of
from anyecg.loaders.errors import AnyECGError

_MOST_JSON = 262_144


class Refused(AnyECGError):
    """A request that is not carried out; ``status`` is the answer's."""

    def __init__(self, status, said):
        super().__init__(said)
        self.status = status


def text_of(wish, name):
    """Return a text of the JSON that a request carries."""
    if not isinstance(wish.get(name), str):
        raise Refused(400, f"wanted '{name}' as text")
    return wish[name]


def whole_of(wish, name):
    """Return a whole number of it, from 0 on."""
    value = wish.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise Refused(400, f"wanted '{name}' as a whole number")
    return value


async def read_json(request):
    """Return the JSON object that a request carries."""
    data = b"".join([part async for part in chunks_of(request, limit=_MOST_JSON)])
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise Refused(400, "wanted JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "wanted a JSON object")
    return found
