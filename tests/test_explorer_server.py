"""The server of the explorer: what it refuses, on raw sockets, because clients tidy up what they send."""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import threading
import time

import numpy as np
import psutil
import pytest
import uvicorn

import fewfire as ff
from fewfire.explorer import serve as serving
from fewfire.explorer import store as storing
from fewfire.explorer.build import build
from fewfire.explorer.guard import LONGEST_ADDRESS
from fewfire.explorer.serve import listen
from fewfire.explorer.store import Store
from fewfire.runs import Run

HOSTILE = "<img src=x onerror=alert(1)>"
SECRET = "of-nobody-elses-business"
ROUTES = [
    "/",
    "/index.html",
    "/page.js",
    "/page.css",
    "/spark.svg",
    "/api/meta.json",
    "/api/features.json",
    "/api/features/0.json",
    "/api/rows.json",
    "/api/rows/0.json",
    "/api/map.json",
    "/api/run.json",
    "/api/comparison.json",
    "/nothing",
]


def small_run(path, n_latents=16):
    """A run of random weights on rows whose columns and labels are hostile."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(300, 4)).astype(np.float32)
    layout = {"kind": "table", "columns": [HOSTILE, "</script><script>alert(2)</script>", "=cmd|' /C calc'!A0", "b"]}
    source = ff.ArraySource(rows, layout=layout, labels=np.where(rows[:, 0] > 0, HOSTILE, "javascript:alert(3)"))
    model = ff.Autoencoder(4, n_latents, ff.TopK(k=3), layout=source.layout)
    path.mkdir(parents=True)
    return Run(path=path, model=model, config=None, provenance={"score": {"threshold": 1.0}}), source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    (place / "secret.json").write_text(SECRET)
    run, source = small_run(place / "run")
    bundle = build(run, source, progress=False)
    (bundle / "secret.json").write_text(SECRET)
    (bundle / "link.json").symlink_to(place / "secret.json")
    return bundle


@pytest.fixture(scope="module")
def port(folder):
    with served(folder) as number:
        yield number


class served:
    """A bundle on a port, in a thread."""

    def __init__(self, folder):
        self.socket = listen(0)
        self.server = uvicorn.Server(serving._settings(Store(folder)))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self.socket.getsockname()[1]

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)
        self.socket.close()


def raw(port, request, timeout=5.0):
    """All bytes that come back."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(request if isinstance(request, bytes) else request.encode("latin-1"))
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
        return answer


def get(port, target, host="localhost", more="", method="GET"):
    """(status, head, body)"""
    answer = raw(port, f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), head.decode("latin-1").lower(), body


# -------------------------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:9999", "[::1]", "[::1]:8765"])
def test_names_of_this_machine(port, host):
    assert get(port, "/api/meta.json", host)[0] == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "localhost.",
        "127.0.0.1.nip.io",
        "127.0.0.1.",
        "evil.example:8765",
        "localhost:evil",
        "localhost:123456",
        "localhost@evil.example",
        "evil.example#localhost",
        "evil.example/localhost",
        "localhost evil.example",
        "localhost,evil.example",
        "127.0.0.2",
        "127.1",
        "0.0.0.0",
        "2130706433",
        "0x7f.0.0.1",
        "::1",
        "[::]",
        "[::ffff:127.0.0.1]",
        "ｌocalhost".encode().decode("latin-1"),
        "",
    ],
)
def test_another_name_is_refused_on_every_route(port, route, host):
    status, _, body = get(port, route, host)
    assert status in (400, 421)
    assert b"features" not in body


@pytest.mark.parametrize("route", ROUTES)
def test_no_host_and_two_hosts_are_refused(port, route):
    for head in ("", "Host: localhost\r\nHost: evil.example\r\n", "Host: localhost\r\nHost: localhost\r\n"):
        for version in ("1.0", "1.1"):
            answer = raw(port, f"GET {route} HTTP/{version}\r\n{head}Connection: close\r\n\r\n")
            assert answer.split()[1] in (b"400", b"421"), (head, version)


def test_the_target_does_not_replace_the_host(port):
    assert get(port, "http://localhost/api/meta.json", "evil.example")[0] == 421
    assert get(port, "http://evil.example/api/meta.json")[0] == 404
    assert (
        get(port, "/api/meta.json", "evil.example", "X-Forwarded-Host: localhost\r\nForwarded: host=localhost\r\n")[0]
        == 421
    )


def test_it_listens_on_this_machine_alone(port):
    found = [
        c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN"
    ]
    assert found == ["127.0.0.1"]


# -------------------------------------------------------------------------------------------------- what may be asked


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "QUERY"]
)
@pytest.mark.parametrize("route", ROUTES)
def test_nothing_can_be_written(port, route, method, folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    status, head, _ = get(
        port, route, more="Content-Type: text/plain\r\nOrigin: http://evil.example\r\n", method=method
    )
    assert status == 405
    assert "access-control" not in head
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_no_other_origin_may_read(port, origin):
    _, head, _ = get(port, "/api/meta.json", more=f"Origin: {origin}\r\n")
    assert "access-control" not in head
    assert "cross-origin-resource-policy: same-origin" in head


@pytest.mark.parametrize("route", ROUTES)
def test_every_answer_has_the_headers(port, route):
    for host in ("localhost", "evil.example"):
        _, head, _ = get(port, route, host)
        policy = next(line for line in head.split("\r\n") if line.startswith("content-security-policy"))
        for rule in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "object-src 'none'"):
            assert rule in policy
        assert "unsafe" not in policy
        assert "x-content-type-options: nosniff" in head
        assert "\r\nserver:" not in head


TRAVERSALS = [
    "../secret.json", "..%2fsecret.json", "%2e%2e/secret.json", "%2e%2e%2fsecret.json", "%252e%252e%252fsecret.json",
    "..%5csecret.json", "..\\secret.json", "....//secret.json", "..;/secret.json", "%c0%ae%c0%ae/secret.json",
    "%ef%bc%8e%ef%bc%8e/secret.json", "secret.json", "./secret.json", "link.json", "%00", "0%00.json", "0.json%00",
    "//etc/passwd", "/etc/passwd", "%2fetc%2fpasswd", "file:///etc/passwd", "C:%5cwindows", "~/.ssh/id_rsa",
    "explorer.sqlite", "../explorer.sqlite", "codes.parquet", "0.json/../../secret.json", "0/../secret.json",
    "a" * 900, "-1.json", "1e3.json", "0x1.json", "NaN.json", "٣.json", "１.json", "+1.json", "1_0.json", "%20.json",
    "99999999999.json", "2147483648.json", "0.json;", "0.JSON", "0", "0.", "0..json", "' OR 1=1--.json",
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["/", "/api/", "/api/features/", "/api/rows/", "/page.js/", "//"])
def test_no_path_leads_outside(port, prefix):
    for payload in TRAVERSALS:
        target = (prefix + payload).encode().decode("latin-1").replace(" ", "%20")
        status, _, body = get(port, target)
        assert status in (400, 404, 414), (prefix, payload[:40], status)
        assert SECRET.encode() not in body
        assert b"root:" not in body
        assert b"SQLite" not in body


@pytest.mark.parametrize("name", ["sort", "order", "show", "only", "q", "offset", "limit"])
def test_no_parameter_leads_outside(port, name):
    for payload in TRAVERSALS:
        for route in ("/api/features.json", "/api/rows.json"):
            target = f"{route}?{name}={payload}".encode().decode("latin-1").replace(" ", "%20")
            status, _, body = get(port, target)
            assert status in (200, 400, 414)
            assert SECRET.encode() not in body
            assert b"root:" not in body


# -------------------------------------------------------------------------------------------------- how much


def test_pages_have_a_most(port):
    for route, most in (("features", 500), ("rows", storing.MOST_ROWS_A_PAGE)):
        status, _, body = get(port, f"/api/{route}.json?limit=1000000000")
        assert status == 200
        assert len(json.loads(body)[route]) <= most
    body = get(port, "/api/features.json?limit=5&offset=3")[2]
    assert len(json.loads(body)["features"]) == 5
    assert json.loads(get(port, "/api/features.json?limit=0")[2])["features"] == []
    assert json.loads(get(port, "/api/features.json?offset=2000000000")[2])["features"] == []


@pytest.mark.parametrize(
    "value", ["-1", "NaN", "1e9", "1.5", "", "9" * 30, "0x10", "%F0%9F%94%A5", "1%200", "Infinity", "null"]
)
@pytest.mark.parametrize("name", ["offset", "limit"])
def test_a_number_that_is_none_is_refused(port, name, value):
    status, _, body = get(port, f"/api/features.json?{name}={value}")
    assert status == 400
    assert "whole number" in json.loads(body)["error"]


def test_a_choice_that_is_none_is_refused_without_being_repeated(port):
    status, _, body = get(port, "/api/features.json?sort=density;DROP%20TABLE%20features")
    assert status == 400
    assert b"DROP" not in body
    assert json.loads(get(port, "/api/features.json")[2])["total"] == 16


@pytest.mark.parametrize(
    "signs", ['"', "'", "*", "(", ")", "^", "NEAR(", "a OR b", "label:x", "-", "\\", "AND", '"*"', "%25", "a*b*"]
)
def test_signs_of_the_search_language_mean_nothing(port, signs):
    from urllib.parse import quote

    status, _, body = get(port, f"/api/features.json?q={quote(signs, safe='')}")
    assert status == 200
    assert "features" in json.loads(body)


def test_a_long_address_and_a_long_search(port):
    assert get(port, "/api/features.json?q=" + "a" * (LONGEST_ADDRESS + 1))[0] == 414
    start = time.perf_counter()
    assert get(port, "/api/features.json?q=" + "a" * 900)[0] == 200
    assert get(port, "/api/features.json?q=" + "a%20" * 220)[0] == 200
    assert get(port, "/" + "a" * 60_000)[0] in (400, 414)
    assert time.perf_counter() - start < 5


def test_a_question_with_a_body_is_refused_before_it_is_read(port):
    before = psutil.Process().memory_info().rss
    heads = [
        "Content-Length: 1000000000\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Encoding: gzip\r\n",
    ]
    for head in heads:
        for method in ("GET", "POST"):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(f"{method} /api/meta.json HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())
                answer = connection.recv(1 << 16)
                assert answer.split()[1] in (b"413", b"405")
                with pytest.raises(OSError):  # it is closed: nobody takes what still comes
                    for _ in range(1000):
                        connection.sendall(b"x" * 100_000)
    assert psutil.Process().memory_info().rss - before < 50e6
    assert get(port, "/api/meta.json", more="Content-Length: 0\r\n")[0] == 200


def test_smuggled_requests(port):
    both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"
    assert get(port, "/api/meta.json", more=both)[0] in (400, 413)
    assert raw(port, "GET /api/meta.json HTTP/1.1\nHost: localhost\nConnection: close\n\n").split()[1] in (
        b"200",
        b"400",
    )
    folded = raw(port, "GET /api/meta.json HTTP/1.1\r\nHost: evil.example\r\n localhost\r\nConnection: close\r\n\r\n")
    assert folded.split()[1] in (b"400", b"421")


def test_a_connection_that_says_nothing_is_closed(folder, monkeypatch):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.3)
    with served(folder) as port:
        heads = [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"G"]
        slow = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(60)]
        for i, connection in enumerate(slow):
            connection.sendall(heads[i % 3])
        assert get(port, "/api/meta.json")[0] == 200  # others are served meanwhile
        for connection in slow:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(10) == b""
            connection.close()
        # also the second question of a connection, and one that trickles
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /api/meta.json HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT")
            with pytest.raises((ConnectionError, AssertionError)):
                end = time.monotonic() + 5
                while time.monotonic() < end:
                    time.sleep(0.05)
                    connection.sendall(b"T")
                raise ValueError("it was still open after five seconds")


def test_too_many_connections_are_refused_and_not_crashed_by(folder, monkeypatch):
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 20)
    with served(folder) as port:
        held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(40)]
        time.sleep(0.2)
        assert get(port, "/api/meta.json")[0] == 503
        for connection in held:
            connection.close()
        time.sleep(0.2)
        assert get(port, "/api/meta.json")[0] == 200


def test_a_question_that_takes_too_long_is_stopped(folder, monkeypatch):
    with served(folder) as port:
        monkeypatch.setattr(storing, "SECONDS", 0.0)
        monkeypatch.setattr(storing, "CHECKED", 1)
        status, _, body = get(port, "/api/features.json?q=a")
        assert status == 503
        assert "seconds" in json.loads(body)["error"]


def test_many_at_once(port):
    targets = [r for r in ROUTES if r not in ("/nothing", "/api/comparison.json")] * 12

    def ask(some):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        found = []
        for target in some:
            connection.request("GET", target, headers={"Host": "localhost"})
            answer = connection.getresponse()
            answer.read()
            found.append(answer.status)
        connection.close()
        return found

    before = psutil.Process().num_fds()
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        found = [status for part in pool.map(ask, [targets] * 32) for status in part]
    assert set(found) == {200}
    time.sleep(0.3)
    assert psutil.Process().num_fds() <= before + 8  # a connection to the bundle for each thread that asks


# -------------------------------------------------------------------------------------------------- text is text


def test_text_comes_as_json_that_no_parser_takes_for_markup(port):
    found = b""
    for route in ROUTES:
        if route.startswith("/api/"):
            _status, head, body = get(port, route)
            assert "content-type: application/json" in head
            assert b"<" not in body
            found += body
    assert b"\\u003cimg src=x onerror=alert(1)\\u003e" in found


def test_an_unreadable_bundle_is_an_error_without_details(folder, monkeypatch):
    def broken(self, *_):
        raise RuntimeError(f"at {folder}")

    monkeypatch.setattr(Store, "row", broken)
    with served(folder) as port:
        status, head, body = get(port, "/api/rows/0.json")
    assert status == 500
    assert str(folder).encode() not in body
    assert "content-security-policy" in head


def test_the_port_that_was_asked_for_is_taken():
    with listen(0) as taken:
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {number} cannot be used"):
            listen(number)
