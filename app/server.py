"""The routes of the page: static files, uploads, recordings."""

import asyncio
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from anyecg.app.server_guard import Guard, TooLarge, TooSlow, chunks_of
from anyecg.app.server_models import Models
from anyecg.app.server_progress import Watch, lines, said_of
from anyecg.app.server_records import Library, NotThere, refused
from anyecg.app.server_requests import Refused, read_json, text_of, whole_of
from anyecg.app.server_training import TrainingRoutes
from anyecg.loaders.errors import AnyECGError, Unsaid
from anyecg.loaders.lead_names import plain_options
from anyecg.loaders.wfdb_header import MAX_LEADS

_KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Uploads at a time, predictions that wait, files of a batch, length of a file's path, and what stays free on the disk.
_UPLOADS, _COMPUTING, _MOST_FILES, _MOST_NAME, _FREE_BYTES = 4, 8, 100_000, 400, 1 << 30


def safe_path(folder, name):
    """Return where a file of that name lies below a folder.

    Raises
    ------
    Refused
        A name that is absolute, climbs, is hidden, or holds what no file's name holds.
    """
    parts = name.split("/")
    for part in parts:
        if not part or part.startswith(".") or "\\" in part or ":" in part or not part.isprintable():
            raise Refused(400, "a file's name may hold no '..', no hidden part, no backslash and no colon")
    if len(name.encode()) > _MOST_NAME or len(parts) > 16:
        raise Refused(400, "a file's name is too long")
    return Path(folder).joinpath(*parts)


class Server:
    """What the routes share: the recordings, the private folder of uploads, and the threads that read and compute.

    Parameters
    ----------
    private : Path
        Folder for this process alone; its owner removes it.
    most_bytes : int
        Of all uploads together.
    folder : Path, optional
        Of recordings to show from the start.
    runs : Path
        Folder of run folders, whose models can be chosen, and where new ones are made.
    """

    def __init__(self, private, *, most_bytes, runs, folder=None):
        self.private, self.most_bytes, self.n_bytes = private, most_bytes, 0
        self.library = Library()
        self.models = Models(private, runs)
        self.trainings = TrainingRoutes(self, runs)
        self._readers, self._scorer = ThreadPoolExecutor(4, "reader"), ThreadPoolExecutor(1, "scorer")
        self.n_computing, self.is_scoring = 0, False
        self._batches: dict[str, int] = {}
        self._made: dict[str, Path] = {}
        self._uploading = 0
        self.folder = folder

    async def read(self, work, *arguments):
        """Return what ``work`` returns, carried out by one of four threads."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *arguments)

    async def compute(self, work, *arguments):
        """Return what ``work`` returns; one such work is done at a time, and looking at ECGs goes on beside it."""
        if self.n_computing >= _COMPUTING:
            raise Refused(503, f"{_COMPUTING} predictions are under way; wait for one to end")
        self.n_computing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._scorer, self._scored, work, *arguments)
        finally:
            self.n_computing -= 1

    def _scored(self, work, *arguments):
        self.is_scoring = True
        try:
            return work(*arguments)
        finally:
            self.is_scoring = False

    def watched(self, work, *arguments):
        """Return the answer that tells how far ``work`` is until it is done; ``work`` ends when nobody reads it."""
        watch = Watch()
        told = lines(lambda: self.compute(partial(work, *arguments, watch=watch)), watch)
        return StreamingResponse(told, media_type="application/x-ndjson")

    def close(self):
        """Let no further work begin."""
        for threads in (self._readers, self._scorer):
            threads.shutdown(wait=False, cancel_futures=True)

    def routes(self):
        """Return all routes."""
        return [
            *(Route(path, _static(data, kind)) for path, (data, kind) in _pages().items()),
            Route("/api/records", self.records),
            Route("/api/records/{key}", self.record),
            Route("/api/records/{key}/said", self.say, methods=["POST"]),
            Route("/api/records/{key}/tiles/{level:int}/{index:int}", self.tile),
            Route("/api/records/{key}/windows", self.windows),
            Route("/api/records/{key}/beats", self.beats),
            Route("/api/records/{key}/median", self.median),
            Route("/api/batches", self.new_batch, methods=["POST"]),
            Route("/api/batches/{batch}/files", self.upload, methods=["PUT"]),
            Route("/api/batches/{batch}/records", self.batch_records, methods=["POST"]),
            Route("/api/batches/{batch}/models", self.batch_models, methods=["POST"]),
            Route("/api/models", self.list_models),
            Route("/api/models/{model}", self.model),
            Route("/api/models/{model}/export", self.export),
            Route("/api/models/{model}/folder", self.score_folder, methods=["POST"]),
            Route("/api/made/{name}", self.made),
            Route("/api/records/{key}/scores", self.scores, methods=["POST"]),
            Route("/api/records/{key}/saliency", self.saliency, methods=["POST"]),
            *self.trainings.routes(),
        ]

    async def records(self, _):
        """List all records."""
        if self.folder is not None:
            await self.read(self.library.add, self.folder)
        return JSONResponse(self.library.listed())

    async def record(self, request):
        """Describe one record."""
        return JSONResponse(await self.read(self.library.describe, request.path_params["key"]))

    async def say(self, request):
        """Open a record with what its file does not say."""
        wish = await read_json(request)
        say = partial(self.library.say, others=wish.get("others") is True)
        return JSONResponse(await self.read(say, request.path_params["key"], _said(wish)))

    async def tile(self, request):
        """Give the down-sampled samples of some leads."""
        numbers = [_number(text) for text in request.query_params.get("leads", "").split("-")]
        where = request.path_params
        data = await self.read(self.library.tile, where["key"], numbers, where["level"], where["index"])
        return Response(data, media_type="application/octet-stream")

    async def windows(self, request):
        """Give heart rate and quality of each 10-s window of a lead."""
        lead = _number(request.query_params.get("lead", ""))
        return JSONResponse(await self.read(self.library.windows, request.path_params["key"], lead))

    async def beats(self, request):
        """Give the R peaks of a part of a lead, by its stretches without a gap."""
        return JSONResponse(await self.read(self.library.beats, request.path_params["key"], *_part(request)))

    async def median(self, request):
        """Give the median beat of a part of a record."""
        return JSONResponse(await self.read(self.library.median, request.path_params["key"], *_part(request)))

    async def new_batch(self, _):
        """Begin a batch: files that belong together lie in one folder."""
        key = secrets.token_hex(8)
        (self.private / key).mkdir(mode=0o700)
        self._batches[key] = 0
        return JSONResponse({"batch": key})

    def batch_folder(self, key):
        """Return the folder of a batch."""
        if not isinstance(key, str) or key not in self._batches:
            raise Refused(404, "no such batch")
        return self.private / key

    def _batch(self, request):
        return self.batch_folder(request.path_params["batch"]).name

    async def upload(self, request):
        """Stream one file of a batch into the private folder, whole or not at all."""
        key = self._batch(request)
        if self._uploading >= _UPLOADS:
            raise Refused(503, f"{_UPLOADS} uploads are under way; wait for one to end")
        if self._batches[key] >= _MOST_FILES:
            raise Refused(413, f"more than {_MOST_FILES} files")
        try:
            path = safe_path(self.private / key, unquote(request.headers.get("x-name", ""), errors="replace"))
        except Refused:
            # A browser that is still sending would not read the answer.
            async for _ in chunks_of(request, limit=self.most_bytes - self.n_bytes):
                pass
            raise
        self._uploading += 1
        self._batches[key] += 1
        try:
            n_bytes = await self._stream(request, path)
        finally:
            self._uploading -= 1
        return JSONResponse({"n_bytes": n_bytes})

    async def _stream(self, request, path):
        partial = self.private / f"{secrets.token_hex(8)}.part"
        taken = 0
        try:
            with partial.open("xb") as file:
                async for part in chunks_of(request, limit=self.most_bytes - self.n_bytes):
                    # What others send at the same time counts, too.
                    if self.n_bytes + len(part) > self.most_bytes:
                        raise TooLarge
                    self.n_bytes, taken = self.n_bytes + len(part), taken + len(part)
                    if _free_bytes(self.private) < _FREE_BYTES:
                        raise Refused(507, "the disk is nearly full; set TMPDIR to a folder with room")
                    file.write(part)
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.link(partial, path)
            except OSError:
                raise Refused(409, "a file of that name is there already") from None
        except BaseException:
            self.n_bytes -= taken
            raise
        finally:
            partial.unlink(missing_ok=True)
        return taken

    async def batch_records(self, request):
        """Take in the records of a batch; where there are none, say what its files are."""
        folder = self.private / self._batch(request)
        ids = await self.read(self.library.add, folder)
        return JSONResponse({"ids": ids, "refused": [] if ids else await self.read(refused, folder)})

    async def batch_models(self, request):
        """Take in the models of a batch, each of them checked."""
        return JSONResponse(await self.compute(self.models.take_in, self.private / self._batch(request)))

    async def list_models(self, _):
        """List all models."""
        return JSONResponse(await self.read(self.models.listed))

    async def model(self, request):
        """Open a model and say what it takes, gives, and how well it did."""
        return JSONResponse(await self.compute(self.models.describe, request.path_params["model"]))

    async def export(self, request):
        """Give a model as one file."""
        form = request.query_params.get("format", "")
        data = await self.compute(self.models.export, request.path_params["model"], form)
        return Response(data, media_type="application/octet-stream")

    async def score_folder(self, request):
        """Score the recordings of a batch, or of the server's own folder; the result is the name of the CSV it made."""
        batch = (await read_json(request)).get("batch")
        root = self.folder if batch is None else self.batch_folder(batch)
        if root is None:
            raise Refused(404, "no folder; open one, or start with --folder")
        return self.watched(self._score_folder, _known(self.models, request.path_params["model"]), root)

    def _score_folder(self, model, root, *, watch):
        options = plain_options(**self.library.shared(root))
        path = self.models.score_folder(model, root, options, watch=watch)
        self._made[path.name] = path
        return path.name

    async def made(self, request):
        """Give a file that a computation has made, once."""
        path = self._made.pop(request.path_params["name"], None)
        if path is None:
            raise NotThere("no such file; make it again")
        return FileResponse(path, media_type="text/csv", background=BackgroundTask(path.unlink, missing_ok=True))

    async def scores(self, request):
        """Score one lead of a record."""
        wish = await read_json(request)
        place = self.library.place(request.path_params["key"])
        model, lead = text_of(wish, "model"), whole_of(wish, "lead")
        return self.watched(self.models.score, _known(self.models, model), place, lead)

    async def saliency(self, request):
        """Say what of a window a score rests on."""
        wish = await read_json(request)
        place = self.library.place(request.path_params["key"])
        numbers = [whole_of(wish, name) for name in ("lead", "start_s", "target")]
        return JSONResponse(await self.compute(self.models.saliency, text_of(wish, "model"), place, *numbers))


def _known(models, key):
    models.path(key)
    return key


def _said(wish):
    """Return what a user says of a file of plain numbers, as options of ``open_record``."""
    fs, unit, leads, delimiter, decimal, header = (
        wish.get(name) for name in ("fs", "unit", "leads", "delimiter", "decimal", "header")
    )
    if fs is not None and (isinstance(fs, bool) or not isinstance(fs, (int, float)) or not 0 < fs < 1e6):
        raise Refused(400, "wanted the sampling rate in Hz, above 0")
    if unit not in (None, "nV", "uV", "mV", "V"):
        raise Refused(400, "wanted the unit: nV, uV, mV or V")
    if leads is not None and not (
        isinstance(leads, list) and 0 < len(leads) <= MAX_LEADS
        and all(isinstance(name, str) and 0 < len(name) <= 80 and name.isprintable() for name in leads)
    ):  # fmt: skip
        raise Refused(400, f"wanted names of leads: 1 to {MAX_LEADS}, each of 1 to 80 letters")
    if delimiter not in (None, ",", ";", "\t", " ") or decimal not in (None, ".", ","):
        raise Refused(400, "wanted comma, semicolon, tab or blank between columns, and '.' or ',' as decimal mark")
    if header not in (None, True, False):
        raise Refused(400, "wanted true or false: whether the first line names the columns")
    said = {"fs": fs, "unit": unit, "leads": leads and tuple(leads), "delimiter": delimiter, "decimal": decimal,
            "header": header}  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def _free_bytes(folder):
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _number(text):
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Refused(400, "wanted a number")
    return int(text)


def _part(request):
    return [_number(request.query_params.get(name, "")) for name in ("lead", "start", "stop")]


def _pages():
    """Return the static files, by path; nothing else is ever read from the disk for a path."""
    found = {}
    for file in (files("anyecg.app") / "serve_page").iterdir():
        kind = _KINDS.get(Path(file.name).suffix)
        if kind:
            found["/" if file.name == "index.html" else f"/{file.name}"] = (file.read_bytes(), kind)
    return found


def _static(data, kind):
    async def answer(_):
        return Response(data, headers={"content-type": kind})

    return answer


def _refuse(status, said, **more):
    # The rest of a body is not read, so nothing may follow it.
    return JSONResponse({"error": said, **more}, status, headers={"connection": "close"})


async def _on_error(_, cause):
    if isinstance(cause, TooLarge):
        return _refuse(413, "larger than this server takes; start it with a larger --upload-mb")
    if isinstance(cause, TooSlow):
        return _refuse(408, "sent too slowly")
    if isinstance(cause, NotThere):
        return _refuse(404, str(cause))
    more = {"unsaid": True} if isinstance(cause, Unsaid) else {}
    return _refuse(getattr(cause, "status", 422), str(cause), **more)


async def _on_disconnect(*_):
    return Response(status_code=400)


class _Faults:
    """Answers a fault of ours without telling names: what a message holds may come from a recording."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        try:
            await self._app(scope, receive, send)
        except Exception as cause:
            answer = JSONResponse({"error": said_of(cause)}, 500)
            await answer(scope, receive, send)


def make_app(server, *, token, port):
    """Return the ASGI application: guard, faults, routes."""
    handlers: dict = dict.fromkeys((AnyECGError, TooLarge, TooSlow), _on_error)
    app = Starlette(routes=server.routes(), exception_handlers={**handlers, ClientDisconnect: _on_disconnect})
    return Guard(_Faults(app), token, port)
