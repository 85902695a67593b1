"""A stand-in for W&B's server, on this machine: what of its protocol the client needs to log or send a run.

It keeps rows where the client says they belong; what a real server does besides (merging, charts) it cannot show.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


@dataclass
class ServedRun:
    """What the server has of a run."""

    name: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: str = "{}"
    exit_codes: list[int] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, ServedRun] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, operation: str | None, variables: dict[str, Any]) -> dict[str, Any] | None:
        if operation == "UpsertBucket":
            run = self.runs.setdefault(variables["name"], ServedRun(variables.get("displayName") or ""))
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": variables["name"], "displayName": run.name, "historyLineCount": len(run.rows)}
            empty = {"description": None, "sweepName": None, "config": variables["config"]}
            return {"upsertBucket": {"bucket": {**bucket, **empty, "project": project}, "inserted": True}}
        if operation == "RunResumeStatus":
            model = {"id": "m", "name": "p", "entity": {"id": "e", "name": "me"}}
            return {"model": {**model, "bucket": self.bucket(**variables)}}
        return {"viewer": VIEWER} if operation in ("Viewer", None) else None

    def bucket(self, *, name: str, **_: Any) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        lines = {"logLineCount": 0, "historyLineCount": len(run.rows), "eventsLineCount": 0, "eventsTail": "[]"}
        tail = json.dumps([json.dumps(row) for row in run.rows[-1:]])
        kept = {"summaryMetrics": run.summary, "historyTail": tail, "config": "{}", "wandbConfig": '{"t": 1}'}
        return {"id": "b", "name": name, "displayName": run.name, "tags": [], "notes": None, **lines, **kept}

    def stream(self, name: str, content: dict[str, Any]) -> None:
        run, files = self.runs[name], content.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            rows = [json.loads(line) for line in history["content"]]
            run.rows[history["offset"] : history["offset"] + len(rows)] = rows
        if summary := files.get("wandb-summary.json"):
            run.summary = summary["content"][-1]
        if content.get("complete"):
            run.exit_codes.append(content["exitcode"])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        if self.path.endswith("/graphql"):
            query = json.loads(body)
            data = self.server.answer(query.get("operationName"), query.get("variables") or {})
            self.reply({"data": data} if data else {"data": None, "errors": [{"message": "unknown here"}]})
            return
        if self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body))
        self.reply({})

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
