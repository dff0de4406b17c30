"""What every Flask application for people has: language, headers, nonce, request id, log, session and errors.

The log holds no file name, picture or address.
"""

import io
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

from flask import Flask, Request, Response, g, make_response, request
from flask.sessions import SecureCookieSessionInterface
from flask_wtf.csrf import CSRFError
from jinja2 import FileSystemLoader
from markupsafe import Markup
from werkzeug.exceptions import HTTPException

from thyroid import logs
from thyroid.web import words
from thyroid.web.upload import PageError
from thyroid.web.words import Words

_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",  # the CSRF check over HTTPS needs it for the application itself
    "X-Content-Type-Options": "nosniff",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KNOWN = {HTTPStatus.NOT_FOUND: "error_page", HTTPStatus.TOO_MANY_REQUESTS: "error_rate"}

Explain = Callable[[Sequence[PageError], int], Any]
"""Makes the answer, which Flask takes, to a request that failed, from the problems and the HTTP status."""


@dataclass(frozen=True)
class Kind:
    """What tells one application from another.

    Attributes:
        name: Name of its session's cookie.
        log: Name of its log.
        folders: Folders with its words, templates and static files; the first that has one counts.
        secret: Key that signs its session, the same in every replica. None for a random key that lasts as long as the
            process.
        largest: Bytes of a body that is accepted.
        total: Megabytes that the refusal of a larger body names.
    """

    name: str
    log: str
    folders: tuple[Path, ...]
    secret: str | None
    largest: int
    total: int


class _Request(Request):
    def _get_file_stream(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO()  # Werkzeug's own stream becomes a temporary file when it is large


class _Session(SecureCookieSessionInterface):
    def get_cookie_secure(self, _: Flask) -> bool:
        return request.is_secure


def create(kind: Kind) -> Flask:
    """Return an application without routes and error handlers."""
    app = Flask("thyroid.web", static_folder=None)
    app.jinja_loader = FileSystemLoader([folder / "templates" for folder in kind.folders])
    app.request_class = _Request
    app.session_interface = _Session()
    app.config.update(
        SECRET_KEY=kind.secret or secrets.token_hex(32),
        SESSION_COOKIE_NAME=kind.name,
        SESSION_COOKIE_SAMESITE="Strict",
        MAX_CONTENT_LENGTH=kind.largest,
        MAX_FORM_MEMORY_SIZE=500_000,
        MAX_FORM_PARTS=200,
        WTF_CSRF_CHECK_DEFAULT=False,  # the routes check it after the limit, which counts forged forms, too
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session: a clinic leaves the page open all day
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters["share"] = words.share
    _add_hooks(app, kind)  # first, because refusals are written in the visitor's language
    return app


def _add_hooks(app: Flask, kind: Kind) -> None:
    """Choose the language before a request; set headers and write the log after it."""
    log = logging.getLogger(kind.log)

    @app.before_request
    def begin() -> None:
        g.started, g.nonce = time.perf_counter(), secrets.token_urlsafe(16)
        given = request.headers.get("x-request-id", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        asked = request.args.get("lang", request.cookies.get("lang", ""))
        chosen = asked if asked in words.LANGUAGES else request.accept_languages.best_match(words.LANGUAGES)
        g.words = Words(chosen or words.LANGUAGES[0], kind.folders)

    @app.context_processor
    def shared() -> dict[str, Any]:
        def asset(name: str) -> Markup:
            return _asset(name, kind.folders)

        return {"w": g.words, "nonce": g.nonce, "languages": words.LANGUAGES, "named": _named, "asset": asset}

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


def add_error_handlers(app: Flask, kind: Kind, explain: Explain) -> None:
    """Answer what a route raises, and what Flask refuses, by `explain`."""
    log = logging.getLogger(kind.log)

    @app.errorhandler(PageError)
    def handle_problem(error: PageError) -> Any:
        return explain([error], error.status)

    @app.errorhandler(CSRFError)
    def handle_forgery(_: CSRFError) -> Any:
        answer = make_response(explain([PageError("error_csrf")], HTTPStatus.BAD_REQUEST))
        answer.headers["x-token"] = "expired"  # the script gets a new token and sends the form again
        return answer

    @app.errorhandler(HTTPException)
    def handle_http_error(error: HTTPException) -> Any:
        status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return explain([PageError("error_total", {"limit": kind.total})], status)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return handle_exception(error)
        return explain([PageError(_KNOWN.get(HTTPStatus(status), "error_form"))], status)

    @app.errorhandler(Exception)
    def handle_exception(error: Exception) -> Any:
        fields = {"request_id": g.request_id, "kind": type(error).__name__, "where": logs.place(error)}
        log.error("internal error", extra={"fields": fields})
        return explain([PageError("error_internal", {"id": g.request_id})], HTTPStatus.INTERNAL_SERVER_ERROR)


def _named(language: str) -> str:
    return words.load(language)["language"]


@cache
def _asset(name: str, folders: tuple[Path, ...]) -> Markup:
    """Return a style sheet or script of ours to embed in the page, so that a slow line waits for only one request."""
    found = next(file for folder in folders if (file := folder / "static" / name).is_file())
    return Markup(found.read_text(encoding="utf-8"))
