"""A server on 127.0.0.1 that plays the Hugging Face hub for a few files."""

import hashlib
import http.server
import re
import threading


class Hub:
    """Serves files as the hub serves large ones, and fails on demand.

    Attributes:
        files: contents by file name.
        requests: (method, file name, range header) of every request.
        break_after: bytes after which the next transfers break off, one number a transfer.
        damage: how many of the next transfers have a wrong byte.
    """

    def __init__(self, repository: str, files: dict[str, bytes]):
        self.repository = repository
        self.files = files
        self.requests: list[tuple[str, str, str | None]] = []
        self.break_after: list[int] = []
        self.damage = 0
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub._answer(self, with_body=False)

            def do_GET(self):
                hub._answer(self, with_body=True)

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request, *, with_body: bool):
        match = re.fullmatch(f"/{self.repository}/resolve/main/(.+)", request.path)
        content = self.files.get(match[1]) if match else None
        self.requests.append((request.command, request.path, request.headers.get("Range")))
        if content is None:
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        if wanted:
            start = int(wanted[1])
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        digest = hashlib.sha256(content).hexdigest()
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("ETag", f'"{digest}"')
        request.send_header("X-Linked-ETag", f'"{digest}"')
        request.send_header("X-Linked-Size", str(len(content)))
        request.send_header("X-Repo-Commit", "0" * 39 + "1")
        request.end_headers()
        if not with_body:
            return
        body = content[start:]
        if self.damage:
            self.damage -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self.break_after:
            request.wfile.write(body[: self.break_after.pop(0)])
            request.close_connection = True
            return
        request.wfile.write(body)
