"""A stand-in of the labelling bench's server: it answers as the routes do, from phantoms, and does what it is told."""

import io
import json
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, jsonify, render_template, request
from jinja2 import FileSystemLoader
from markupsafe import Markup
from PIL import Image
from werkzeug.serving import make_server

from thyroid.data.filenames import CLASSES
from thyroid.imaging import images, phantom
from thyroid.label.readings import FEATURES, Reading

ROOT = Path(__file__).parents[2] / "thyroid"
FOLDERS = (ROOT / "label", ROOT / "web")


def words(language: str) -> dict[str, str]:
    """Return the bench's texts in a language."""
    found: dict[str, str] = {}
    for folder in reversed(FOLDERS):
        found |= json.loads((folder / "words" / f"{language}.json").read_text())
    return found


@dataclass
class Scan:
    """A frame of the stand-in.

    Attributes:
        data: JPEG.
        size: Width and height in pixels.
        roi: Box of its nodule: x, y, width and height.
        more: Fields of the answer to /api/next that differ from those of an ordinary frame.
    """

    data: bytes
    size: tuple[int, int]
    roi: tuple[int, int, int, int]
    more: dict[str, Any] = field(default_factory=dict)


class Bench:
    """A server on a free port.

    Attributes:
        scans: Its frames by id.
        saved: Readings by id, in the order of saving.
        bodies: What was posted to /api/reading.
        refuse: Answers (status, JSON) to the next posts, before any is saved again.
        gone: Ids of frames whose picture vanished.
        notes: Notes of every answer.
        signed_in: Whether the reader is known.
        free: While it is cleared, posts wait.
        token: What a post must send against forgery.
        agreement: What the page of agreement shows.
    """

    def __init__(self, count: int = 8, role: str = "reader") -> None:
        self.role = role
        self.free = threading.Event()
        self.scans = {f"{number:016x}": _scan(number) for number in range(1, count + 1)}
        self.agreement: Any = None
        self.reset()
        app = self._app()
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forget what was saved and what went wrong."""
        self.saved: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.refuse: list[tuple[int, dict[str, Any]]] = []
        self.gone: set[str] = set()
        self.notes: list[str] = []
        self.signed_in = True
        self.free.set()
        self.token = "token"
        for scan in self.scans.values():
            scan.more = {}

    def stop(self) -> None:
        self._server.shutdown()

    def progress(self) -> dict[str, Any]:
        done = len(self.saved)
        left = len(self.scans) - done
        return {"done": done, "of": len(self.scans), "left": left, "contested": 2, "suspects": 3, "second": 4} | {
            "per_hour": 412.0 if done else None,
            "minutes_left": left / 412 * 60 if done else None,
        }

    def next(self, queue: str, wanted: str | None, skip: list[str]) -> dict[str, Any]:
        """Return the answer to /api/next."""
        there = [one for one in self.scans if one not in skip and (queue == "review") == (one in self.saved)]
        found = wanted or next(iter(there), None)
        if found is None:
            return {"frame": None, "queue": queue, "progress": self.progress(), "notes": self.notes}
        scan = self.scans[found]
        (width, height), (x, y, w, h) = scan.size, scan.roi
        frame = {"id": found, "width": width, "height": height}
        return {
            "frame": frame | {"number": [*self.scans].index(found) + 1, "of": len(self.scans)},
            "queue": queue,
            "base": sum(body["id"] == found for body in self.bodies),
            "reading": self.saved.get(found),
            "proposals": [
                {"box": [x + 3, y + 2, w, h], "probability": 0.83},
                {"box": [20, 40, 60, 44], "probability": 0.07},
            ],
            "unsure": False,
            "suggested": {},
            "suspect": None,
            "candidates": None,
            "classes": [{"name": "B", "side": "benign"}, {"name": "M", "side": "malignant"}],
            "asks_side": False,
            "progress": self.progress(),
            "notes": self.notes,
        } | scan.more

    def save(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the answer to POST /api/reading."""
        if self.refuse:
            return self.refuse.pop(0)
        Reading.model_validate_json(json.dumps(body["reading"]))
        self.bodies.append(body)
        self.saved.pop(body["id"], None)
        self.saved[body["id"]] = body["reading"]
        return 200, {"number": len(self.bodies), "progress": self.progress()}

    def undo(self) -> tuple[int, dict[str, Any]]:
        """Return the answer to POST /api/undo."""
        if not self.saved:
            return 409, {"error": "There is nothing to undo."}
        frame, _ = self.saved.popitem()
        return 200, {"id": frame, "queue": "order"}

    def _app(self) -> Flask:
        app = Flask("tests.support", static_folder=None)
        app.jinja_loader = FileSystemLoader([folder / "templates" for folder in FOLDERS])
        app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True

        def page(name: str, **more: Any) -> str:
            language = request.args.get("lang") or request.accept_languages.best_match(("en", "ko")) or "en"
            texts = words(language)

            class Say:
                def __init__(self) -> None:
                    self.language = language

                def __call__(self, key: str, **values: Any) -> str:
                    return texts[key].format(**values) if values else texts[key]

            def asset(file: str) -> Markup:
                return Markup(next(p for f in FOLDERS if (p := f / "static" / file).is_file()).read_text())

            shared = {"w": Say(), "nonce": "n", "languages": ("en", "ko"), "asset": asset, "texts": texts}
            shared |= {"named": lambda one: words(one)["language"], "csrf_token": lambda: self.token}
            reader = {"name": "Reader One", "role": self.role} if self.signed_in else None
            return render_template(name, **shared, reader=reader, **more)

        app.add_url_rule("/", view_func=lambda: page("index.html", features=FEATURES), endpoint="index")
        app.add_url_rule("/login", view_func=lambda: page("login.html", problem=request.args.get("problem")))
        app.add_url_rule("/agreement", "agreement", lambda: page("agreement.html", **self.agreement))
        app.add_url_rule("/error", "error", lambda: page("error.html", sentences=["No such page."], base="bench.html"))

        @app.get("/frame/<name>")
        def frame(name: str) -> Any:
            if name in self.gone:
                return jsonify(error="The picture of this frame is gone."), 410
            return Response(self.scans[name].data, mimetype="image/jpeg") if name in self.scans else abort(404)

        @app.get("/api/next")
        def following() -> Any:
            args = request.args
            return jsonify(self.next(args["queue"], args.get("id"), args.getlist("skip")))

        @app.post("/api/reading")
        def reading() -> Any:
            self.free.wait(20)
            if request.headers["x-csrftoken"] != self.token:
                return jsonify(error="Reload the page."), 400, {"x-token": "expired"}
            if not self.signed_in:
                return jsonify(error="Sign in."), 401
            status, answer = self.save(request.get_json())
            return jsonify(answer), status

        @app.post("/api/undo")
        def undo() -> Any:
            status, answer = self.undo()
            return jsonify(answer), status

        return app


def _scan(number: int) -> Scan:
    drawn = phantom.draw(CLASSES[number % 2], patient=900 + number, image=1)
    data = images.encode(drawn.image, phantom.MARK)
    with Image.open(io.BytesIO(data)) as picture:
        return Scan(data, picture.size, tuple(map(int, drawn.roi)))
