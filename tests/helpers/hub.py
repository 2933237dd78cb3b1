"""A Hugging Face Hub on loopback: the HTTP calls of huggingface_hub for datasets and models, and failures."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import HfHubHTTPError

TOKEN = "hf_stand_in_secret"
_LARGE = (".parquet", ".safetensors")


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def oid_of(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(_LARGE) else git_sha1(data)


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Hash -> path -> content; the last one is `main`."""
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[commit] = files
        return commit

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """What a visitor sees, without the Hub's own."""
        return {path: data for path, data in self.commits[self.head].items() if path != ".gitattributes"}

    def resolve(self, revision: str) -> str | None:
        found = self.head if revision == "main" else self.tags.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class Failure:
    """Requests "METHOD /path" that match `request` are answered with `status`, `times` times."""

    request: str
    status: int
    times: int = 1000
    skip: int = 0
    """So many are let through first."""
    done_first: bool = False
    """The request is carried out, only its answer is lost."""


class StandIn(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        """Large files that were uploaded, whether a commit names them or not."""
        self.buckets: dict[str, dict[str, bytes]] = {}
        """USER/NAME -> path -> content."""
        self.failures: list[Failure] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def seen(self, pattern: str) -> list[str]:
        return [request for request in self.requests if re.search(pattern, request)]

    def failure(self, request: str) -> Failure | None:
        with self.lock:
            for failure in self.failures:
                if re.search(failure.request, request) and failure.times:
                    if failure.skip:
                        failure.skip -= 1
                        return None
                    failure.times -= 1
                    return failure
        return None


@contextmanager
def running_hub() -> Generator[StandIn]:
    with StandIn() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@contextmanager
def replaced_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[StandIn]:
    """The Hub that huggingface_hub talks to; it reads its settings from the environment only once, at import."""
    with running_hub() as stand_in:
        constants = {
            "ENDPOINT": stand_in.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": stand_in.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        }
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        # Content goes into buckets through Xet's own client, which is no HTTP of Python's.
        monkeypatch.setattr(huggingface_hub.HfApi, "batch_bucket_files", partialmethod(_fill_bucket, stand_in))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield stand_in
        huggingface_hub.close_session()


def _fill_bucket(
    api: huggingface_hub.HfApi,
    hub: StandIn,
    bucket_id: str,
    *,
    add: list[tuple[str | Path | bytes, str]] | None = None,
    delete: list[str] | None = None,
) -> None:
    """As `HfApi.batch_bucket_files`: one request, whose failure changes nothing."""
    request = f"POST /api/buckets/{bucket_id}/batch +{len(add or ())} -{len(delete or ())}"
    hub.requests.append(request)
    failure = hub.failure(request)
    status = failure.status if failure else 401 if api.token != TOKEN else 404 if bucket_id not in hub.buckets else 200
    if status != 200:
        asked = httpx.Request("POST", f"{hub.url}/api/buckets/{bucket_id}/batch")
        response: Any = httpx.Response(status, request=asked)
        raise HfHubHTTPError(f"{status} for {TOKEN}", response=response)
    for source, path in add or ():
        hub.buckets[bucket_id][path] = source if isinstance(source, bytes) else Path(source).read_bytes()
    for path in delete or ():
        del hub.buckets[bucket_id][path]


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two packets; the second would wait for the client's word on the first.
    disable_nagle_algorithm = True
    server: StandIn  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (as the base class names it)
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        failure = self.server.failure(request)
        try:
            if failure and not failure.done_first:
                raise _RefusedError(failure.status, message=f"you sent {self.headers.get('Authorization')}")
            status, headers, content = self.carry_out(path)
            if failure:
                raise _RefusedError(failure.status)
        except _RefusedError as refused:
            status, content = refused.status, json.dumps({"error": refused.message}).encode()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def carry_out(self, path: str) -> tuple[int, dict[str, str], bytes]:
        routes = {
            r"GET /api/whoami-v2": self.whoami,
            r"POST /api/repos/create": self.create,
            r"POST /api/validate-yaml": dict,
            r"GET /api/(?:datasets|models)/([^/]+/[^/]+)(?:/revision/(.+))?": self.info,
            r"GET /api/(?:datasets|models)/([^/]+/[^/]+)/tree/([^/]+)(/.*)?": self.tree,
            r"POST /api/(?:datasets|models)/([^/]+/[^/]+)/paths-info/([^/]+)": self.paths_info,
            r"POST /api/(?:datasets|models)/([^/]+/[^/]+)/preupload/(.+)": self.preupload,
            r"POST /api/(?:datasets|models)/([^/]+/[^/]+)/commit/(.+)": self.commit,
            r"POST /(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch": self.batch,
            r"PUT /upload/(\w+)": self.upload,
            r"POST /verify/(\w+)": self.verify,
            r"(POST|GET) /api/buckets/([^/]+/[^/]+)": self.bucket,
            r"GET /api/buckets/([^/]+/[^/]+)/tree(?:/(.+))?": self.bucket_tree,
            r"POST /api/buckets/([^/]+/[^/]+)/paths-info": self.bucket_paths,
            r"(?:GET|HEAD) /buckets/([^/]+/[^/]+)/resolve/(.+)": self.bucket_content,
            r"(?:GET|HEAD) /(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.resolve,
        }
        for route, call in routes.items():
            if match := re.fullmatch(route, f"{self.command} {path}"):
                found: Any = call(*match.groups())
                if isinstance(found, tuple):
                    return found
                return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        raise _RefusedError(404, message=f"no such route: {self.command} {path}")

    def bucket(self, method: str, name: str) -> Any:
        if method == "POST":
            self.writer()
            if name in self.server.buckets:
                raise _RefusedError(409)
            self.server.buckets[name] = {}
            return {"url": f"{self.server.url}/buckets/{name}"}
        files = self.in_bucket(name)
        size = sum(map(len, files.values()))
        created = "2026-01-01T00:00:00.000Z"
        return {"id": name, "private": False, "createdAt": created, "size": size, "totalFiles": len(files)}

    def bucket_tree(self, name: str, prefix: str | None) -> Any:
        return [
            self.bucket_entry(path, data)
            for path, data in self.in_bucket(name).items()
            if path.startswith(prefix or "")
        ]

    def bucket_paths(self, name: str) -> Any:
        wanted = json.loads(self.body)["paths"]
        return [self.bucket_entry(path, data) for path, data in self.in_bucket(name).items() if path in wanted]

    def bucket_content(self, name: str, path: str) -> Any:
        if path not in self.in_bucket(name):
            raise _RefusedError(404, "EntryNotFound")
        return self.content(self.in_bucket(name)[path], {})

    def in_bucket(self, name: str) -> dict[str, bytes]:
        if name not in self.server.buckets:
            raise _RefusedError(404, "RepoNotFound")
        return self.server.buckets[name]

    @staticmethod
    def bucket_entry(path: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(data), "xetHash": hashlib.sha256(data).hexdigest()}

    def writer(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _RefusedError(401, message="Invalid credentials in Authorization header")

    def repo(self, name: str) -> Repo:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise _RefusedError(401 if repo else 404, "RepoNotFound")
        return repo

    def at(self, name: str, revision: str | None) -> tuple[Repo, str]:
        repo = self.repo(name)
        commit = repo.resolve(revision or "main")
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound")
        return repo, commit

    def whoami(self) -> Any:
        self.writer()
        return {"name": "me", "type": "user"}

    def create(self) -> Any:
        self.writer()
        wanted = json.loads(self.body)
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        url = f"{self.server.url}/datasets/{name}"
        if name in self.server.repos:
            return 409, {}, json.dumps({"error": "You already created this repo", "url": url}).encode()
        repo = self.server.repos[name] = Repo(
            private=wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        repo.commit({".gitattributes": b"*.parquet filter=lfs"})
        return {"url": url}

    def info(self, name: str, revision: str | None) -> Any:
        repo, commit = self.at(name, revision)
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        return {"id": name, "sha": commit, "private": repo.private, "tags": [], "siblings": siblings}

    def tree(self, name: str, revision: str, below: str | None) -> Any:
        repo, commit = self.at(name, revision)
        folder = below.strip("/") + "/" if below else ""
        files = {path: data for path, data in repo.commits[commit].items() if path.startswith(folder)}
        if folder and not files:
            raise _RefusedError(404, "EntryNotFound")
        if parse_qs(urlsplit(self.path).query).get("recursive") == ["true"]:
            return [*self.folders(files), *(self.entry(path, data) for path, data in files.items())]
        here = {path: data for path, data in files.items() if "/" not in path.removeprefix(folder)}
        folders = [entry for entry in self.folders(files) if "/" not in entry["path"].removeprefix(folder)]
        return [*folders, *(self.entry(path, data) for path, data in here.items())]

    def paths_info(self, name: str, revision: str) -> Any:
        repo, commit = self.at(name, revision)
        fields = parse_qs(self.body.decode())
        wanted = fields["paths"] if fields else json.loads(self.body)["paths"]
        files = repo.commits[commit]
        found = [*self.folders(files), *(self.entry(path, data) for path, data in files.items())]
        return [entry for entry in found if entry["path"] in wanted]

    @staticmethod
    def folders(files: dict[str, bytes]) -> list[dict[str, Any]]:
        names = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
        return [
            {"type": "directory", "path": name, "size": 0, "oid": git_sha1(name.encode())} for name in sorted(names)
        ]

    @staticmethod
    def entry(path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
        if path.endswith(_LARGE):
            entry["lfs"] = {"oid": oid_of(path, data), "size": len(data), "pointerSize": 130}
        return entry

    def preupload(self, name: str, revision: str) -> Any:
        self.writer()
        repo, commit = self.at(name, revision)
        there = repo.commits[commit]
        files = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            mode = "lfs" if path.endswith(_LARGE) else "regular"
            known = {"oid": oid_of(path, there[path])} if path in there else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": files}

    def batch(self, name: str) -> Any:
        self.writer()
        self.repo(name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                hrefs = {kind: {"href": f"{self.server.url}/{kind}/{wanted['oid']}"} for kind in ("upload", "verify")}
                answer["actions"] = hrefs
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(400, message="not what was announced")
        self.server.objects[oid] = self.body
        return {}

    def verify(self, oid: str) -> Any:
        if oid not in self.server.objects:
            raise _RefusedError(404, message="was not uploaded")
        return {}

    def commit(self, name: str, revision: str) -> Any:
        self.writer()
        repo, parent = self.at(name, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(repo.commits[parent])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", parent) != parent:
                        raise _RefusedError(412, message="A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.server.objects:
                        raise _RefusedError(400, message=f"{value['path']} was not uploaded")
                    files[value["path"]] = self.server.objects[value["oid"]]
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise _RefusedError(404, "EntryNotFound", "A file with this name doesn't exist")
                case other:
                    raise _RefusedError(400, message=other)
        commit = repo.commit(files)
        return {"commitUrl": f"{self.server.url}/datasets/{name}/commit/{commit}", "commitOid": commit, "success": True}

    def resolve(self, name: str, revision: str, path: str) -> Any:
        repo, commit = self.at(name, revision)
        data = repo.commits[commit].get(path)
        if data is None:
            raise _RefusedError(404, "EntryNotFound")
        return self.content(data, {"X-Repo-Commit": commit, "ETag": f'"{oid_of(path, data)}"'})

    def content(self, data: bytes, headers: dict[str, str]) -> Any:
        headers = {**headers, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or self.command == "HEAD":
            return 200, headers, data
        first = int(wanted[1]) if wanted[1] else len(data) - int(wanted[2])
        last = min(int(wanted[2]), len(data) - 1) if wanted[1] and wanted[2] else len(data) - 1
        return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]
