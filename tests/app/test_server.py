"""The page's server as it runs: whom it refuses, what it bounds, what it leaves behind, and what it answers."""

import csv
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psutil
import pytest

from anyecg.app.convert import convert
from anyecg.kernels.beats import r_peaks
from anyecg.loaders.records import open_record

from ..conftest import DEMO

RECORD = "A00015"


class Running:
    """A server in a process of its own, and requests to it."""

    def __init__(self, temporary, *arguments):
        self.temporary = temporary
        temporary.mkdir(exist_ok=True)
        self.log = (temporary.parent / f"{temporary.name}.log").open("w+")
        command = [sys.executable, "-m", "anyecg.app.cli", "serve", "--no-browser", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env={**os.environ, "TMPDIR": str(temporary)}
        )
        self.said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/#(\S+)", self.said)
        assert found, self.said + Path(self.log.name).read_text()
        self.port, self.token = int(found[1]), found[2]

    def ask(self, path, method="GET", body=None, *, token=True, **headers):
        """Return status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"X-Anyecg-Token": self.token} if token else {}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, path, method="GET", body=None, **headers):
        """Return the JSON of an answer that must be 200."""
        status, _, data = self.ask(path, method, None if body is None else json.dumps(body), **headers)
        assert status == 200, data
        return json.loads(data)

    def result(self, path, body):
        """Return the result of a long computation, which the last line of its answer gives."""
        status, _, data = self.ask(path, "POST", json.dumps(body))
        assert status == 200, data
        *told, last = map(json.loads, data.splitlines())
        assert all(0 <= line["share"] <= 1 for line in told)
        return last["result"]

    def send(self, batch, name, data):
        """Upload one file; return the status."""
        return self.ask(f"/api/batches/{batch}/files", "PUT", data, X_Name=quote(name))[0]

    def stop(self, number=signal.SIGTERM):
        """End the server by a signal; return its exit code, and keep all that it said."""
        self.process.send_signal(number)
        self.said += self.process.stdout.read()
        code = self.process.wait(20)
        self.process.stdout.close()
        self.said += Path(self.log.name).read_text()
        self.log.close()
        return code


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return a running server that shows the recordings of the demo and takes 8 MB of uploads."""
    running = Running(tmp_path_factory.mktemp("serve") / "tmp", "--folder", DEMO / "records", "--upload-mb", 8)
    yield running
    assert running.stop() == 0


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a server with a folder of temporary files; whatever happens, none stays."""
    started = []

    def start_one(*arguments):
        started.append(Running(tmp_path / "tmp", *arguments))
        return started[-1]

    yield start_one
    for running in started:
        if running.process.poll() is None:
            running.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def key(server):
    """Return the id of one recording."""
    return next(record["id"] for record in server.json("/api/records") if record["name"] == RECORD)


def test_it_listens_on_the_loopback_address_alone(server):
    found = [link.laddr for link in psutil.Process(server.process.pid).net_connections() if link.status == "LISTEN"]
    assert [(place.ip, place.port) for place in found] == [("127.0.0.1", server.port)]


@pytest.mark.parametrize("path", ["/api/records", "/api/batches", "/api/records/0123456789abcdef", "/api/nothing"])
def test_without_the_token_nothing_is_answered(server, path):
    assert server.ask(path, token=False)[0] == 403
    assert server.ask(path, token=False, X_Anyecg_Token=server.token[:-1] + "x")[0] == 403
    assert server.ask(path + "?token=" + server.token, token=False, Cookie="token=" + server.token)[0] == 403


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "localhost", "127.0.0.1.example.org", "[::1]", ""])
def test_another_host_name_is_refused(server, host):
    for path in ("/", "/api/records"):
        assert server.ask(path, Host=host)[0] == 421


@pytest.mark.parametrize("origin", ["http://example.org", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_what_another_page_asks_for_is_refused_even_with_the_token(server, origin):
    assert server.ask("/api/batches", "POST", Origin=origin)[0] == 403
    assert server.ask("/api/batches", "POST", Sec_Fetch_Site="cross-site")[0] == 403
    assert server.ask("/", "GET", Origin=origin)[0] == 403


def test_every_answer_forbids_what_is_not_the_servers_own(server):
    for path in ("/", "/page.js", "/nothing", "/api/records", "/api/nothing"):
        for token in (True, False):
            headers = server.ask(path, token=token)[1]
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in headers
            assert "set-cookie" not in headers


@pytest.mark.parametrize(
    "path", ["/../setup.py", "/%2e%2e/serve.py", "/..%2fserve.py", "/serve.py", "//etc/passwd", "/page.js/../../cli.py"]
)
def test_a_path_reaches_no_file_but_the_pages_own(server, path):
    assert server.ask(path)[0] == 404


@pytest.mark.parametrize(
    "name",
    ["../x.dat", "a/../../x.dat", "/etc/x", "a//x", "..", ".lock", "a/.x", "a\\..\\x", "C:x", "a\0b", "a\nb", "",
     "x" * 401, "a/" * 16 + "x"],
)  # fmt: skip
def test_a_path_in_a_files_name_is_refused_and_writes_nothing(server, name):
    batch = server.json("/api/batches", "POST")["batch"]
    before = sorted(server.temporary.parent.rglob("*"))
    assert server.send(batch, name, b"text") == 400
    assert sorted(server.temporary.parent.rglob("*")) == before


def test_an_announced_upload_of_5_gb_is_refused_before_it_is_sent(server):
    batch = server.json("/api/batches", "POST")["batch"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
        link.sendall(
            f"PUT /api/batches/{batch}/files HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nX-Name: x.dat\r\n"
            f"X-Anyecg-Token: {server.token}\r\nContent-Length: 5000000000\r\n\r\n".encode()
        )
        assert link.recv(1000).startswith(b"HTTP/1.1 413")


def test_an_upload_without_a_length_is_cut_off_at_the_limit_in_bounded_memory(server):
    batch = server.json("/api/batches", "POST")["batch"]
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    sent, answer = 0, b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as link:
        link.sendall(
            f"PUT /api/batches/{batch}/files HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nX-Name: x.dat\r\n"
            f"X-Anyecg-Token: {server.token}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            while sent < 5000:
                link.sendall(piece)
                sent += 1
        except OSError:
            pass
        try:
            answer = link.recv(1000)
        except OSError:
            answer = b""
    assert sent < 100
    assert answer[:12] in (b"", b"HTTP/1.1 413")
    assert process.memory_info().rss - before < 30e6
    assert not list(server.temporary.rglob("*.part"))
    assert server.send(batch, "small.dat", b"text") == 200


def test_200_slow_posts_keep_nobody_out_and_are_closed(server):
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    batch = server.json("/api/batches", "POST")["batch"]
    head = f"Host: 127.0.0.1:{server.port}\r\nX-Name: slow.dat\r\nX-Anyecg-Token: {server.token}\r\n"
    links = []
    for number in range(200):
        link = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        if number % 2:
            link.sendall(b"POST /api/batches HTTP/1.1\r\nHost: 127")
        else:
            request = f"PUT /api/batches/{batch}/files HTTP/1.1\r\n{head}Content-Length: 1000\r\n\r\nx"
            link.sendall(request.replace("slow", f"slow{number}").encode())
        links.append(link)
    assert len(server.json("/api/records")) == 600
    assert process.memory_info().rss - before < 30e6
    ended = 0
    for link in links:
        with link:
            try:
                while link.recv(4096):
                    pass
            except ConnectionError:
                pass
            ended += 1
    assert ended == 200
    assert not list(server.temporary.rglob("slow*"))
    assert server.send(batch, "quick.dat", b"text") == 200


def test_a_request_line_of_any_length_and_a_broken_one_are_refused(server):
    for sent in (b"GET /" + b"x" * 1_000_000, b"\0\1\2\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as link:
            try:
                link.sendall(sent)
                answer = link.recv(100)
            except ConnectionError:
                answer = b""
        assert answer[:12] in (b"", b"HTTP/1.1 400")
    assert server.ask("/")[0] == 200


def test_uploaded_recordings_are_the_same_samples_and_no_file_is_written_twice(server):
    batch = server.json("/api/batches", "POST")["batch"]
    for end in (".hea", ".mat"):
        data = (DEMO / "records" / f"{RECORD}{end}").read_bytes()
        assert server.send(batch, f"folder/{RECORD}{end}", data) == 200
        assert server.send(batch, f"folder/{RECORD}{end}", b"other") == 409
    (key,) = server.json(f"/api/batches/{batch}/records", "POST")["ids"]
    wanted = open_record(DEMO / "records" / RECORD).read()
    status, _, data = server.ask(f"/api/records/{key}/tiles/0/0?leads=0")
    assert status == 200
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), wanted[:4096])


@pytest.mark.parametrize(("form", "end", "most"), [("hdf5", ".h5", 0.0), ("edf", ".edf", 1e-3)])
def test_an_upload_of_another_format_is_the_same_recording(server, tmp_path, form, end, most):
    convert(DEMO / "records" / RECORD, tmp_path / f"other{end}", form)
    batch = server.json("/api/batches", "POST")["batch"]
    assert server.send(batch, f"other{end}", (tmp_path / f"other{end}").read_bytes()) == 200
    (key,) = server.json(f"/api/batches/{batch}/records", "POST")["ids"]
    _, _, data = server.ask(f"/api/records/{key}/tiles/0/0?leads=0")
    wanted = open_record(DEMO / "records" / RECORD).read(0, 4096)
    np.testing.assert_allclose(np.frombuffer(data, "<f4"), wanted, rtol=0, atol=most)


def test_uploads_are_private_to_their_owner(server):
    (folder,) = server.temporary.glob("anyecg-serve-*")
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("level", [0, 1, 3, 6, 7, 12])
def test_tiles_hold_every_extreme_of_their_columns(server, key, level):
    signal = open_record(DEMO / "records" / RECORD).read()
    data = b"".join(server.ask(f"/api/records/{key}/tiles/{level}/{index}?leads=0")[2] for index in range(3))
    found = np.frombuffer(data, "<f4")
    if level == 0:
        np.testing.assert_array_equal(found, signal[: 3 * 4096])
        return
    wanted = [(block.min(), block.max()) for block in np.split(signal, range(1 << level, len(signal), 1 << level))]
    np.testing.assert_array_equal(found.reshape(-1, 2), np.array(wanted, np.float32)[: 3 * 4096])


def test_beats_windows_and_median_are_those_of_the_kernels(server, key):
    record = open_record(DEMO / "records" / RECORD)
    signal = record.read()
    found = server.json(f"/api/records/{key}/beats?lead=0&start=0&stop={len(signal)}")
    assert found == [r_peaks(signal, record.fs).tolist()]
    part = server.json(f"/api/records/{key}/beats?lead=0&start=1000&stop=4000")
    assert part == [(1000 + r_peaks(signal[1000:4000], record.fs)).tolist()]
    windows = server.json(f"/api/records/{key}/windows?lead=0")
    assert len(windows["rate"]) == len(windows["flags"]) == int(len(signal) / record.fs / 10)
    median = server.json(f"/api/records/{key}/median?lead=0&start=0&stop={len(signal)}")
    (lead,) = median["leads"]
    assert abs(int(np.argmax(np.abs(lead["mv"]))) - median["before"]) < 0.05 * record.fs


def test_beats_of_both_sides_of_a_gap_are_kept_apart_and_the_start_is_told(server):
    signal, fs = open_record(DEMO / "records" / RECORD).read()[:6000], 300
    count_T = np.round(signal * 200).astype("<i2")
    count_T[2000:4000] = -32768
    batch = server.json("/api/batches", "POST")["batch"]
    header = f"gap 1 {fs} 6000 13:05:07 22/11/2002\ngap.dat 16 200 16 0 {count_T[0]} 0 0 II\n"
    assert server.send(batch, "gap.hea", header.encode()) == 200
    assert server.send(batch, "gap.dat", count_T.tobytes()) == 200
    (key,) = server.json(f"/api/batches/{batch}/records", "POST")["ids"]
    mv_T = (count_T / 200).astype(np.float32)
    wanted = [r_peaks(mv_T[:2000], fs).tolist(), (4000 + r_peaks(mv_T[4000:], fs)).tolist()]
    assert min(map(len, wanted)) > 3
    assert server.json(f"/api/records/{key}/beats?lead=0&start=0&stop=6000") == wanted
    assert server.json(f"/api/records/{key}")["start"] == "2002-11-22T13:05:07+00:00"


def test_files_that_are_no_recordings_are_named_with_what_they_are(server):
    batch = server.json("/api/batches", "POST")["batch"]
    assert server.send(batch, "report.pdf", b"%PDF-1.7 no ECG at all") == 200
    assert server.send(batch, "empty.edf", b"") == 200
    found = server.json(f"/api/batches/{batch}/records", "POST")
    assert found["ids"] == []
    empty, report = found["refused"]
    assert re.fullmatch(r"empty\.edf: .*it is empty\)", empty)
    assert re.fullmatch(r"report\.pdf: no recording of a known format \(it begins with b'%PDF.*'\)", report)


@pytest.mark.parametrize(
    "path",
    ["tiles/0/0?leads=9", "tiles/31/0?leads=0", "tiles/0/99999999999?leads=0", "beats?lead=0&start=5&stop=1",
     "beats?lead=0&start=0&stop=999999999", "windows?lead=70"],
)  # fmt: skip
def test_what_is_not_in_a_record_is_not_found(server, key, path):
    assert server.ask(f"/api/records/{key}/{path}")[0] == 404


@pytest.mark.parametrize(
    "path", ["tiles/0/0?leads=-1", "tiles/0/0", "beats?lead=0", "windows?lead=x", "windows?lead=%C2%B2"]
)
def test_what_is_no_number_is_refused(server, key, path):
    assert server.ask(f"/api/records/{key}/{path}")[0] == 400


def test_an_unreadable_recording_says_why_and_a_script_stays_text(server):
    batch = server.json("/api/batches", "POST")["batch"]
    script = "<script>alert(1)</script>"
    assert server.send(batch, "absent.hea", b"absent 1 300 1000\nmissing.dat 16\n") == 200
    assert server.send(batch, "broken.hea", b"no header at all\n") == 200
    assert server.send(batch, "text.hea", f"text 1 300 100\ntext.dat 16 200 16 0 0 0 0 {script}\n".encode()) == 200
    assert server.send(batch, "text.dat", bytes(200)) == 200
    answers = [server.ask(f"/api/records/{key}") for key in server.json(f"/api/batches/{batch}/records", "POST")["ids"]]
    assert [status for status, _, _ in answers] == [200, 422, 200]
    absent, broken, text = (json.loads(data) for _, _, data in answers)
    assert "missing.dat" in absent["problems"][0]["reason"]
    assert absent["leads"] == []
    assert "broken" in broken["error"]
    assert text["leads"][0]["name"] == script
    assert {headers["content-type"] for _, headers, _ in answers} == {"application/json"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_order_and_removes_what_was_uploaded(start, number):
    running = start()
    batch = running.json("/api/batches", "POST")["batch"]
    assert running.send(batch, "smith_john_1950.dat", b"text") == 200
    assert running.ask("/api/records/smith", token=False)[0] == 403
    with socket.create_connection(("127.0.0.1", running.port)):
        assert running.stop(number) == 0
    assert list(running.temporary.iterdir()) == []
    assert running.said.count("http://") == 1
    assert "smith" not in running.said


def test_patient_fields_of_a_header_are_in_no_answer_log_or_file_left(start):
    running = start()
    marks = ("MARK-NAME", "MARK-MRN", "01/02/1903")
    header = (DEMO / "records" / f"{RECORD}.hea").read_text().splitlines()
    header = [" ".join(header[0].split()[:4]) + f" 11:12:13 {marks[2]}", *header[1:]]
    text = "\n".join([*header, f"# Name: {marks[0]} ID: {marks[1]}"]) + "\n"
    batch = running.json("/api/batches", "POST")["batch"]
    assert running.send(batch, f"{RECORD}.hea", text.encode()) == 200
    assert running.send(batch, f"{RECORD}.mat", (DEMO / "records" / f"{RECORD}.mat").read_bytes()) == 200
    (key,) = running.json(f"/api/batches/{batch}/records", "POST")["ids"]
    answers = [str(running.ask(f"/api/records{path}")) for path in ("", f"/{key}", f"/{key}/windows?lead=0")]
    assert '"n_samples"' in answers[1]
    assert running.stop() == 0
    for mark in marks:
        assert mark not in "".join([*answers, running.said])
    assert list(running.temporary.iterdir()) == []


def test_what_a_killed_server_left_is_removed_by_the_next_but_not_a_living_ones(start):
    killed, alive = start(), start()
    killed.stop(signal.SIGKILL)
    assert len(list(alive.temporary.iterdir())) == 2
    third = start()
    assert len(list(alive.temporary.iterdir())) == 2
    assert alive.json("/api/batches", "POST")["batch"]
    assert (third.stop(), alive.stop()) == (0, 0)


def test_a_folder_that_is_not_there_and_a_port_in_use_are_one_line_each(tmp_path, server):
    for arguments in (["--folder", tmp_path / "none"], ["--port", server.port], ["--port", 70_000], ["--upload-mb", 0]):
        command = [sys.executable, "-m", "anyecg.app.cli", "serve", "--no-browser", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


def test_requests_of_many_threads_at_once_are_all_answered(server, key):
    found = []

    def ask():
        found.append(server.ask(f"/api/records/{key}/tiles/6/0?leads=0")[2])

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 32


@pytest.fixture(scope="module")
def unsaid(server):
    """Return the id of a table of two columns that says neither rate nor unit, and what stands in it."""
    mv_TL = np.round(np.random.default_rng(3).standard_normal((2000, 2)), 3)
    batch = server.json("/api/batches", "POST")["batch"]
    text = "".join(f"{first},{second}\n" for first, second in mv_TL)
    assert server.send(batch, "table.csv", text.encode()) == 200
    (key,) = server.json(f"/api/batches/{batch}/records", "POST")["ids"]
    return key, mv_TL


def test_a_table_that_does_not_say_its_rate_is_opened_with_what_the_user_says(server, unsaid):
    key, mv_TL = unsaid
    status, _, data = server.ask(f"/api/records/{key}")
    assert (status, json.loads(data)["unsaid"]) == (422, True)
    for partly in ({"fs": 250}, {"unit": "uV"}, {"fs": 250, "unit": "uV", "leads": ["II"]}):
        assert server.ask(f"/api/records/{key}/said", "POST", json.dumps(partly))[0] == 422
    assert server.ask(f"/api/records/{key}")[0] == 422
    found = server.json(f"/api/records/{key}/said", "POST", {"fs": 250, "unit": "uV", "leads": ["II", "<b>"]})
    assert found == server.json(f"/api/records/{key}")
    assert found["said"] == {"fs": 250, "unit": "uV", "leads": ["II", "<b>"]}
    assert [(lead["name"], lead["fs"], lead["n_samples"]) for lead in found["leads"]] == [
        ("II", 250, 2000), ("<b>", 250, 2000)
    ]  # fmt: skip
    for factor, unit in ((1e-3, "uV"), (1, "mV")):
        server.json(f"/api/records/{key}/said", "POST", {"fs": 250, "unit": unit})
        tile = np.frombuffer(server.ask(f"/api/records/{key}/tiles/0/0?leads=1")[2], "<f4")
        np.testing.assert_allclose(tile, mv_TL[:, 1] * factor, rtol=1e-6)


def test_a_column_of_decimal_commas_is_one_lead_where_the_user_says_so(server):
    mv_T = np.round(np.random.default_rng(5).standard_normal(3000), 3)
    batch = server.json("/api/batches", "POST")["batch"]
    assert server.send(batch, "comma.csv", "".join(f"{mv:.3f}\n" for mv in mv_T).replace(".", ",").encode()) == 200
    (key,) = server.json(f"/api/batches/{batch}/records", "POST")["ids"]
    said = {"fs": 250, "unit": "mV", "delimiter": ";", "decimal": ",", "header": False}
    found = server.json(f"/api/records/{key}/said", "POST", said)
    assert (found["said"], [lead["n_samples"] for lead in found["leads"]]) == (said, [3000])
    tile = np.frombuffer(server.ask(f"/api/records/{key}/tiles/0/0?leads=0")[2], "<f4")
    np.testing.assert_array_equal(tile, mv_T.astype(np.float32))


def test_what_is_said_of_one_file_goes_for_the_others_of_its_folder_where_that_is_wished(server):
    text = "".join(f"{1000 * value:.3f}\n" for value in np.random.default_rng(4).standard_normal(3000)).encode()
    batches = [server.json("/api/batches", "POST")["batch"] for _ in range(2)]
    for batch in batches:
        for name in ("a.csv", "b.csv"):
            assert server.send(batch, name, text) == 200
    (first, second), (apart, _) = (server.json(f"/api/batches/{batch}/records", "POST")["ids"] for batch in batches)
    wish = {"fs": 250, "unit": "uV", "leads": ["II"], "header": False}
    server.json(f"/api/records/{first}/said", "POST", wish)
    assert server.ask(f"/api/records/{second}")[0] == 422
    server.json(f"/api/records/{first}/said", "POST", {**wish, "others": True})
    (lead,) = server.json(f"/api/records/{second}")["leads"]
    assert (lead["name"], lead["fs"]) == ("II", 250)
    assert server.ask(f"/api/records/{apart}")[0] == 422
    (shipped, *_) = server.json("/api/models")
    made = server.result(f"/api/models/{shipped['id']}/folder", {"batch": batches[0]})
    rows = csv.DictReader(server.ask(f"/api/made/{made}")[2].decode().splitlines())
    assert {row["record"] for row in rows if row["N"]} == {"a", "b"}
    choices = {
        "model": "resnet", "train": "scratch", "head": "multilabel", "lead": "", "epochs": 2, "batch_size": 16,
        "learning_rate": 0.001, "seed": 0, "val_fraction": 0.1, "test_fraction": 0.2, "labels": "/labels.csv",
    }  # fmt: skip
    configs = [
        tomllib.loads(server.json("/api/trainings/config", "POST", {**choices, "recordings": batch})["config"])
        for batch in batches
    ]
    said = {"fs": 250, "unit": "uV", "lead_names": ["II"], "header": "no"}
    assert configs[0]["cohort"] == {**configs[1]["cohort"], **said}


@pytest.mark.parametrize(
    "wish",
    [{"fs": 0}, {"fs": -1}, {"fs": 1e7}, {"fs": float("nan")}, {"fs": float("inf")}, {"fs": True}, {"fs": "500"},
     {"unit": "kV"}, {"unit": ["mV"]}, {"leads": []}, {"leads": "II"}, {"leads": ["II"] * 65}, {"leads": [1]},
     {"delimiter": "x"}, {"delimiter": 1}, {"decimal": ";"}, {"header": "yes"},
     {"leads": [""]}, {"leads": ["x" * 81]}, {"leads": ["a\nb"]}, {"fs": 10**400}],
)  # fmt: skip
def test_what_makes_no_sense_is_not_taken_for_a_rate_unit_or_name(server, unsaid, wish):
    assert server.ask(f"/api/records/{unsaid[0]}/said", "POST", json.dumps(wish))[0] == 400


def test_tables_beside_recordings_are_labels_and_not_listed(server):
    batch = server.json("/api/batches", "POST")["batch"]
    for end in (".hea", ".mat"):
        assert server.send(batch, f"A00022{end}", (DEMO / "records" / f"A00022{end}").read_bytes()) == 200
    assert server.send(batch, "labels.csv", b"1,0\n2,1\n3,1\n4,0\n5,1\n") == 200
    assert len(server.json(f"/api/batches/{batch}/records", "POST")["ids"]) == 1
