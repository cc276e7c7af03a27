"""A local web server for tests of downloads that can fail in many ways."""

import contextlib
import functools
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """The reply to requests for one path."""

    content: bytes
    headers: dict = field(default_factory=lambda: {"ETag": '"1"', "Content-Type": "application/octet-stream"})
    status: int = 200
    ranges: bool = True  # if False, each reply has the whole file
    heeds_if_range: bool = True
    piece: int = 0  # largest number of bytes in the reply to a range request
    drops: list = field(default_factory=list)  # the next connections break after so many body bytes
    gate: tuple = ()  # (bytes, event): each reply waits for the event after so many bytes
    trickle: float = 0.0  # seconds between single bytes
    endless: bool = False  # send the content again and again, without Content-Length


class Handler(BaseHTTPRequestHandler):
    def __init__(self, files, log, *args):
        self.files, self.log = files, log
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def do_GET(self):
        file = self.files.get(self.path.partition("?")[0], File(b"not here", status=404))
        size, start, status, headers = len(file.content), 0, file.status, dict(file.headers)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        wanted = self.headers.get("If-Range")
        same = wanted is None or not file.heeds_if_range or wanted in headers.values()
        if match and file.ranges and same and status == 200:
            start = int(match[1])
            status = 206 if start < size else 416
            stop = min(size, start + (file.piece or size))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}" if start < size else f"bytes */{size}"
            body = file.content[start:stop]
        else:
            body = file.content
        entry = [self.path, self.headers.get("Range", ""), status, 0]
        self.log.append(entry)  # at once, because the client may finish before this function
        self.send_response(status)
        length = {} if file.endless else {"Content-Length": str(len(body))}
        for name, value in {**length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while file.endless:
                self.wfile.write(body)
            for at in range(len(body) if file.trickle else 0):
                self.wfile.write(body[at : at + 1])
                time.sleep(file.trickle)
        if file.trickle:
            return
        stop = file.drops.pop(0) if file.drops else len(body)
        with contextlib.suppress(ConnectionError):
            for at in range(0, stop, 2**14):
                if file.gate and at >= file.gate[0]:
                    file.gate[1].wait(20)
                piece = body[at : min(at + 2**14, stop)]
                entry[3] += len(piece)
                self.wfile.write(piece)
        self.close_connection = True


class Server:
    """A server of ``files`` by path."""

    def __init__(self):
        self.files, self._log = {}, []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, self.files, self._log))
        self._http.daemon_threads = True
        self.root = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, path, content, **options) -> str:
        """Serve a file and return its URL."""
        self.files[path] = File(content, **options)
        return self.root + path

    @property
    def log(self) -> list[tuple]:
        """(path, Range, status, body bytes sent) of each request."""
        return [tuple(entry) for entry in self._log]

    def forget(self):
        self._log.clear()

    def sent(self) -> list[int]:
        return [sent for _, _, _, sent in self.log]

    def close(self):
        self._http.shutdown()
        self._http.server_close()
