"""Run directories without a W&B log, and a local fake of W&B's HTTP API."""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

KEY = "a" * 40
TIME = "2026-01-01T00:00:00Z"
PROJECT = {
    "id": "UHJvamVjdDox", "internalId": "UHJvamVjdDox", "name": "metalearn", "entityName": "me",
    "createdAt": TIME, "isBenchmark": False, "user": None,
}  # fmt: skip
VIEWER = {
    "id": "1", "entity": "me", "username": "me", "name": "Me", "email": "", "admin": False, "flags": "{}",
    "deletedAt": None, "apiKeys": None, "teams": {"edges": [{"node": {"name": "team"}}]},
}  # fmt: skip
RUN = {
    "id": "1", "displayName": "run", "config": "{}", "sweepName": None, "historyLineCount": 0,
    "project": {"id": "1", "name": "metalearn", "entity": {"id": "1", "name": "me"}},
}  # fmt: skip


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """`make_run(name, seed=0, ...)`: a finished run directory without a W&B log."""

    def make(name: str, seed: int = 0, rate: float = 0.1, state: str = "finished", **log: Any) -> Path:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        config = {"seed": seed, "name": "toy/rates", "role": "train", "task": {"name": "digits"},
                  "method": {"name": "supervised", "learning_rate": rate},
                  "train": {"steps": 30, "monitor": "valid/error", "goal": "min"},
                  "log": {"name": "none", "project": "metalearn", "tags": ["t"], **log}}  # fmt: skip
        (path / "run.yaml").write_text(OmegaConf.to_yaml(config))
        (path / "status.json").write_text(json.dumps({"state": state, "step": 30, "message": ""}))
        (path / "provenance.json").write_text(
            json.dumps({"wandb_id": f"id{name.replace('_', '')}", "history": []})
        )
        rows = [{"step": step, "valid/error": rate * 10 + seed + 30 / step} for step in (10, 20, 30)]
        rows += [{"step": 30, "test/error": 2.0 + rate + seed}]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


class Fake:
    """W&B's API as far as publishing asks: it keeps what came in, its answers are the least that will do."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []  # operation, variables
        self.rows: dict[str, list[dict[str, Any]]] = {}  # run id -> history
        self.keys: set[str] = set()
        self.key = KEY
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                asked = self.headers.get("Content-Type") == "application/json"  # the rest is W&B's telemetry
                fake.keys.add(self.headers.get("Authorization") or "")
                answer = json.dumps(fake.answer(self.path, json.loads(body)) if asked else {}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows.setdefault(path.split("/")[-2], []).extend(map(json.loads, lines))
            return {}
        query, variables = body.get("query", ""), body.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else path
        self.asked.append((name, variables))
        return {"data": self.data(name, variables)}

    def data(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": {**RUN, "name": variables.get("name")}, "inserted": True}}
        if name == "upsertView":
            view = {"id": "Vmlldzox", "name": "v", "description": "", "project": PROJECT, "type": "runs",
                    "createdAt": TIME, "updatedAt": TIME}  # fmt: skip
            view |= {key: variables.get(key) for key in ("displayName", "spec")}
            return {"upsertView": {"view": view, "inserted": True}}
        if name == "GetProjects":
            page = {"hasNextPage": False, "endCursor": None}
            return {"models": {"edges": [{"node": PROJECT, "cursor": "1"}], "pageInfo": page}}
        if name == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.address}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if name == "ProjectInternalId":
            return {"project": PROJECT}
        return {"viewer": VIEWER}  # what asks for anything else finds nothing of it


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def publish(tmp_path) -> Callable[..., SimpleNamespace]:
    """`publish(server, *arguments, key=KEY)`: the command, in a process of its own."""

    def run(server: str, *arguments: Any, key: str | None = KEY) -> SimpleNamespace:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        own = {"WANDB_BASE_URL": server, "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
        own |= {"WANDB_API_KEY": key} if key else {}
        done = subprocess.run(
            [sys.executable, "-m", "metalearn", "publish", *map(str, arguments)],
            env=clean | own, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        return SimpleNamespace(code=done.returncode, said=done.stdout + done.stderr)

    return run
