"""A stand-in for the Hugging Face Hub on 127.0.0.1: the HTTP calls of `huggingface_hub`, answered from memory.

It behaves as the Hub does: large files go up by LFS and come back by a redirect to another host, a private repository
is "not found" for strangers, and a model card with bad metadata is refused. It is also the proxy of the processes that
use it: a request to any other host ends here and is noted.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

TOKEN = "hf_" + "t" * 34  # of the one user, who is called "me"
LARGE = (".safetensors", ".bin", ".parquet")
Files = dict[str, bytes]  # path → content


class Refused(Exception):
    """An error answer: its status, and the code and words that the client reads from the headers."""

    def __init__(self, status: int, words: str, code: str = "", **more: str) -> None:
        super().__init__(words)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": words, **more}


def oid_of(path: str, data: bytes) -> str:
    """The sha256 of a large file, the git hash of any other."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def card_of(readme: bytes) -> dict[str, Any]:
    """A card's metadata, which must be as the Hub wants them."""
    try:
        card = ModelCard(readme.decode()).data.to_dict()
        for names in (card.get("base_model") or [], card.get("datasets") or []):
            for name in [names] if isinstance(names, str) else names:
                validate_repo_id(name)
    except (ValueError, yaml.YAMLError) as error:
        raise Refused(400, f"Invalid metadata in README.md: {error}") from error
    return card


@dataclass
class Repository:
    """Commits in their order, hash → (title, all files), and the branches and tags that name them."""

    private: bool
    commits: dict[str, tuple[str, Files]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str, title: str, files: Files) -> str:
        sha = hashlib.sha1(repr((list(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha], self.refs[revision] = (title, files), sha
        return sha

    def find(self, revision: str) -> tuple[str, Files]:
        """The hash and the files of a branch, a tag or a hash."""
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, self.commits[sha][1]


class HubStandIn:
    """The store, and the server while it is entered as a context. A data set's name starts with `datasets/`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: Files = {}  # by sha256
        self.asked: list[tuple[str, str, bool]] = []  # method, path, whether the token came along
        self.strangers: list[str] = []  # requests to other hosts

    def __enter__(self) -> "HubStandIn":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        port = self.server.server_address[1]
        self.url, self.elsewhere = f"http://127.0.0.1:{port}", f"http://localhost:{port}"  # a host for large files
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def get(self, name: str, known: bool) -> Repository:
        """The repository; a private one is, for strangers, as one that is not there."""
        found = self.repositories.get(name)
        if found is None or (found.private and not known):
            raise Refused(404 if known else 401, "Repository not found", "RepoNotFound")
        return found

    def files(self, name: str, revision: str = "main") -> Files:
        return self.get(name, known=True).find(revision)[1]

    def environment(self, home: object, token: str = "") -> dict[str, str]:
        """Variables for a process whose only Hub and way out this is; `home` is its cache, `token` logs it in."""
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        proxies = {**dict.fromkeys(names, self.url), "NO_PROXY": "127.0.0.1,localhost"}
        proxies |= {name.lower(): value for name, value in proxies.items()}
        off = dict.fromkeys(("HF_HUB_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS"), "0")
        off |= {f"HF_HUB_DISABLE_{name}": "1" for name in ("XET", "TELEMETRY", "PROGRESS_BARS")}
        return {**off, **proxies, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": token}


class Handler(BaseHTTPRequestHandler):
    """One HTTP request; `ROUTES` says which method answers it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets; together with delayed receipts it costs 40 ms
    hub: HubStandIn

    def handle_any(self) -> None:
        url, sent = urlsplit(self.path), self.headers.get("Authorization")
        if self.command == "CONNECT" or url.netloc:
            if not url.netloc.startswith("datasets-server."):  # it belongs to the Hub, and may be away
                self.hub.strangers.append(self.path)
            return self.answer("there is no way out", 403)
        self.known, path = sent == f"Bearer {TOKEN}", unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append((self.command, path, self.known))
        try:
            if sent and not self.known:
                raise Refused(401, "Invalid credentials in Authorization header")
            for methods, pattern, name in ROUTES:
                if self.command in methods.split() and (found := re.fullmatch(pattern, path)):
                    return getattr(self, name)(**found.groupdict())
            raise Refused(404, f"The stand-in has no answer to {self.command} {path}")
        except Refused as refused:
            errors = {"error": str(refused), "errors": [{"message": str(refused)}]}
            self.answer(errors, refused.status, **refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = handle_any

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        """Sends bytes as they are and everything else as JSON."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response_only(status)  # which, unlike `send_response`, logs nothing
        for key, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def find(self, kind: str | None, repo: str, write: bool = False) -> Repository:
        if write and not self.known:
            raise Refused(401, "Invalid username or password.")
        return self.hub.get(f"datasets/{repo}" if kind and kind.startswith("datasets") else repo, self.known)

    def create(self) -> None:
        asked = json.loads(self.body)
        if not self.known:
            raise Refused(401, "Invalid username or password.")
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        name = f"datasets/{name}" if asked.get("type") == "dataset" else name
        if not (there := name in self.hub.repositories):
            self.hub.repositories[name] = repository = Repository(asked.get("visibility") == "private")
            repository.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs"})
        self.answer({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def validate_yaml(self) -> None:
        card_of(json.loads(self.body)["content"].encode())
        self.answer({})

    def info(self, kind: str, repo: str, rev: str | None) -> None:
        repository = self.find(kind, repo)
        sha, files = repository.find(rev or "main")
        card = card_of(files["README.md"]) if "README.md" in files else {}
        shown = {key: card[key] for key in ("pipeline_tag", "library_name", "tags") if key in card}
        self.answer({"id": repo, "sha": sha, "private": repository.private, **shown})

    def tree(self, kind: str, repo: str, rev: str, folder: str | None = None) -> None:
        files = self.find(kind, repo).find(rev)[1]
        inside = {path: data for path, data in files.items() if path.startswith(f"{folder}/" if folder else "")}
        shown = [{"path": path, "size": len(data), "oid": oid_of(path, data)} for path, data in inside.items()]
        if folder and not inside:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        self.answer([{"type": "file", **entry} for entry in shown])

    def preupload(self, kind: str, repo: str, rev: str) -> None:
        """By which way each file is to come, and its hash in the repository: what has not changed does not come."""
        there, answers = self.find(kind, repo, write=True).find(rev)[1], []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            oid = oid_of(path, there[path]) if path in there else None
            mode = "lfs" if path.endswith(LARGE) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": answers})

    def lfs_batch(self, kind: str | None, repo: str) -> None:
        self.find(kind, repo, write=True)
        wanted = [entry for entry in json.loads(self.body)["objects"] if entry["oid"] not in self.hub.large]
        for entry in wanted:
            there = {"href": f"{self.hub.url}/lfs/{entry['oid']}"}
            entry["actions"] = {"upload": there, "verify": there}
        self.answer({"transfer": "basic", "objects": wanted})

    def lfs(self, oid: str) -> None:
        """PUT uploads a large file, POST asks whether it has arrived, GET sends it."""
        if self.command == "PUT" and hashlib.sha256(self.body).hexdigest() == oid:
            self.hub.large[oid] = self.body
        elif oid not in self.hub.large:
            raise Refused(404, "There is no file of that hash")
        self.answer(self.hub.large[oid] if self.command == "GET" else b"")

    def commit(self, kind: str, repo: str, rev: str) -> None:
        repository = self.find(kind, repo, write=True)
        files = dict(repository.find(rev)[1])
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        for value in (operation["value"] for operation in operations):
            large = self.hub.large.get(value.get("oid"))
            files[value["path"]] = base64.b64decode(value["content"]) if large is None else large
        sha = repository.commit(rev, header["value"]["summary"], files)
        self.answer({"commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def resolve(self, kind: str | None, repo: str, rev: str, path: str) -> None:
        sha, files = self.find(kind, repo).find(rev)
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound", X_Repo_Commit=sha)
        oid = oid_of(path, files[path])
        if not path.endswith(LARGE):
            return self.answer(files[path], X_Repo_Commit=sha, ETag=f'"{oid}"')
        linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(files[path]))}
        self.answer(b"", 302, X_Repo_Commit=sha, Location=f"{self.hub.elsewhere}/lfs/{oid}", **linked)


API = r"/api/(?P<kind>models|datasets)/(?P<repo>[\w.-]+/[\w.-]+)"
REPOSITORY = r"/(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+?)"
REVISION = r"(?P<rev>[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", rf"{API}(/revision/{REVISION})?", "info"),
    ("GET", rf"{API}/tree/{REVISION}(/(?P<folder>.+))?", "tree"),
    ("POST", rf"{API}/preupload/{REVISION}", "preupload"),
    ("POST", rf"{API}/commit/{REVISION}", "commit"),
    ("POST", rf"{REPOSITORY}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("GET PUT POST", r"/lfs/(?P<oid>\w+)", "lfs"),
    ("GET HEAD", rf"{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]
