"""The Flask application: every route of the page, and the checks in front of them.

Nothing is stored: bodies are held in memory and dropped with the answer. The log holds no file name, picture or
address.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g, jsonify, redirect, render_template, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_wtf.csrf import CSRFProtect, generate_csrf

from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.imaging import images, phantom
from thyroid.web import shell, upload, view_model, words
from thyroid.web.checks import UNDOCUMENTED
from thyroid.web.endpoint import Endpoint
from thyroid.web.upload import PageError, ReadingError
from thyroid.web.words import Words

RATE = "60 per minute"
"""Limit on the readings and opened files of one address. More come from scripts, not from people."""
SAMPLE_SEED = 2026

_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'; sandbox"
)
"""The report is a separate file with its styles inside. Scripts, forms and links to other sites are off."""


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


def create(options: Options) -> Flask:
    """Create the application, ready for a WSGI server."""
    total = upload.MAX_TOTAL
    kind = shell.Kind(
        name="thyroid",
        log="thyroid.web",
        folders=(words.PAGE,),
        secret=options.secret,
        largest=total + 1_000_000,  # the form around the pictures
        total=total // 1_000_000,
    )
    app = shell.create(kind)
    limiter = Limiter(get_remote_address, app=app, storage_uri="memory://", headers_enabled=True)
    endpoint = Endpoint(options.endpoint, options.token)
    csrf = CSRFProtect(app)
    _add_reading_routes(app, endpoint, limiter, csrf)
    _add_picture_routes(app, endpoint, limiter, csrf)
    _add_other_routes(app, endpoint)
    shell.add_error_handlers(app, kind, _explain)

    @app.errorhandler(ReadingError)
    def handle_problems(error: ReadingError) -> Any:
        return _explain(error.problems, max(problem.status for problem in error.problems))

    return app


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
        except UNDOCUMENTED:
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
        except UNDOCUMENTED:
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


def _explain(problems: Sequence[PageError], status: int) -> tuple[Response | str, int]:
    sentences = [g.words(problem.code, **problem.values) for problem in problems]
    if request.endpoint in ("picture", "locate", "sample"):
        return jsonify(error=" ".join(sentences)), status
    return render_template("errors.html" if _by_script() else "error.html", sentences=sentences), status


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


@cache
def _sample() -> tuple[bytes, tuple[int, int, int, int]]:
    drawn = phantom.draw(CLASSES[POSITIVE], patient=SAMPLE_SEED, image=1)
    return images.encode(drawn.image, phantom.MARK), drawn.roi
