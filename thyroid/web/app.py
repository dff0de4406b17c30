"""The Flask application: every route of the page, and the checks in front of them.

Nothing is stored: bodies are held in memory and dropped with the answer. The log holds no file name, picture or
address.
"""

import base64
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

from flask import Flask, Request, Response, g, jsonify, make_response, redirect, render_template, request
from flask.sessions import SecureCookieSessionInterface
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_wtf.csrf import CSRFError, CSRFProtect, generate_csrf
from markupsafe import Markup
from werkzeug.exceptions import HTTPException

from thyroid import logs
from thyroid.data import tables
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.imaging import images, phantom
from thyroid.web import upload, words
from thyroid.web.endpoint import Endpoint
from thyroid.web.upload import PageError, ReadingError, View
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
_ODD = (ArithmeticError, AttributeError, KeyError, IndexError, TypeError, ValueError)
"""Errors that are raised when an answer does not have its documented form."""
_DECISIONS = ("benign", "malignant", "abstain")
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
    _guard(app)  # first, because refusals are written in the visitor's language
    limiter = Limiter(get_remote_address, app=app, storage_uri="memory://", headers_enabled=True)
    _routes(app, Endpoint(options.endpoint, options.token), limiter, CSRFProtect(app))
    _errors(app)
    return app


def _guard(app: Flask) -> None:
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


def _routes(app: Flask, endpoint: Endpoint, limiter: Limiter, forged: CSRFProtect) -> None:
    limited: Callable[..., Any] = limiter.limit(RATE)

    @app.get("/")
    def index() -> str:
        return render_template("index.html", facts=_shown(endpoint.facts()), limits=_limits(), texts=_texts())

    @app.post("/read")
    @limited
    def read() -> str:
        forged.protect()
        files = [(file.filename or "", file.read()) for file in request.files.getlist("files") if file.filename]
        views = upload.views(files, request.form.getlist("roi"))
        clinical = upload.columns(request.form.to_dict(), (_shown(endpoint.facts()) or {}).get("columns", []))
        answer = endpoint.explain(views, g.request_id, clinical)
        try:
            found = _found(answer, views)
            facts = _shown(endpoint.facts(found["version"]))
        except _ODD:
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

    @app.post("/picture")
    @limited
    def picture() -> Response:
        forged.protect()
        file = request.files.get("file")
        if file is None:
            raise PageError("error_none")
        view = upload.view(file.filename or "", file.read(), frame=request.form.get("frame", ""))
        if view.clip is None:  # the script shows other kinds itself, and says of DICOM that no name is left in it
            raise PageError("error_kind", {"name": view.name})
        frame, frames, regions = view.clip
        headers = {"x-frame": str(frame), "x-frames": str(frames), "x-regions": str(int(regions))}
        return Response(view.data, mimetype="image/png", headers=headers)

    @app.get("/sample")
    def sample() -> Response:
        data, roi = _sample()
        return Response(data, mimetype="image/jpeg", headers={"x-roi": ",".join(map(str, roi))})

    @app.get("/report")
    def report() -> str:
        return render_template("report.html", facts=_shown(endpoint.facts()))

    @app.get("/report/document")
    def document() -> Response:
        headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Frame-Options": "SAMEORIGIN"}
        return Response(endpoint.report(), mimetype="text/html", headers=headers)

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="ok")


def _errors(app: Flask) -> None:
    def told(problems: Sequence[PageError], status: int) -> tuple[Response | str, int]:
        sentences = [g.words(one.code, **one.values) for one in problems]
        if request.endpoint in ("picture", "sample"):
            return jsonify(error=" ".join(sentences)), status
        return render_template("errors.html" if _by_script() else "error.html", sentences=sentences), status

    @app.errorhandler(PageError)
    def problem(error: PageError) -> Any:
        return told([error], error.status)

    @app.errorhandler(ReadingError)
    def problems(error: ReadingError) -> Any:
        return told(error.problems, max(one.status for one in error.problems))

    @app.errorhandler(CSRFError)
    def forged(_: CSRFError) -> Any:
        answer = make_response(told([PageError("error_csrf")], HTTPStatus.BAD_REQUEST))
        answer.headers["x-token"] = "expired"  # the script gets a new token and sends the form again
        return answer

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Any:
        status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return told([PageError("error_total", {"limit": upload.MAX_TOTAL // 1_000_000})], status)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return failed(error)
        known = {HTTPStatus.NOT_FOUND: "error_page", HTTPStatus.TOO_MANY_REQUESTS: "error_rate"}
        return told([PageError(known.get(HTTPStatus(status), "error_form"))], status)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Any:
        fields = {"request_id": g.request_id, "kind": type(error).__name__, "where": logs.place(error)}
        log.error("internal error", extra={"fields": fields})
        return told([PageError("error_internal", {"id": g.request_id})], HTTPStatus.INTERNAL_SERVER_ERROR)


def _by_script() -> bool:
    """Return whether the page's own script asks; it wants only a part of a page."""
    return request.headers.get("x-requested-with") == "fetch"


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


def _shown(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what the page shows of model.json; None if that is missing or of another form.

    Metrics that it lacks are None.
    """
    if facts is None:
        return None
    try:
        domain = str(facts["serving_domain"])
        keras = facts["forms"].get("keras", {}).get("test", {}).get(domain, {})
        # For forms other than Keras, the evaluation keeps only the metrics of the serving domain.
        test = keras if facts["form"] == "keras" else facts["forms"][facts["form"]].get("test", {})
        audits = facts.get("audits", {})
        return {
            "version": int(facts["version"]),
            "backbone": str(facts["backbone"]),
            "date": str(facts.get("created", ""))[:10],
            "digest": str(facts["data_digest"])[:12],
            "scans": facts.get("scans"),
            "domain": domain if domain in tables.DOMAINS else None,
            "threshold": _share(facts["threshold"]),
            "band": [_share(end) for end in facts["band"]] if "band" in facts else None,
            "auroc": _interval(test.get("auroc"), "{:.2f}"),
            "sensitivity": _interval(test.get("sensitivity"), "{:.0%}"),
            "specificity": _interval(test.get("specificity"), "{:.0%}"),
            "missed": _rest(test.get("sensitivity")),
            "false": _rest(test.get("specificity")),
            "images": test.get("n"),
            "patients": keras.get("patients"),
            "synthetic": facts.get("synthetic", 0),
            "columns": [_field(one) for one in facts.get("clinical", {}).get("fields", [])],
            "not_released": [str(reason) for reason in facts["not_released"]],
            "findings": sorted(audits.get("findings", {})),
            "kept": max(map(float, audits.get("kept", {}).values()), default=None),
        }
    except _ODD:
        log.error("the endpoint's facts are of another form", extra={"fields": {"request_id": g.request_id}})
        return None


def _field(one: dict[str, Any]) -> dict[str, Any]:
    """Return a clinical column for the form."""
    name, number = str(one["name"]), one["kind"] == "number"
    if number:
        low, high = (f"{float(one[bound]):g}" for bound in ("minimum", "maximum"))
        return {"name": name, "categories": None, "low": low, "high": high}
    return {"name": name, "categories": [str(category) for category in one["categories"]]}


def _columns(told: dict[str, Any] | None) -> dict[str, list[str]] | None:
    """Return the clinical columns that the answer was made with and without, and notes on odd values."""
    return told and {name: [str(one) for one in told[name]] for name in ("used", "missing", "notes")}


def _interval(figure: dict[str, Any] | None, form: str) -> str | None:
    if not figure:
        return None
    value, low, high = (form.format(_share(figure[name])) for name in ("value", "low", "high"))
    return f"{value} ({low.removesuffix('%')}–{high})".replace("%", "\N{NO-BREAK SPACE}%")


def _rest(figure: dict[str, Any] | None) -> int | None:
    """Return how many of a hundred are missed."""
    return round((1 - _share(figure["value"])) * 100) if figure else None


def _found(answer: dict[str, Any], views: Sequence[View]) -> dict[str, Any]:
    """Return the endpoint's answer as the page shows it."""
    told = answer["explanations"]
    whole = answer["patients"][0]
    threshold = _share(whole["threshold"])
    decided = [_decided(one) for one in told]
    return {
        "patient": _decided(whole),
        "threshold": threshold,
        "version": int(told[0]["model_version"]),
        "backbone": str(told[0]["model"]),
        "not_released": [str(reason) for reason in told[0].get("not_released", [])],
        "columns": _columns(told[0].get("clinical")),
        "above": sum(one["probability"] >= threshold for one in decided),
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "views": [
            shown
            | {
                "view": view,
                "taken_as_crop": "note" in one["crop"],
                "no_area": one["crop"].get("scan_area_found") is False,
                "square": [int(value) for value in one["crop"]["square"]],
                "heat": _png(one["heat_map"]["layer_png"]["b64"]),
                "inside": None
                if one["heat_map"]["share_inside_roi"] is None
                else _share(one["heat_map"]["share_inside_roi"]),
            }
            for view, one, shown in zip(views, told, decided, strict=True)
        ],
    }


def _decided(one: dict[str, Any]) -> dict[str, Any]:
    if one["decision"] not in _DECISIONS:
        raise ValueError("no decision")
    classes = [(str(name), _share(share)) for name, share in one["probability"].items()]
    return {
        "probability": _share(one["malignant"]),
        "decision": one["decision"],
        "class": str(one["class"]),
        "classes": classes if len(classes) > len(CLASSES) else [],
    }


def _share(value: Any) -> float:
    """Return a number from 0 to 1. A boolean, a text or NaN raises ValueError."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError("not a share")
    return float(value)


def _png(encoded: str) -> str:
    """Return a picture from the endpoint for an <img>, after a check that it is a PNG."""
    picture = base64.b64decode(encoded, validate=True)
    if images.kind(picture) != "PNG":
        raise ValueError("not a PNG")
    return images.data_uri(picture)
