"""The Flask application of the bench: every route, and the checks in front of them.

The log holds no name, token, file name, address or reading. Pictures and readings are answered only to a session that
a reader has opened with a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, jsonify, redirect, render_template, request, session
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_wtf.csrf import CSRFProtect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.label.frames import Frame, GoneError
from thyroid.label.journal import ErasedError, NothingToUndoError, StaleError, UnwritableError
from thyroid.label.order import Queue
from thyroid.label.readings import FEATURES, Effort, Reading
from thyroid.label.server.bench import AdjudicationError, Bench
from thyroid.label.server.readers import Readers
from thyroid.web import channel, shell, words
from thyroid.web.upload import PageError

FOLDERS = (Path(__file__).parents[1], words.PAGE)
RATE = "600 per minute"
"""Limit on the requests of one reader: more than the fastest hand needs."""
TRIES = "10 per minute"
"""Limit on the wrong tokens of one address."""
MOST_SKIPPED = 100
"""Frames that a request may leave out."""
_OPEN = ("login", "sign_in", "health")
"""Routes without a session."""
_MIMES = {"JPEG": "image/jpeg", "PNG": "image/png"}


@dataclass(frozen=True)
class Options:
    """What the application is made of.

    Attributes:
        bench: The bench, which is started already.
        readers: Who may use it.
        secret: Key that signs the sessions, the same in every replica. None for a random key: then everyone signs in
            again after a restart.
    """

    bench: Bench
    readers: Readers
    secret: str | None = None


class _Save(BaseModel):
    """Body of POST /api/reading."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=32)
    queue: Queue
    base: int = Field(ge=0)
    reading: Reading
    effort: Effort = Effort()


def create(options: Options) -> Flask:
    """Create the application, ready for a WSGI server."""
    kind = shell.Kind(
        name="thyroid-label",
        log="thyroid.label",
        folders=FOLDERS,
        secret=options.secret,
        largest=channel.LITTLE,
        total=1,
    )
    app = shell.create(kind)
    limiter = Limiter(get_remote_address, app=app, storage_uri="memory://", headers_enabled=True)
    csrf = CSRFProtect(app)
    _add_sessions(app, options.readers)
    _add_login(app, options.readers, limiter, csrf)
    _add_pages(app, options.bench)
    _add_reading_routes(app, options.bench, limiter, csrf)
    shell.add_error_handlers(app, kind, _explain)
    _add_error_handlers(app)
    return app


def _add_sessions(app: Flask, readers: Readers) -> None:
    """Let nobody in without a session."""

    @app.before_request
    def admit() -> Any:
        g.reader = None
        name, proof = session.get("reader"), session.get("proof")
        if isinstance(name, str) and isinstance(proof, str):
            g.reader = readers.returning(name, proof)
        if request.endpoint is None or request.endpoint in _OPEN or g.reader is not None:
            return None
        if request.endpoint == "index" and "token" in request.args:
            return None  # the route signs in
        if _wants_json():
            raise PageError("error_login", status=HTTPStatus.UNAUTHORIZED)
        return render_template("login.html", problem=None), HTTPStatus.UNAUTHORIZED

    @app.context_processor
    def reader() -> dict[str, Any]:
        return {"reader": g.reader}


def _add_login(app: Flask, readers: Readers, limiter: Limiter, csrf: CSRFProtect) -> None:
    def wrong(response: Response) -> bool:
        return response.status_code == HTTPStatus.UNAUTHORIZED

    def sign_in_with(token: str) -> Any:
        reader = readers.of(token.strip())
        if reader is None:
            return render_template("login.html", problem=g.words("login_wrong")), HTTPStatus.UNAUTHORIZED
        session.clear()
        session["reader"], session["proof"] = reader.name, readers.proof(reader)
        return redirect("/", HTTPStatus.SEE_OTHER)  # to an address without the token

    tries: Callable[..., Any] = limiter.shared_limit(TRIES, scope="login", deduct_when=wrong)

    @app.get("/")
    @tries
    def index() -> Any:
        if "token" in request.args:
            return sign_in_with(request.args["token"])
        texts = g.words.starting("")
        return render_template("index.html", texts=texts, features=FEATURES)

    @app.get("/login")
    def login() -> Any:
        return redirect("/", HTTPStatus.SEE_OTHER) if g.reader else render_template("login.html", problem=None)

    @app.post("/login")
    @tries
    def sign_in() -> Any:
        csrf.protect()
        return sign_in_with(request.form.get("token", ""))

    @app.post("/logout")
    def logout() -> Any:
        csrf.protect()
        session.clear()
        return redirect("/login", HTTPStatus.SEE_OTHER)


def _add_pages(app: Flask, bench: Bench) -> None:
    @app.get("/frame/<id>")
    def frame(id: str) -> Response:
        data = bench.catalogue.bytes(_frame(bench, id))
        return Response(data, mimetype=_MIMES[images.kind(data) or "JPEG"])

    @app.get("/agreement")
    def agreement() -> str:
        return render_template("agreement.html", agreement=bench.agreement(), progress=bench.progress(g.reader))

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="ok")


def _add_reading_routes(app: Flask, bench: Bench, limiter: Limiter, csrf: CSRFProtect) -> None:
    def whose() -> str:
        return str(g.reader.name if g.reader is not None else get_remote_address())

    limited: Callable[..., Any] = limiter.limit(RATE, key_func=whose)

    @app.get("/api/next")
    @limited
    def following() -> Response:
        try:
            queue = Queue(request.args.get("queue", Queue.ORDER))
        except ValueError:
            raise PageError("error_field", {"field": "queue"}) from None
        wanted = _frame(bench, request.args["id"]) if request.args.get("id") else None
        skipped = (bench.catalogue.of(id) for id in request.args.getlist("skip")[:MOST_SKIPPED])
        answer = bench.next(g.reader, queue, wanted, {one.path for one in skipped if one is not None})
        return jsonify(answer | {"notes": [*answer["notes"], *_notes(bench)]})

    @app.post("/api/reading")
    @limited
    def reading() -> Any:
        csrf.protect()
        body = _body()
        frame = _frame(bench, body.id)
        _check(bench, frame, body.reading)
        try:
            entry = bench.save(g.reader, body.queue, frame, base=body.base, reading=body.reading, effort=body.effort)
        except StaleError as error:
            now = error.current
            current = None if now is None or now.reading is None else now.reading.model_dump(mode="json")
            told = {"error": g.words("error_stale"), "current": current, "base": 0 if now is None else now.number}
            return jsonify(told), HTTPStatus.CONFLICT
        return jsonify(number=entry.number, progress=bench.progress(g.reader))

    @app.post("/api/undo")
    @limited
    def undo() -> Response:
        csrf.protect()
        id, queue = bench.undo(g.reader)
        return jsonify(id=id, queue=queue)


def _add_error_handlers(app: Flask) -> None:
    """Answer what the bench refuses. The messages of these errors hold paths, so they are not shown."""

    def answered(kind: type[Exception], code: str, status: HTTPStatus) -> None:
        @app.errorhandler(kind)
        def handle(_: Exception) -> Any:
            return _explain([PageError(code)], status)

    answered(NothingToUndoError, "error_nothing", HTTPStatus.CONFLICT)
    answered(AdjudicationError, "error_adjudicate", HTTPStatus.FORBIDDEN)
    answered(GoneError, "error_gone", HTTPStatus.GONE)
    answered(ErasedError, "error_gone", HTTPStatus.GONE)
    answered(InputError, "error_store", HTTPStatus.SERVICE_UNAVAILABLE)

    @app.errorhandler(UnwritableError)
    def handle_unwritable(error: UnwritableError) -> Any:
        status = HTTPStatus.INSUFFICIENT_STORAGE if error.full else HTTPStatus.SERVICE_UNAVAILABLE
        return _explain([PageError("error_unwritable")], status)


def _explain(problems: Sequence[PageError], status: int) -> tuple[Response | str, int]:
    sentences = [g.words(problem.code, **problem.values) for problem in problems]
    if _wants_json():
        return jsonify(error=" ".join(sentences)), status
    return render_template("error.html", sentences=sentences, base="bench.html"), status


def _wants_json() -> bool:
    return request.path.startswith(("/api/", "/frame/"))


def _frame(bench: Bench, id: str) -> Frame:
    frame = bench.catalogue.of(id)
    if frame is None:
        raise PageError("error_frame", status=HTTPStatus.NOT_FOUND)
    return frame


def _body() -> _Save:
    """Return the body of a reading.

    Raises:
        PageError: It is no JSON, or a field has a wrong value. The message names the field.
    """
    try:
        content = request.get_json(silent=True)
    except RecursionError:
        content = None
    if not isinstance(content, dict):
        raise PageError("error_form")
    try:
        return _Save.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise PageError("error_field", {"field": field or first["msg"]}) from None


def _check(bench: Bench, frame: Frame, reading: Reading) -> None:
    """Check a reading against its frame.

    Raises:
        PageError: A box lies outside the frame, or the class is unknown.
    """
    for number, region in enumerate(reading.regions, 1):
        if region.x + region.width > frame.width or region.y + region.height > frame.height:
            box = ", ".join(map(str, region.box))
            size = {"width": frame.width, "height": frame.height}
            raise PageError("error_outside", {"field": f"reading.regions.{number - 1}", "box": box} | size)
    if reading.side and reading.side not in bench.classes.names:
        raise PageError("error_side", {"names": ", ".join(bench.classes.names)})


def _notes(bench: Bench) -> list[str]:
    """Return what people should know about scans and endpoint."""
    count = len(bench.catalogue.left_out)
    left_out = [g.words("note_left_out", count=count)] if count else []
    return [*left_out, *([g.words("note_away")] if bench.is_endpoint_away else [])]
