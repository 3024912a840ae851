"""The routes of the page's trainings."""

import secrets
import time
from pathlib import Path

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from anyecg.app.server_guard import HEADERS
from anyecg.app.server_requests import Refused, read_json, text_of, whole_of
from anyecg.app.trainings import LABELS, RECORDINGS, START, Trainings, config_text, leads_of, look

# A report has scripts of its own: it runs apart from the page, without its token, its storage or any network.
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
)
_TICKET_SECONDS, _MOST_COMPARED, _MOST_EPOCHS = 60, 6, 10_000


class TrainingRoutes:
    """What the page asks of trainings; paths are the user's own, on the user's own machine.

    Parameters
    ----------
    server : anyecg.app.server.Server
    runs : Path
    """

    def __init__(self, server, runs):
        self._server, self._runs = server, Trainings(runs)
        self._tickets: dict[str, tuple[str, float]] = {}

    def routes(self):
        """Return all routes."""
        return [
            Route("/api/trainings", self.list, methods=["GET"]),
            Route("/api/trainings", self.start, methods=["POST"]),
            Route("/api/trainings/look", self.look, methods=["POST"]),
            Route("/api/trainings/config", self.config, methods=["POST"]),
            Route("/api/trainings/compare", self.compare, methods=["POST"]),
            Route("/api/trainings/{name}", self.details),
            Route("/api/trainings/{name}/stop", self.stop, methods=["POST"]),
            Route("/api/trainings/{name}/resume", self.resume, methods=["POST"]),
            Route("/api/trainings/{name}/report", self.ticket, methods=["POST"]),
            Route("/report/{ticket}", self.report),
        ]

    async def list(self, _):
        """List all runs, and the folder that was given to the server."""
        runs = await self._server.read(self._runs.listed)
        folder = self._server.folder
        return JSONResponse({"runs": runs, "below": str(self._runs.runs), "folder": str(folder) if folder else ""})

    async def look(self, request):
        """Count what recordings and labels would make."""
        wish = await read_json(request)
        path = self._uploaded(wish, RECORDINGS) or _absolute(text_of(wish, "path"))
        labels = self._uploaded(wish, "labels_file") or _absolute(text_of(wish, "labels"))
        card, leads = await self._card(wish), leads_of(text_of(wish, "lead"))
        if card is not None:
            leads = [lead for lead in card["leads"] if lead != "first"]
        said = self._server.library.shared(path)
        return JSONResponse(await self._server.read(_look, path, labels, wish, said, leads))

    async def _card(self, wish):
        """Return the card of the model to start from, None where there is none."""
        if not wish.get("start"):
            return None
        return await self._server.compute(self._server.models.describe, text_of(wish, "start"))

    def _uploaded(self, wish, name):
        """Return the folder of dropped recordings, or the one file of a batch; None where no batch is named."""
        batch = wish.get(name)
        if batch is None:
            return None
        folder = self._server.batch_folder(batch)
        if name == RECORDINGS:
            return folder
        files = [path for path in folder.rglob("*") if path.is_file()]
        if len(files) != 1:
            raise Refused(422, f"{len(files)} files as labels; wanted one CSV")
        return files[0]

    async def config(self, request):
        """Make the config of the page's choices."""
        wish = await read_json(request)
        card, weights = await self._card(wish), ""
        if card is not None:
            start = self._server.models.path(wish["start"])
            weights = START if start.is_file() else str(start.resolve())
        path = self._uploaded(wish, RECORDINGS) or _absolute(text_of(wish, "path"))
        chosen = {
            "said": self._server.library.shared(path),
            **{name: text_of(wish, name) for name in ("model", "train", "head", "lead")},
            **{name: whole_of(wish, name) for name in ("seed", "epochs", "batch_size")},
            **{name: _share(wish, name) for name in ("val_fraction", "test_fraction", "learning_rate")},
            "path": RECORDINGS if wish.get(RECORDINGS) else path,
            "labels": LABELS if wish.get("labels_file") else _absolute(text_of(wish, "labels")),
        }
        return JSONResponse({"config": config_text(chosen, card, weights)})

    async def start(self, request):
        """Start a run of a config."""
        wish = await read_json(request)
        uploads = {RECORDINGS: self._uploaded(wish, RECORDINGS), LABELS: self._uploaded(wish, "labels_file")}
        if wish.get("start"):
            # An imported model lies where the server's end removes it.
            path = self._server.models.path(text_of(wish, "start"))
            uploads[START] = path if path.is_file() else None
        uploads = {name: path for name, path in uploads.items() if path is not None}
        await self._server.read(self._runs.start, text_of(wish, "name"), text_of(wish, "config"), uploads)
        return JSONResponse({"name": wish["name"]})

    async def details(self, request):
        """Give state, config, results and what is new in the journal of a run."""
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) < 16):
            raise Refused(400, "wanted a number")
        return JSONResponse(await self._server.read(self._runs.details, request.path_params["name"], int(after)))

    async def stop(self, request):
        """Ask a run to save and end."""
        await self._server.read(self._runs.stop, request.path_params["name"])
        return JSONResponse({})

    async def resume(self, request):
        """Let a run go on."""
        await self._server.read(self._runs.resume, request.path_params["name"])
        return JSONResponse({})

    async def compare(self, request):
        """Lay runs side by side."""
        names = (await read_json(request)).get("names")
        if not isinstance(names, list) or not 2 <= len(names) <= _MOST_COMPARED:
            raise Refused(400, f"wanted 2 to {_MOST_COMPARED} runs")
        out = self._server.private / f"{secrets.token_hex(8)}.csv"
        return JSONResponse(await self._server.compute(self._runs.compared, [str(name) for name in names], out))

    async def ticket(self, request):
        """Give the address at which a report can be opened once: a tab of its own sends no token."""
        name = request.path_params["name"]
        await self._server.read(self._runs.folder, name)
        now = time.monotonic()
        self._tickets = {key: found for key, found in self._tickets.items() if found[1] > now}
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = (name, now + _TICKET_SECONDS)
        return JSONResponse({"path": f"/report/{ticket}"})

    async def report(self, request):
        """Show a report."""
        name, until = self._tickets.pop(request.path_params["ticket"], ("", 0.0))
        if until <= time.monotonic():
            raise Refused(404, "this address was good once, for a minute; open the report from the page again")
        data = await self._server.read(self._runs.report, name)
        headers = {key.decode(): value.decode() for key, value in HEADERS.items()}
        headers |= {"content-type": "text/html; charset=utf-8", "content-security-policy": REPORT_POLICY}
        return Response(data, headers=headers)


def _look(path, labels, wish, said, leads):
    return look(
        path, labels, seed=whole_of(wish, "seed"), val_fraction=_share(wish, "val_fraction"),
        test_fraction=_share(wish, "test_fraction"), said=said, leads=leads,
    )  # fmt: skip


def _share(wish, name):
    value = wish.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10:
        raise Refused(400, f"wanted '{name}' as a number")
    return float(value)


def _absolute(text):
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise Refused(422, f"{text[:200]!r}: wanted a whole path, from / or ~ on")
    return str(path)
