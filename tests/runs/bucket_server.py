"""Google Cloud Storage's JSON interface in memory, as much of it as gcsfs, TensorStore and
google-cloud-storage use here: objects with generations, on 127.0.0.1."""

import contextlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self, code: int, value: object = None, headers=()) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value or {}).encode()
        if code in (204, 304):
            body = b""
        self.send_response(code)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        options = dict(urllib.parse.parse_qsl(url.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            if url.path.startswith("/batch"):
                return self._batch(body)
            self._answer(*self._result(self.command, url.path, options, body))

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle

    def _batch(self, body: bytes) -> None:
        """Deletes many objects: a multipart of requests, answered by one of answers."""
        parts = []
        for path in re.findall(rb"DELETE (\S+) HTTP", body):
            url = urllib.parse.urlsplit(path.decode())
            code, *_ = self._result("DELETE", url.path, {}, b"")
            number = len(parts) + 1
            head = f"Content-Type: application/http\r\nContent-ID: <response-{number}>"
            parts.append(f"--B\r\n{head}\r\n\r\nHTTP/1.1 {code} -\r\nContent-Length: 0\r\n\r\n\r\n")
        self.send_response(200)
        text = ("".join(parts) + "--B--\r\n").encode()
        self.send_header("Content-Type", "multipart/mixed; boundary=B")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _result(self, method: str, path: str, options: dict, body: bytes) -> tuple:
        """Status, body and headers of an answer."""
        match = re.fullmatch(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path)
        if match is None:
            return 501, {}
        name = urllib.parse.unquote(match[3] or "")
        if match[1] == "upload":
            return self._upload(options, body)
        if not path.split(match[2], 1)[1]:
            return 200, {"name": match[2], "kind": "storage#bucket"}
        if not name:
            return 200, self._list(options)
        if copied := re.fullmatch(r"(.+)/(?:rewrite|copy|move)To/(?:b/[^/]+/)?o/(.+)", name):
            data = self.server.objects[copied[1]][0]
            stored = self._store(urllib.parse.unquote(copied[2]), data)
            if "/moveTo/" in name:
                del self.server.objects[copied[1]]
            return 200, {"done": True, "resource": stored} if "/rewriteTo/" in name else stored
        if name not in self.server.objects:
            return 404, {"error": {"code": 404, "message": f"No such object: {name}"}}
        data, generation = self.server.objects[name]
        if options.get("ifGenerationNotMatch") == str(generation):
            return 304, b""
        if options.get("ifGenerationMatch", str(generation)) != str(generation):
            return 412, {}
        if method == "DELETE":
            del self.server.objects[name]
            return 204, b""
        if options.get("alt") != "media":
            return 200, self._about(name)
        headers = {"x-goog-generation": str(generation)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, data, headers
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if first >= len(data):
            return 416, {}
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return 206, data[first : last + 1], headers

    def _upload(self, options: dict, body: bytes) -> tuple:
        name = options.get("name")
        if "upload_id" in options:  # a piece of a resumable upload, the last one with its size
            name, sent = self.server.uploads[options["upload_id"]]
            sent += body
            span = self.headers.get("Content-Range", "bytes */0")
            if span.endswith("*"):
                return 308, b"", {"Range": f"bytes=0-{len(sent) - 1}"}
            return 200, self._store(name, bytes(sent))
        if options["uploadType"] == "resumable":
            key = str(len(self.server.uploads))
            name = name or json.loads(body)["name"]
            self.server.uploads[key] = (name, bytearray())
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/bucket/o?upload_id={key}"
            return 200, {}, {"Location": where}
        if options["uploadType"] == "multipart":
            boundary = re.search("boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1]
            _, about, data, _ = body.split(b"--" + boundary.encode())
            name = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            body = re.sub(rb"\r?\n$", b"", re.split(rb"\r?\n\r?\n", data, maxsplit=1)[1])
        now = self.server.objects.get(name, (b"", 0))[1]
        if int(options.get("ifGenerationMatch", now)) != now:
            return 412, {}
        return 200, self._store(name, body)

    def _store(self, name: str, data: bytes) -> dict:
        self.server.generation += 1
        self.server.objects[name] = (data, self.server.generation)
        return self._about(name)

    def _about(self, name: str) -> dict:
        data, generation = self.server.objects[name]
        now = "2026-01-01T00:00:00Z"
        return {"name": name, "bucket": "bucket", "size": str(len(data)), "updated": now} | {
            "generation": str(generation), "metageneration": "1", "timeCreated": now
        }  # fmt: skip

    def _list(self, options: dict) -> dict:
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter")
        first, end = options.get("startOffset", ""), options.get("endOffset")
        items, prefixes = [], set()
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or name < first or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self._about(name))
        return {"items": items, "prefixes": sorted(prefixes)}

    def log_message(self, *unused: object) -> None:
        pass


@contextlib.contextmanager
def bucket_server() -> Iterator[tuple[dict, dict[str, str]]]:
    """Serves `gs://bucket`.

    Yields:
        Its objects, (bytes, generation) by name, and the environment with which it is found.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.lock, server.objects, server.uploads = threading.RLock(), {}, {}
    server.generation = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record's
        "TENSORSTORE_GCS_HTTP_URL": address,
        "NO_PROXY": "127.0.0.1",
        # No credentials, nobody to ask for them, and no gRPC.
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
    }
    try:
        yield server.objects, environment
    finally:
        server.shutdown()
        server.server_close()
