"""``anyecg serve``: start the local page on the loopback address, and leave nothing behind."""

import asyncio
import fcntl
import html
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import webbrowser
from contextlib import contextmanager, suppress
from pathlib import Path

from anyecg.loaders.errors import AnyECGError

PREFIX = "anyecg-serve-"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Ended(BaseException):
    """A signal has come while the server was not running yet, or no longer."""


def _end(*_):
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise _Ended


@contextmanager
def _on_signals(handler):
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def private_folder():
    """Make a folder of this user alone for uploads, and remove it at the end.

    What a killed server left there is removed by the next one: it tells by the lock that dies with its process.
    """
    base = Path(tempfile.gettempdir())
    for left in base.glob(f"{PREFIX}*"):
        _remove_left(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = (folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _remove_left(folder):
    with suppress(OSError):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        with (folder / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _listen(port):
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except (OSError, OverflowError) as cause:
        listener.close()
        raise AnyECGError(f"port {port} of 127.0.0.1 cannot be had ({cause}); give another one, or --port 0") from None
    return listener


def _open_browser(address, private):
    """Open the page by way of a private file: other users of the machine see the arguments of a browser."""
    page = private / "open.html"
    page.write_text(f'<meta http-equiv="refresh" content="0; url={html.escape(address)}">', encoding="utf-8")
    threading.Thread(target=webbrowser.open, args=(page.as_uri(),), daemon=True).start()


def _warm():
    """Compile, or load, the kernels that the first picture needs, while the browser starts."""
    import numpy as np

    from anyecg.kernels.beats import heart_features, r_peaks
    from anyecg.kernels.extremes import extremes, halved
    from anyecg.kernels.segment import fill_gaps, quality_at

    signal_T = np.zeros(1024, np.float32)
    halved(extremes(signal_T, 64))
    r_peaks(signal_T, 250)
    heart_features(signal_T[None], 250)
    fill_gaps(signal_T, fs=250)
    quality_at(signal_T, [0], 1024, fs=250)


def serve(*, runs, port=0, browser=True, folder=None, upload_mb=4096):
    """Serve the page until Ctrl-C, SIGTERM or SIGHUP; return the exit code.

    Parameters
    ----------
    port : int
        0 takes any free one.
    browser : bool
        Whether to open the page in a browser.
    folder : path, optional
        Of recordings to show from the start.
    runs : path
        Folder of run folders, whose models can be chosen, and where new ones are made.
    upload_mb : int
        Most that all uploads may hold together.

    Raises
    ------
    AnyECGError
        No such folder, no such port.
    """
    if folder is not None:
        folder = Path(folder).resolve()
        if not folder.is_dir():
            raise AnyECGError(f"{folder}: no such folder; give one of recordings as --folder")
    if upload_mb < 1:
        raise AnyECGError(f"--upload-mb {upload_mb}; wanted 1 or more")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    is_computing = False
    with suppress(_Ended), _on_signals(_end), _listen(port) as listener, private_folder() as private:
        options = {"most_bytes": upload_mb << 20, "folder": folder, "runs": Path(runs).resolve()}
        is_computing = _run(listener, private, browser=browser, options=options)
    if is_computing:
        # A prediction of minutes cannot be interrupted, and nobody waits for it any more.
        os._exit(0)
    return 0


def _run(listener, private, *, browser, options):
    """Serve until a signal comes; return whether a prediction is still under way."""
    import uvicorn

    from anyecg.app.server import Server, make_app
    from anyecg.app.server_guard import MOST_HEADER_BYTES, PatientProtocol

    class Quiet(uvicorn.Server):
        """Ends in order by a signal, so that the private folder is removed; uvicorn would raise it again."""

        @contextmanager
        def capture_signals(self):
            with _on_signals(self.handle_exit):
                yield

    port, token = listener.getsockname()[1], secrets.token_urlsafe(32)
    server = Server(private, **options)
    config = uvicorn.Config(
        make_app(server, token=token, port=port), http=PatientProtocol, ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, date_header=False, proxy_headers=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=2, limit_concurrency=256, h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )  # fmt: skip
    # What a stranger sends is no news; uvicorn warns of every malformed request.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    address = f"http://127.0.0.1:{port}/#{token}"
    threading.Thread(target=_warm, daemon=True).start()
    try:
        print(f"AnyECG-Lab is at {address} (this machine alone; Ctrl-C ends it)", flush=True)
        if browser:
            _open_browser(address, private)
        asyncio.run(Quiet(config).serve(sockets=[listener]))
    finally:
        server.close()
    return server.is_scoring
