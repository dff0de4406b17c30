"""The Flask application: every route of the page, and the checks in front of them.

Nothing is stored: bodies are held in memory and dropped with the answer. The log holds no file name, picture or
address.
"""

import io
import itertools
import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Flask, Request, Response, g, jsonify, make_response, redirect, render_template, request
from flask.sessions import SecureCookieSessionInterface
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_wtf.csrf import CSRFError, CSRFProtect, generate_csrf
from markupsafe import Markup
from werkzeug.exceptions import HTTPException

from thyroid import logs
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.imaging import images, phantom
from thyroid.web import upload, view_model, words
from thyroid.web.endpoint import Endpoint
from thyroid.web.upload import PageError, ReadingError
from thyroid.web.words import Words

log = logging.getLogger("thyroid.web")

RATE = "60 per minute"
"""Limit on the readings and opened files of one address. More come from scripts, not from people."""
MAX_BODY = 60_000_000
"""Bytes up to which a body is received, so that the browser reads why it is too large."""
SAMPLE_SEED = 2026

_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'; sandbox"
)
"""The report is a separate file with its styles inside. Scripts, forms and links to other sites are off."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",  # the CSRF check over HTTPS needs it for this page itself
    "X-Content-Type-Options": "nosniff",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Options:
    """The options of `python -m thyroid.web`.

    Attributes:
        endpoint: Address of the endpoint, http://host:port.
        token: Bearer token of the endpoint; None if it needs none.
        secret: Key that signs the CSRF cookie, the same in every replica. None for a random key that lasts as long as
            the process.
    """

    endpoint: str
    token: str | None = None
    secret: str | None = None


class _Request(Request):
    def _get_file_stream(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO()  # Werkzeug's own stream becomes a temporary file when it is large


class _Session(SecureCookieSessionInterface):
    def get_cookie_secure(self, _: Flask) -> bool:
        return request.is_secure


def create(options: Options) -> Flask:
    """Create the application, ready for a WSGI server."""
    app = Flask(__name__, static_folder=None)
    app.request_class = _Request
    app.session_interface = _Session()
    app.config.update(
        SECRET_KEY=options.secret or secrets.token_hex(32),
        SESSION_COOKIE_NAME="thyroid",
        SESSION_COOKIE_SAMESITE="Strict",
        MAX_CONTENT_LENGTH=upload.MAX_TOTAL + 1_000_000,  # the form around the pictures
        MAX_FORM_MEMORY_SIZE=500_000,
        MAX_FORM_PARTS=200,
        WTF_CSRF_CHECK_DEFAULT=False,  # the routes check it after the limit, which counts forged forms, too
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session: a clinic leaves the page open all day
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters["share"] = words.share
    _add_hooks(app)  # first, because refusals are written in the visitor's language
    limiter = Limiter(get_remote_address, app=app, storage_uri="memory://", headers_enabled=True)
    endpoint = Endpoint(options.endpoint, options.token)
    csrf = CSRFProtect(app)
    _add_reading_routes(app, endpoint, limiter, csrf)
    _add_picture_routes(app, endpoint, limiter, csrf)
    _add_other_routes(app, endpoint)
    _add_error_handlers(app)
    return app


def _add_hooks(app: Flask) -> None:
    """Choose the language before a request; set headers and write the log after it."""

    @app.before_request
    def begin() -> None:
        g.started, g.nonce = time.perf_counter(), secrets.token_urlsafe(16)
        given = request.headers.get("x-request-id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        asked = request.args.get("lang", request.cookies.get("lang", ""))
        chosen = asked if asked in words.LANGUAGES else request.accept_languages.best_match(words.LANGUAGES)
        g.words = Words(chosen or words.LANGUAGES[0])

    @app.context_processor
    def shared() -> dict[str, Any]:
        return {"w": g.words, "nonce": g.nonce, "languages": words.LANGUAGES, "named": _named, "asset": _asset}

    @app.after_request
    def end(response: Response) -> Response:
        if request.args.get("lang") in words.LANGUAGES:
            response.set_cookie(
                "lang", g.words.language, max_age=31_536_000, httponly=True, secure=request.is_secure, samesite="Strict"
            )
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Content-Security-Policy", _POLICY.format(nonce=g.nonce))
        response.headers.setdefault("X-Frame-Options", "DENY")
        response.headers["X-Request-Id"] = g.request_id
        fields = {
            "request_id": g.request_id,
            "method": request.method,
            "route": request.endpoint or "none",
            "status": response.status_code,
            "milliseconds": round((time.perf_counter() - g.started) * 1000, 1),
        }
        log.log(logging.DEBUG if request.endpoint == "health" else logging.INFO, "request", extra={"fields": fields})
        return response


def _add_reading_routes(app: Flask, endpoint: Endpoint, limiter: Limiter, csrf: CSRFProtect) -> None:
    limited: Callable[..., Any] = limiter.limit(RATE)

    @app.get("/")
    def index() -> str:
        facts = view_model.describe_model(endpoint.facts())
        return render_template("index.html", facts=facts, limits=_limits(), texts=_texts())

    @app.post("/read")
    @limited
    def read() -> str:
        csrf.protect()
        files = [(file.filename or "", file.read()) for file in request.files.getlist("files") if file.filename]
        views = upload.views(files, _marks())
        model = view_model.describe_model(endpoint.facts())
        clinical = upload.columns(request.form.to_dict(), model["columns"] if model else [])
        answer = endpoint.explain(views, g.request_id, clinical)
        try:
            found = view_model.describe_reading(answer, views)
            facts = view_model.describe_model(endpoint.facts(found["version"]))
        except view_model.UNDOCUMENTED:
            raise PageError("error_answer", status=HTTPStatus.BAD_GATEWAY) from None
        fragment = _by_script()
        return render_template(
            "reading.html" if fragment else "read.html", found=found, facts=facts, pictures=not fragment
        )

    @app.get("/read")
    def reread() -> Any:
        return redirect("/", HTTPStatus.SEE_OTHER)  # a reload, or the back button

    @app.get("/token")
    def token() -> Response:
        """Return a new token for a page that has been open for longer than its token is valid."""
        return jsonify(token=generate_csrf())


def _add_picture_routes(app: Flask, endpoint: Endpoint, limiter: Limiter, csrf: CSRFProtect) -> None:
    """Add what the script asks for about one picture, before it is read."""
    limited: Callable[..., Any] = limiter.limit(RATE)

    @app.post("/picture")
    @limited
    def picture() -> Response:
        csrf.protect()
        view = upload.view(*_file(), frame=request.form.get("frame", ""))
        if view.clip is None:  # the script shows other kinds itself, and says of DICOM that no name is left in it
            raise PageError("error_kind", {"name": view.name})
        frame, frames, regions = view.clip
        headers = {"x-frame": str(frame), "x-frames": str(frames), "x-regions": str(int(regions))}
        return Response(view.data, mimetype="image/png", headers=headers)

    @app.post("/locate")
    @limited
    def locate() -> Response:
        csrf.protect()
        view = upload.view(*_file(), upload.Mark(domain=request.form.get("domain", "")))
        answer = endpoint.locate(view, g.request_id)
        try:
            return jsonify(view_model.describe_boxes(answer, view))
        except view_model.UNDOCUMENTED:
            raise PageError("error_answer", status=HTTPStatus.BAD_GATEWAY) from None

    @app.get("/sample")
    def sample() -> Response:
        data, roi = _sample()
        return Response(data, mimetype="image/jpeg", headers={"x-roi": ",".join(map(str, roi))})


def _add_other_routes(app: Flask, endpoint: Endpoint) -> None:
    @app.get("/report")
    def report() -> str:
        return render_template("report.html", facts=view_model.describe_model(endpoint.facts()))

    @app.get("/report/document")
    def document() -> Response:
        headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Frame-Options": "SAMEORIGIN"}
        return Response(endpoint.report(), mimetype="text/html", headers=headers)

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="ok")


def _add_error_handlers(app: Flask) -> None:
    def explain(problems: Sequence[PageError], status: int) -> tuple[Response | str, int]:
        sentences = [g.words(problem.code, **problem.values) for problem in problems]
        if request.endpoint in ("picture", "locate", "sample"):
            return jsonify(error=" ".join(sentences)), status
        return render_template("errors.html" if _by_script() else "error.html", sentences=sentences), status

    @app.errorhandler(PageError)
    def handle_problem(error: PageError) -> Any:
        return explain([error], error.status)

    @app.errorhandler(ReadingError)
    def handle_problems(error: ReadingError) -> Any:
        return explain(error.problems, max(problem.status for problem in error.problems))

    @app.errorhandler(CSRFError)
    def handle_forgery(_: CSRFError) -> Any:
        answer = make_response(explain([PageError("error_csrf")], HTTPStatus.BAD_REQUEST))
        answer.headers["x-token"] = "expired"  # the script gets a new token and sends the form again
        return answer

    @app.errorhandler(HTTPException)
    def handle_http_error(error: HTTPException) -> Any:
        status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return explain([PageError("error_total", {"limit": upload.MAX_TOTAL // 1_000_000})], status)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return handle_exception(error)
        known = {HTTPStatus.NOT_FOUND: "error_page", HTTPStatus.TOO_MANY_REQUESTS: "error_rate"}
        return explain([PageError(known.get(HTTPStatus(status), "error_form"))], status)

    @app.errorhandler(Exception)
    def handle_exception(error: Exception) -> Any:
        fields = {"request_id": g.request_id, "kind": type(error).__name__, "where": logs.place(error)}
        log.error("internal error", extra={"fields": fields})
        return explain([PageError("error_internal", {"id": g.request_id})], HTTPStatus.INTERNAL_SERVER_ERROR)


def _file() -> tuple[str, bytes]:
    """Return name and bytes of the picture that the script sent."""
    file = request.files.get("file")
    if file is None:
        raise PageError("error_none")
    return file.filename or "", file.read()


def _by_script() -> bool:
    """Return whether the page's own script asks; it wants only a part of a page."""
    return request.headers.get("x-requested-with") == "fetch"


def _marks() -> list[upload.Mark]:
    """Return what the form says about each picture. Without the script it says nothing."""
    fields = (request.form.getlist(name) for name in ("roi", "origin", "domain"))
    return [upload.Mark(*mark) for mark in itertools.zip_longest(*fields, fillvalue="")]


def _limits() -> dict[str, int]:
    return {
        "views": upload.MAX_VIEWS,
        "bytes": upload.MAX_FILE,
        "total": upload.MAX_TOTAL,
        "box": upload.MIN_BOX,
        **upload.SIZES,
    }


def _texts() -> dict[str, str]:
    """Return the texts that the script shows."""
    shown: Words = g.words
    return shown.starting(
        "error",
        "stage",
        "stale",
        "view",
        "remove",
        "frame",
        "dicom",
        "box",
        "proposal",
        "sending",
        "reading",
        "opening",
        "cancel",
        "done",
        "analyse",
        "again",
    )


def _named(language: str) -> str:
    return words.load(language)["language"]


@cache
def _asset(name: str) -> Markup:
    """Return a style sheet or script of ours to embed in the page, so that a slow line waits for only one request."""
    return Markup((Path(__file__).parent / "static" / name).read_text(encoding="utf-8"))


@cache
def _sample() -> tuple[bytes, tuple[int, int, int, int]]:
    drawn = phantom.draw(CLASSES[POSITIVE], patient=SAMPLE_SEED, image=1)
    return images.encode(drawn.image, phantom.MARK), drawn.roi
