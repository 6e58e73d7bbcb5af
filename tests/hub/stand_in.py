"""A small Hub for the tests: what `huggingface_hub` asks of the real one, in memory, over HTTP.

Repositories of all types, commits, pull requests, large files by LFS (Xet must be off), tokens, gated repositories, and
faults on demand. Sources of the endpoints: the client's own code (`hf_api.py`, `_commit_api.py`, `lfs.py`).
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34
"""Of the user "me"."""

WRONG_TOKEN = "Invalid credentials in Authorization header"
LARGE = (".safetensors", ".onnx", ".bin", ".png", ".jpg")


@dataclass
class Repository:
    """Files by commit, and the commit of each branch or pull request."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]

    def commit(self, files: dict[str, bytes], message: str, ref: str = "main") -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[sha], self.refs[ref] = files, sha
        self.messages.append(message)
        return sha


class Fault(NamedTuple):
    """What goes wrong once: where `place` is part of the path, `status` is answered; 0 drops the connection."""

    place: str
    status: int
    text: str = "as the test wants it"
    code: str = ""


@dataclass
class Hub:
    """The state of the stand-in; `faults` says what goes wrong next."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def repo(self, repo_id: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, repo_id]

    def add(self, repo_id: str, repo_type: str = "model", **settings: Any) -> Repository:
        repository = self.repositories[repo_type, repo_id] = Repository(**settings)
        repository.commit({".gitattributes": b""}, "initial commit")
        return repository


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A stand-in at a free port of this machine."""
    hub = Hub()
    handler = type("BoundHandler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def _answer(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {self.path_only}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunks()
        for fault in list(self.hub.faults):
            if fault.place in self.path_only:
                self.hub.faults.remove(fault)
                if not fault.status:
                    self.close_connection = True
                    self.connection.close()
                    return
                self._send({"error": fault.text}, fault.status, _headers(code=fault.code))
                return
        try:
            self._expect_no_other_token()
            self._route(body)
        except _Refused as refusal:
            self._send({"error": refusal.text}, refusal.status, refusal.headers)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, body: bytes) -> None:
        path = self.path_only
        routes = [
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda _: self._send({"errors": [], "warnings": []})),
            (r"/api/whoami-v2", lambda _: self._expect_token() or self._send({"name": "me", "type": "user"})),
            (r"/api/(\w+)s/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/(\w+)s/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/(\w+)s/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", self._tree),
            (r"/api/(\w+)s/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/(?:(space|dataset)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/store/(\w+)", self._store),
            (r"/(?:(space|dataset)s/)?([^/]+/[^/]+)/resolve/([^/]+|refs/pr/\d+)/(.+)", self._resolve),
        ]
        for pattern, answer in routes:
            if found := re.fullmatch(pattern, path):
                answer(body, *found.groups())
                return
        raise _Refused(404, f"no such endpoint: {path}")

    def _expect_no_other_token(self) -> None:
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            raise _Refused(401, WRONG_TOKEN, message=WRONG_TOKEN)

    def _expect_token(self) -> None:
        if self.headers.get("Authorization") is None:
            raise _Refused(401, "Invalid username or password.")

    def _repository(self, repo_type: str | None, repo_id: str) -> Repository:
        repository = self.hub.repositories.get((repo_type or "model", repo_id))
        is_known = self.headers.get("Authorization") is not None
        if repository is None or (repository.private and not (is_known and repo_id.startswith("me/"))):
            raise _Refused(404 if is_known else 401, "Repository not found", "RepoNotFound")
        return repository

    def _files(self, repository: Repository, revision: str | None) -> tuple[str, dict[str, bytes]]:
        sha = repository.refs.get(revision or "main", revision or "")
        if sha not in repository.commits:
            raise _Refused(404, "Invalid rev id", "RevisionNotFound")
        return sha, repository.commits[sha]

    def _create(self, body: bytes) -> None:
        self._expect_token()
        wanted = json.loads(body)
        key = (wanted.get("type") or "model", f"{wanted.get('organization') or 'me'}/{wanted['name']}")
        if key[1].split("/")[0] != "me":
            raise _Refused(403, "You don't have the rights to create a repository under this namespace")
        url = f"{self.hub.url}/{key[0] + 's/' if key[0] != 'model' else ''}{key[1]}"
        if key in self.hub.repositories:
            self._send({"error": "You already created this repo", "url": url}, 409)
            return
        self.hub.add(key[1], key[0], private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._send({"url": url, "name": key[1], "id": "0"})

    def _preupload(self, body: bytes, repo_type: str, repo_id: str, revision: str) -> None:
        self._expect_token()
        _, files = self._files(self._repository(repo_type, repo_id), revision)
        self._send(
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(one["path"], files.get(one["path"])),
                    }
                    for one in json.loads(body)["files"]
                ]
            }
        )

    def _batch(self, body: bytes, repo_type: str | None, repo_id: str) -> None:
        self._expect_token()
        objects = []
        for one in json.loads(body)["objects"]:
            there = one["oid"] in self.hub.large
            actions = {} if there else {"actions": {"upload": {"href": f"{self.hub.url}/store/{one['oid']}"}}}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        self._send({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "the content has another sum")
        self.hub.large[oid] = body
        self._send({})

    def _commit(self, body: bytes, repo_type: str, repo_id: str, revision: str) -> None:
        self._expect_token()
        repository = self._repository(repo_type, repo_id)
        files = dict(self._files(repository, revision)[1])
        message = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        is_pr = "create_pr=1" in self.path
        number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
        sha = repository.commit(files, message, f"refs/pr/{number}" if is_pr else revision)
        url = f"{self.hub.url}/{repo_id}"
        pull = {"pullRequestUrl": f"{url}/discussions/{number}"} if is_pr else {}
        self._send({"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", **pull})

    def _info(self, body: bytes, repo_type: str, repo_id: str, revision: str | None) -> None:
        repository = self._repository(repo_type, repo_id)
        sha, files = self._files(repository, revision)
        siblings = [{"rfilename": name} for name in files]
        self._send({"id": repo_id, "modelId": repo_id, "sha": sha, "private": repository.private, "siblings": siblings})

    def _tree(self, body: bytes, repo_type: str, repo_id: str, revision: str, folder: str | None) -> None:
        _, files = self._files(self._repository(repo_type, repo_id), revision)
        start = f"{folder}/" if folder else ""
        inside = {name: data for name, data in files.items() if name.startswith(start)}
        folders = {str(parent) for name in inside for parent in PurePosixPath(name).parents[:-1]}
        found = [{"type": "directory", "path": name, "oid": ""} for name in folders if name.startswith(start)]
        found += [
            {"type": "file", "path": name, "size": len(data), "oid": _oid(name, data)} for name, data in inside.items()
        ]
        is_deep = "recursive=true" in self.path.lower()
        listed = [one for one in found if is_deep or "/" not in str(one["path"])[len(start) :]]
        self._send(listed)

    def _resolve(self, body: bytes, repo_type: str | None, repo_id: str, revision: str, name: str) -> None:
        repository = self._repository(repo_type, repo_id)
        if repository.gated:
            raise _Refused(403, f"Access to model {repo_id} is restricted", "GatedRepo")
        sha, files = self._files(repository, revision)
        if name not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound", commit=sha)
        data = files[name]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(name, data)}"', "Content-Type": "application/octet-stream"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        self._send(data, 200, headers)

    def _send(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _Refused(Exception):  # noqa: N818
    def __init__(self, status: int, text: str, code: str = "", commit: str = "", message: str = "") -> None:
        self.status, self.text, self.headers = status, text, _headers(code, commit, message)


def _headers(code: str = "", commit: str = "", message: str = "") -> dict[str, str]:
    named = {"X-Error-Code": code, "X-Repo-Commit": commit, "X-Error-Message": message}
    return {name: value for name, value in named.items() if value}


def _oid(name: str, data: bytes | None) -> str | None:
    """The name of a file's content: git's for small files, SHA-256 for large ones."""
    if data is None:
        return None
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
