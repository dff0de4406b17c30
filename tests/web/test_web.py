"""The page over HTTP, from a real process before a real endpoint."""

import base64
import html
import http.server
import io
import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from tests.support import dicoms, validated
from tests.support.pages import Page
from tests.support.serving import EXPLAIN, Server, free_port
from thyroid import RESEARCH_USE_ONLY
from thyroid.imaging import images, phantom
from thyroid.model import engine
from thyroid.model.artefact import Artefact
from thyroid.registry.registry import Registry
from thyroid.web import __main__ as command
from thyroid.web import app, upload, words
from thyroid.web.words import LANGUAGES, Words

TOKEN = "the-endpoint-s-token"
SECRETS = {"THYROID_TOKEN": TOKEN, "THYROID_PAGE_SECRET": "the same everywhere"}
NAME = "KIM YOUNG HEE 19700101.jpg"
"""A file name that must turn up in no log."""


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint")
    (folder / "token").write_text(TOKEN)
    arguments = ("--registry", str(model), "--form", engine.F32, "--token-file", str(folder / "token"))
    running = Server(folder / "log", *arguments).wait()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    address = f"http://127.0.0.1:{server.port}"
    running = Page(folder / "log", address, "--proxies", "1", environment=SECRETS).wait()
    yield running
    log = running.stop()
    assert "KIM" not in log
    assert TOKEN not in log


@pytest.fixture
def visitor(page):
    return page.visitor()


@pytest.fixture(scope="module")
def frames(phantoms) -> list[tuple[str, bytes, str]]:
    """Name, content and box of some phantoms."""
    rows = (line.split(",") for line in (phantoms / "rois.csv").read_text().splitlines()[1:6])
    return [(row[0], (phantoms / "scans" / row[0]).read_bytes(), ",".join(row[1:5])) for row in rows]


def said(answer: httpx.Response) -> str:
    """What a person reads."""
    text = re.sub(r"<(style|script)[^>]*>.*?</\1>", " ", answer.text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def share(value: float) -> str:
    return " ".join(words.share(value).split())


def alert(answer: httpx.Response) -> str:
    (found,) = re.findall(r'<div class="error">(.*?)</div>', answer.text, re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found)).split())


def test_a_reading_shows_the_endpoints_own_answer(visitor, server, frames, model):
    name, data, roi = frames[0]
    answer = visitor.read([(name, data)], [roi])
    assert answer.status_code == 200
    instance = {"image": {"b64": base64.b64encode(data).decode()}, "roi": [int(side) for side in roi.split(",")]}
    told = server.ask(EXPLAIN, {"instances": [instance]}, Authorization=f"Bearer {TOKEN}")[1]["explanations"][0]
    text = said(answer)
    assert share(told["probability"]["M"]) in text
    assert share(told["threshold"]) in text
    assert Words("en")(f"decision_{told['decision']}") in text
    assert told["heat_map"]["layer_png"]["b64"] in answer.text
    assert f'x="{told["crop"]["square"][0]}" y="{told["crop"]["square"][1]}"' in answer.text
    facts = Artefact.verify(Registry(model).find()).record
    auroc = facts.forms[engine.F32].test.auroc
    for shown in (
        f"{auroc.value:.2f} ({auroc.low:.2f}–{auroc.high:.2f})",
        facts.data_digest[:12],
        facts.backbone,
        facts.created[:10],
    ):
        assert shown in text
    assert RESEARCH_USE_ONLY in text
    assert Words("en")("warning_synthetic") in text
    assert not set(facts.gate.reasons) - {html.unescape(one) for one in re.findall(r"<li>(.*?)</li>", answer.text)}


def test_several_views_are_one_patient(visitor, server, frames):
    answer = visitor.read([(name, data) for name, data, _ in frames], [roi for *_, roi in frames])
    assert answer.status_code == 200
    body = {
        "instances": [
            {
                "image": {"b64": base64.b64encode(data).decode()},
                "roi": [int(side) for side in roi.split(",")],
                "patient": "7",
            }
            for _, data, roi in frames
        ]
    }
    told = server.ask(EXPLAIN, body, Authorization=f"Bearer {TOKEN}")[1]
    text = said(answer)
    assert Words("en")("patient_result", count=len(frames)) in text
    assert share(told["patients"][0]["probability"]["M"]) in text
    for one in told["explanations"]:
        assert share(one["probability"]["M"]) in text


def test_the_script_gets_the_reading_alone_without_the_pictures(visitor, frames):
    name, data, roi = frames[0]
    part = visitor.read([(name, data)], [roi], script=True)
    assert part.status_code == 200
    assert "<html" not in part.text
    assert base64.b64encode(data).decode()[:200] not in part.text
    whole = visitor.read([(name, data)], [roi])
    assert base64.b64encode(data).decode()[:200] in whole.text


def test_a_picture_without_a_box_is_said_to_be_taken_as_a_crop(visitor, frames):
    assert Words("en")("no_box_taken") in said(visitor.read([frames[0][:2]]))


@pytest.mark.parametrize("syntax", ["explicit", "jpeg-baseline", "jpeg-lossless", "jpeg-2000", "rle"])
def test_dicom_is_read_without_its_patient(visitor, page, syntax):
    data = dicoms.write(dicoms.frame(3), dicoms.SYNTAXES[syntax], name="KIM^YOUNG HEE", patient="KIM-7")
    opened = visitor.picture("KIM.dcm", data)
    assert opened.status_code == 200
    shown = np.asarray(Image.open(io.BytesIO(opened.content)))
    left, top, right, bottom = dicoms.TEXT
    assert not shown[top:bottom, left:right].any(), "the burned-in name is gone"
    assert b"KIM" not in opened.content
    answer = visitor.read([("KIM.dcm", data)], ["40,40,48,40"])
    assert answer.status_code == 200
    assert "KIM" not in answer.text
    png = re.search(r'class="scan"[^>]*href="data:image/png;base64,([^"]+)"', answer.text)
    assert png is not None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png[1])))), shown)


def test_a_clip_is_opened_at_the_middle_and_at_any_frame(visitor):
    data = dicoms.write(dicoms.cine(5))
    opened = visitor.picture("clip.dcm", data)
    assert (opened.headers["x-frame"], opened.headers["x-frames"], opened.headers["x-regions"]) == ("3", "5", "1")
    other = visitor.picture("clip.dcm", data, frame="5")
    assert other.headers["x-frame"] == "5"
    assert other.content != opened.content
    assert Words("en")("frame", frame=3, frames=5) in said(visitor.read([("clip.dcm", data)], ["40,40,48,40"]))
    for frame in ("abc", "-1", "1.5"):
        assert visitor.picture("clip.dcm", data, frame=frame).status_code == 400
    assert visitor.picture("scan.jpg", images.encode(phantom.draw("B", 1, 1).image)).status_code == 400
    assert visitor.picture("clip.dcm", data, frame="6").json()["error"] == Words("en")(
        "error_dicom_frame", name="clip.dcm"
    )


def test_a_real_dicom_file_of_an_ultrasound_machine(visitor):
    data = Path(get_testdata_file("examples_ybr_color.dcm", download=False)).read_bytes()
    assert visitor.read([("heart.dcm", data)], ["120,80,60,60"]).status_code == 200


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def moving() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (99, 99)).save(buffer, "PNG", save_all=True, append_images=[Image.new("L", (99, 99), 255)])
    return buffer.getvalue()


BAD = {
    "a text file named .jpg": ("note.jpg", b"Dear colleague, ...", "", "error_kind"),
    "an empty file": ("empty.jpg", b"", "", "error_empty"),
    "a truncated jpg": ("cut.jpg", images.encode(phantom.draw("B", 1, 1).image)[:9000], "", "error_damaged"),
    "a jpg without a header": ("head.jpg", b"\xff\xd8\xff\xe0" + bytes(50), "", "error_damaged"),
    "a png bomb": ("bomb.png", png(9000, 9000), "", "error_size"),
    "a tiny picture": ("tiny.png", png(5, 5), "", "error_size"),
    "a box of one pixel": ("one.png", png(200, 200), "5,5,1,1", "error_box"),
    "a box outside": ("out.png", png(200, 200), "150,150,100,100", "error_box_outside"),
    "a box of other digits": ("digits.png", png(200, 200), "٣,٣,٣٣,٣٣", "error_box_form"),
    "a moving picture": ("moving.png", moving(), "", "error_damaged"),
    "a box of words": ("words.png", png(200, 200), "a,b,c,d", "error_box_form"),
    "a CT slice": (
        "ct.dcm",
        Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes(),
        "",
        "error_dicom_modality",
    ),
    "a report": (
        "sr.dcm",
        Path(get_testdata_file("test-SR.dcm", download=False)).read_bytes(),
        "",
        "error_dicom_modality",
    ),
    "a DICOM without pixels": ("none.dcm", dicoms.write(dicoms.frame(1), PixelData=None), "", "error_dicom_pixels"),
    "a DICOM of another size": (
        "vast.dcm",
        dicoms.write(dicoms.frame(1), Rows=60000, Columns=60000),
        "",
        "error_dicom_size",
    ),
    "a cut DICOM": ("cut.dcm", dicoms.write(dicoms.frame(1))[:3000], "", "error_dicom_damaged"),
}


@pytest.mark.parametrize("language", words.LANGUAGES)
@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_is_said_in_a_sentence(page, frames, what, language):
    """Among good pictures: nothing is read, and only the bad one is named."""
    name, data, roi, code = BAD[what]
    visitor = page.visitor(accept_language=language)
    answer = visitor.read([frames[0][:2], (name, data), frames[1][:2]], [frames[0][2], roi, frames[1][2]], script=True)
    assert answer.status_code == 400
    sentence = words.load(language)[code]
    pattern = ".*".join(re.escape(part) for part in re.split(r"\{\w+\}", sentence))
    found = alert(answer)
    assert re.search(pattern, found), found
    assert name in found
    assert frames[0][0] not in found


def test_several_bad_files_are_all_named(visitor):
    answer = visitor.read([("a.jpg", b"x"), ("b.jpg", b""), ("c.png", png(100, 100))])
    found = alert(answer)
    assert "a.jpg" in found
    assert "b.jpg" in found
    assert "c.png" not in found


def test_a_file_name_is_text_and_nothing_else(visitor):
    answer = visitor.read([("<img src=x onerror=alert(1)>.jpg", b"x")])
    assert "<img src=x" not in answer.text
    assert "<img src=x onerror=alert(1)>.jpg" in alert(answer)


def test_a_deflated_bomb_is_refused(visitor):
    """Some hundred kilobytes that would fill hundreds of megabytes."""
    data = dicoms.write(dicoms.frame(1), dicoms.DEFLATED)
    start = 144 + int.from_bytes(data[140:144], "little")  # where the file's meta information ends
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(50_000_000)) for _ in range(12)) + packer.flush()
    answer = visitor.picture("bomb.dcm", data[:start] + bomb)
    assert answer.status_code == 400
    assert answer.json()["error"] == Words("en")("error_dicom_size", name="bomb.dcm")


def test_thirty_files_and_none(visitor, frames):
    assert alert(visitor.read([frames[0][:2]] * 30)).endswith(
        Words("en")("error_many", count=30, views=upload.MAX_VIEWS)
    )
    assert alert(visitor.read([])).endswith(Words("en")("error_none"))


def test_a_file_of_fifty_megabytes(visitor, frames):
    """Both the whole and one file have a limit."""
    big = frames[0][1] + bytes(50_000_000)
    answer = visitor.read([("big.jpg", big)], script=True)
    assert answer.status_code == 413
    assert alert(answer).endswith(Words("en")("error_total", limit=upload.MAX_TOTAL // 1_000_000))
    answer = visitor.read([("big.jpg", frames[0][1] + bytes(31_000_000))], script=True)
    assert answer.status_code == 413
    assert alert(answer).endswith(Words("en")("error_large", name="big.jpg", megabytes=31, limit=30))


def test_both_languages_say_the_same_things():
    fields = {
        language: {key: set(re.findall(r"\{(\w+)\}", text)) for key, text in words.load(language).items()}
        for language in words.LANGUAGES
    }
    assert fields["en"] == fields["ko"]
    templates = "".join(file.read_text() for file in (Path(words.__file__).parent / "templates").glob("*.html"))
    sources = templates + "".join(file.read_text() for file in Path(words.__file__).parent.rglob("*.[pj][ys]"))
    for key in fields["en"]:
        used = key in sources or any(
            f"{stem}_' ~" in sources or f"{stem}_{{" in sources
            for stem in (key.rsplit("_", depth)[0] for depth in (1, 2, 3))
        )
        assert used or key.endswith("_hint") or key in ("notice", "language"), key
    assert words.load("en")["notice"] == RESEARCH_USE_ONLY


def language(answer: httpx.Response) -> str:
    """The language in which a page says that it is."""
    return re.search(r'<html[^>]*\blang="(\w+)"', answer.text)[1]


def test_the_language_is_the_browsers_or_the_chosen_one(page):
    assert language(httpx.get(page.address, headers={"accept-language": "ko-KR,ko;q=0.9"})) == "ko"
    assert language(httpx.get(page.address, headers={"accept-language": "fr"})) == "en"
    with httpx.Client(base_url=page.address, headers={"accept-language": "en"}) as client:
        assert language(client.get("/?lang=ko")) == "ko"
        assert language(client.get("/")) == "ko", "the choice is kept"
        assert language(client.get("/?lang=xx", headers={"cookie": ""})) == "en"


def test_the_report_is_shown_without_a_way_to_do_harm(page, model):
    assert "<iframe" in httpx.get(f"{page.address}/report").text
    document = httpx.get(f"{page.address}/report/document")
    assert document.text == (Registry(model).find() / "report.html").read_text()
    assert "sandbox" in document.headers["content-security-policy"]
    assert "script-src" not in document.headers["content-security-policy"]


def test_headers_that_keep_others_out(page):
    for path in ("/", "/report", "/nothing", "/health", "/sample"):
        answer = httpx.get(page.address + path)
        policy = answer.headers["content-security-policy"]
        directives = dict(part.split(maxsplit=1) for part in policy.split(";") if part.strip())
        assert directives["default-src"] == directives["frame-ancestors"] == "'none'"
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
    cookie = httpx.get(page.address).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    first, second = (
        re.findall(r"nonce-([\w-]+)", httpx.get(page.address).headers["content-security-policy"]) for _ in range(2)
    )
    assert first != second


def test_the_page_is_one_small_request(page):
    text = httpx.get(page.address).text
    assert len(text.encode()) < 200_000
    linked = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert all(one.startswith(("/", "#", "data:")) for one in linked), "nothing from elsewhere"
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"/", text), "nothing that a slow line waits for"


def test_forms_of_others_are_refused(page, visitor, frames):
    assert visitor.read([frames[0][:2]], token="").status_code == 400
    assert alert(visitor.read([frames[0][:2]], token="x" + visitor.token)).endswith(Words("en")("error_csrf"))
    stranger = httpx.post(
        f"{page.address}/read", data={"csrf_token": visitor.token}, files={"files": ("a.jpg", frames[0][1])}
    )
    assert stranger.status_code == 400
    assert visitor.client.post("/picture", files={"file": ("a.jpg", frames[0][1])}).status_code == 400


def test_forged_forms_meet_the_limit_too(page):
    forger = page.visitor()
    codes = [forger.client.post("/read", data={"csrf_token": "x"}).status_code for _ in range(61)]
    assert codes == [400] * 60 + [429]


def test_a_page_that_was_open_for_too_long_gets_another_token(page, frames):
    old = page.visitor()
    old.client.cookies.clear()
    refused = old.read([frames[0][:2]], [frames[0][2]], script=True)
    assert (refused.status_code, refused.headers["x-token"]) == (400, "expired")
    old.token = old.client.get("/token").json()["token"]
    assert old.read([frames[0][:2]], [frames[0][2]], script=True).status_code == 200


def test_a_reading_that_is_asked_for_again_leads_to_the_start(page):
    answer = httpx.get(f"{page.address}/read")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_methods_and_paths_that_are_not_there(page):
    assert httpx.put(f"{page.address}/read").status_code == 405
    for path in ("/../../etc/passwd", "/static/page.js", "/report/document/x", "/%00", "/.git/config"):
        answer = httpx.get(page.address + path)
        assert answer.status_code == 404
        assert "Traceback" not in answer.text


def test_a_body_that_is_no_form(visitor):
    answer = visitor.client.post("/read", content=b"\x00\xff", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 400
    answer = visitor.client.post("/read", data={"csrf_token": visitor.token, **{f"f{i}": "x" for i in range(300)}})
    assert answer.status_code in (400, 413)
    assert "Traceback" not in answer.text


def test_the_token_stays_on_the_servers_side(page, visitor, frames):
    texts = [httpx.get(page.address).text, visitor.read([frames[0][:2]], [frames[0][2]]).text]
    texts += [str(dict(httpx.get(page.address).headers)), httpx.get(f"{page.address}/report").text]
    assert not any(TOKEN in text for text in texts)


def test_the_log_has_no_name_and_no_picture(page, visitor):
    visitor.read([(NAME, b"x")])
    visitor.picture(NAME, b"x")
    lines = [json.loads(line) for line in page.log.read_text().splitlines() if line.startswith("{")]
    read = [line for line in lines if line.get("route") == "read"]
    assert read
    assert set(read[-1]) == {"time", "level", "message", "request_id", "method", "route", "status", "milliseconds"}


def test_a_flood_is_slowed_down(page, visitor):
    codes = [visitor.read([("a.jpg", b"x")], script=True) for _ in range(61)]
    assert [one.status_code for one in codes[:60]] == [400] * 60
    assert codes[60].status_code == 429
    assert alert(codes[60]).endswith(Words("en")("error_rate"))
    assert httpx.get(page.address).status_code == 200


def test_addresses_are_told_by_as_many_proxies_as_there_are(page):
    for last in (1, 2):
        visitor = page.visitor(x_forwarded_for=f"6.6.6.6, 10.0.0.{last}")
        codes = [visitor.read([("a.jpg", b"x")]).status_code for _ in range(60)]
        assert set(codes) == {400}, "each of the proxy's visitors has a limit of its own"
    forged = page.visitor(x_forwarded_for="7.7.7.7, 10.0.0.1")
    assert forged.read([("a.jpg", b"x")]).status_code == 429
    secure = httpx.get(page.address, headers={"x-forwarded-proto": "https"})
    assert "Secure" in secure.headers["set-cookie"]
    chosen = httpx.get(f"{page.address}/?lang=ko", headers={"x-forwarded-proto": "https"})
    assert all("Secure" in one for one in chosen.headers.get_list("set-cookie"))


class Stub(http.server.BaseHTTPRequestHandler):
    """An endpoint that is not as it should be."""

    disable_nagle_algorithm = True
    status, body, facts = 503, b"", b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(self.facts)))
        self.end_headers()
        self.wfile.write(self.facts)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def stub_address():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.fixture(scope="module")
def odd(stub_address, tmp_path_factory):
    """A page before a `Stub`."""
    running = Page(tmp_path_factory.mktemp("stub") / "log", stub_address).wait()
    yield running
    assert "Traceback" not in running.stop()


@pytest.fixture
def stub(odd):
    """Status and body of an endpoint's answer to what a visitor is told."""
    visitor = odd.visitor()

    def ask(status: int, body: bytes) -> str:
        Stub.status, Stub.body = status, body
        answer = visitor.read([("a.png", png(100, 100))], script=True)
        assert answer.status_code in (502, 503, 504)
        return alert(answer)

    return ask


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (503, b'{"error": "too many images are waiting; try again", "code": "overloaded"}', "error_busy"),
        (503, b'{"error": "loading", "code": "not_ready"}', "error_starting"),
        (503, b"no healthy upstream", "error_unreachable"),
        (502, b"<html>Bad Gateway</html>", "error_unreachable"),
        (504, b"", "error_late"),
        (401, b'{"error": "authorization", "code": "unauthorized"}', "error_token"),
        (200, b"", "error_answer"),
        (200, b"[]", "error_answer"),
        (200, b'{"explanations": [{}], "patients": [{}]}', "error_answer"),
        (200, b"<html>login</html>", "error_answer"),
        (302, b"", "error_answer"),
        (599, b"", "error_answer"),
    ],
)
def test_an_endpoint_that_fails_is_explained(stub, status, body, code):
    assert stub(status, body).endswith(Words("en")(code))


def answered(**changes) -> bytes:
    """What an endpoint answers to one picture, with something odd in it."""
    one = {
        "probability": {"B": 0.2, "M": 0.8},
        "malignant": 0.8,
        "class": "M",
        "above_threshold": ["M"],
        "threshold": 0.5,
        "decision": "malignant",
        "crop": {"square": [0, 0, 100]},
        "model": "ResNet50",
        "model_version": 1,
        "heat_map": {"layer_png": {"b64": base64.b64encode(png(8, 8)).decode()}, "share_inside_roi": None},
    }
    return json.dumps({"explanations": [one | changes], "patients": [one | changes]}).encode()


def test_a_documented_answer_is_shown(odd):
    Stub.status, Stub.body = 200, answered()
    answer = odd.visitor().read([("a.png", png(100, 100))])
    assert answer.status_code == 200
    assert re.search(r"\b80\s?%", said(answer))
    assert Words("en")("not_measured") in said(answer), "its facts are not there"


def test_more_classes_than_two_are_shown_one_by_one(odd):
    """Whatever a class is called."""
    name = "<b>4a & ü</b>"
    Stub.status, Stub.body = (
        200,
        answered(probability={"2": 0.2, name: 0.45, "5": 0.35}, **{"class": name, "above_threshold": [name, "5"]}),
    )
    answer = odd.visitor().read([("a.png", png(100, 100))])
    assert answer.status_code == 200
    assert name not in answer.text
    assert Words("en")("by_class", **{"class": name}) in said(answer)
    for shown in (f"2 {share(0.2)}", f"{name} {share(0.45)}", f"5 {share(0.35)}"):
        assert shown in said(answer)
    called = re.findall(r'<tr class="called"><th scope="row">(.*?)</th>', answer.text)
    assert [html.unescape(one) for one in called] == [name]


def test_two_classes_have_no_table_of_classes(odd):
    Stub.status, Stub.body = 200, answered()
    assert "<caption>" not in odd.visitor().read([("a.png", png(100, 100))]).text


SVG = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>").decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"malignant": float("nan")},
        {"malignant": float("inf")},
        {"malignant": 10**400},
        {"malignant": -0.1},
        {"malignant": "0.8"},
        {"malignant": None},
        {"probability": {"B": 0.2, "M": float("nan")}},
        {"probability": {"B": "0.2", "M": 0.8}},
        {"probability": [0.2, 0.8]},
        {"threshold": None},
        {"decision": "perhaps"},
        {"decision": ["malignant"]},
        {"crop": {}},
        {"crop": {"square": ["x", 0, 1]}},
        {"model_version": None},
        {"heat_map": {"layer_png": {"b64": SVG}, "share_inside_roi": None}},
        {"heat_map": {"layer_png": {"b64": "?"}, "share_inside_roi": None}},
        {"heat_map": {"layer_png": {"b64": base64.b64encode(png(8, 8)).decode()}, "share_inside_roi": "most"}},
    ],
    ids=str,
)
def test_an_answer_of_another_form_is_not_shown(stub, changes):
    assert stub(200, answered(**changes)).endswith(Words("en")("error_answer"))


def test_an_answer_that_is_nested_without_end(stub):
    assert stub(200, b"[" * 200_000).endswith(Words("en")("error_answer"))


SITE = validated.entry().to_dict()
FACTS = {
    "version": 1,
    "backbone": "ResNet50",
    "serving_domain": "cropped",
    "margin": 0.25,
    "data_digest": "0" * 64,
    "threshold": 0.5,
    "form": "keras",
    "forms": {"keras": {"test": {"cropped": {}}}},
    "not_released": [],
}


@pytest.mark.parametrize(
    "facts",
    [
        b"",
        b"[]",
        b"7",
        b"{}",
        b"[" * 200_000,
        *(json.dumps(FACTS | odd).encode() for odd in (
            {"version": "1"},
            {"threshold": float("nan")},
            {"threshold": 10**400},
            {"margin": None},
            {"forms": []},
            {"serving_domain": None, "forms": None},
            {"not_released": 5},
            {"audits": {"kept": {"a": "x"}}},
            {"validations": 5},
            {"validations": [{}]},
            {"validations": [SITE | {"boxes": "round"}]},
            {"validations": [SITE | {"patients": "many"}]},
            {"validations": [SITE | {"figures": {"auroc": validated.beside(0.9, 1.2)}}]},
            {"validations": [SITE | {"figures": {"auroc": validated.beside(0.9, 0.7) | {"external": None}}}]},
            {"validations": [SITE | {"figures": {"auroc": validated.NONE | {"difference": {"value": "x"}}}}]},
        )),
    ],
    ids=lambda facts: facts[:60].decode(),
)  # fmt: skip
def test_facts_of_another_form_do_not_keep_the_page_from_opening(stub_address, facts, monkeypatch):
    monkeypatch.setattr(Stub, "facts", facts)
    home = app.create(app.Options(stub_address)).test_client().get("/")
    assert home.status_code == 200
    assert Words("en")("model_away") in home.text


def test_sound_facts_are_shown(stub_address, monkeypatch):
    monkeypatch.setattr(Stub, "facts", json.dumps(FACTS).encode())
    home = app.create(app.Options(stub_address)).test_client().get("/")
    assert Words("en")("model_away") not in home.text
    assert Words("en")("not_measured") in home.text
    assert Words("en")("domain_cropped", margin="25\N{NO-BREAK SPACE}%") in home.text


def opened(stub_address, monkeypatch, language: str = "en", **facts) -> str:
    """Return the page of an endpoint with these facts."""
    monkeypatch.setattr(Stub, "facts", json.dumps(FACTS | facts).encode())
    return app.create(app.Options(stub_address)).test_client().get(f"/?lang={language}").text


def rows(home: str) -> list[list[str]]:
    """Return the cells of the tables of other hospitals."""
    found = re.findall(r"<tr>(<th scope=.row.*?)</tr>", home.replace("\N{NO-BREAK SPACE}", " "))
    cells = (re.findall(r"<t[hd].*?</t[hd]>", row) for row in found)
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in cells]


@pytest.mark.parametrize("language", LANGUAGES)
def test_figures_of_other_hospitals_stand_beside_the_models_own(stub_address, monkeypatch, language):
    w = Words(language)
    newer = validated.entry(site="<i>Busan</i>", created="2025-05-02", figures={"auroc": validated.beside(0.92, 0.9)})
    home = opened(stub_address, monkeypatch, language, validations=[SITE, newer.to_dict()])
    assert w("sites_none") not in home
    assert "<i>Busan</i>" not in home
    assert home.index("&lt;i&gt;Busan") < home.rindex("Seoul East"), "newest first"
    assert rows(home) == [
        [w("auroc"), "0.92 (0.87–0.97)", "0.90 (0.85–0.95)", "−0.02 (−0.09, +0.05)"],
        [w("auroc"), "0.92 (0.87–0.97)", "0.78 (0.73–0.83)", "−0.14 (−0.21, −0.07)"],
        [w("sensitivity"), "95 % (90–100 %)", "84 % (79–89 %)", "−11 (−18, −4)"],
        [w("specificity"), "70 % (65–75 %)", "72 % (67–77 %)", "+2 (−5, +9)"],
    ]
    assert w("sites_of", date="2025-03-01", patients=120, malignant=40, images=240) in home
    warned = w("warning_site", site="Seoul East", internal="0.92 (0.87–0.97)", external="0.78 (0.73–0.83)")
    assert home.count(warned) == 1
    assert "Busan" not in "".join(re.findall(r'<p class="warn">.*?</p>', home)), "its interval includes 0"


def test_a_model_that_was_never_tried_elsewhere_says_so(stub_address, monkeypatch):
    none, unknown = (Words("en")(f"sites_{name}") for name in ("none", "unknown"))
    for facts in ({}, {"validations": []}):
        home = opened(stub_address, monkeypatch, **facts)
        assert none in home
        assert unknown not in home
    home = opened(stub_address, monkeypatch, validations=None)
    assert none not in home
    assert unknown in home


def test_only_the_newest_figures_of_a_hospital_are_shown(stub_address, monkeypatch):
    figures = {"auroc": validated.beside(0.92, 0.91)}
    again = validated.entry(site="seoul  east", created="2025-06-01", figures=figures, synthetic=7).to_dict()
    automatic = validated.entry(boxes="automatic", figures=figures).to_dict()
    home = opened(stub_address, monkeypatch, validations=[SITE, automatic, again])
    assert [row[2] for row in rows(home)] == ["0.91 (0.86–0.96)"] * 2
    assert Words("en")("sites_earlier", count=1) in home
    assert Words("en")("sites_automatic") in home
    assert Words("en")("sites_synthetic", count=7) in home


def test_a_hospital_with_one_class_shows_what_it_can(stub_address, monkeypatch):
    few = validated.beside(0.9, 1.0) | {"external": validated.interval(1.0, None, None), "difference": None}
    figures = {"auroc": validated.NONE, "sensitivity": few}
    home = opened(stub_address, monkeypatch, validations=[validated.entry(figures=figures).to_dict()])
    assert rows(home) == [["AUROC", "–", "–", "–"], ["Sensitivity", "90 % (85–95 %)", "100 % (–)", "–"]]


def test_an_endpoint_that_is_down(tmp_path):
    running = Page(tmp_path / "log", f"http://127.0.0.1:{free_port()}").wait()
    try:
        home = httpx.get(running.address)
        assert Words("en")("model_away") in said(home)
        answer = running.visitor().read([("a.png", png(100, 100))])
        assert answer.status_code == 502
        assert alert(answer).endswith(Words("en")("error_unreachable"))
        assert Words("en")("notice") in said(answer)
        assert Words("en")("error_unreachable") in said(httpx.get(f"{running.address}/report"))
    finally:
        running.stop()


def test_an_endpoint_that_says_nothing_does_not_keep_the_page_from_opening():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        home = app.create(app.Options(f"http://127.0.0.1:{silent.getsockname()[1]}")).test_client().get("/")
        assert Words("en")("model_away") in home.text


def test_a_replica_takes_the_form_of_another_one(server, page, visitor, tmp_path, frames):
    other = Page(tmp_path / "log", f"http://127.0.0.1:{server.port}", environment=SECRETS).wait()
    visitor.client.base_url = other.address
    assert visitor.read([frames[0][:2]], [frames[0][2]]).status_code == 200
    other.stop()


def test_make_serve_starts_both_and_ends_both(model, tmp_path):
    page_port = free_port()
    running = Server(tmp_path / "log", "--registry", str(model), "--page-port", str(page_port)).wait()
    wait_until(lambda: answers(page_port))
    log = running.stop()
    assert f"http://localhost:{running.port}" in log
    assert f"http://localhost:{page_port}" in log
    assert not answers(page_port)


@pytest.mark.slow
def test_the_page_ends_with_an_endpoint_that_is_killed(model, tmp_path):
    page_port = free_port()
    running = Server(tmp_path / "log", "--registry", str(model), "--page-port", str(page_port))
    wait_until(lambda: answers(page_port))
    running.kill()
    wait_until(lambda: not answers(page_port))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_addresses_and_ports_that_are_none(capsys):
    for arguments, told in (
        (["--endpoint", "localhost:8080"], "--endpoint"),
        (["--endpoint", "http://localhost:8080", "--port", "99999"], "99999"),
    ):
        assert command.main(arguments) == 2
        assert told in capsys.readouterr().err


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        # the later of two counts
        running = Page(tmp_path / "log", "http://localhost:1", "--port", str(port))
        assert running.process.wait(timeout=60) == 2
    assert f"port {port}" in running.log.read_text()


def test_the_sample_is_a_synthetic_scan_with_its_box(page, visitor):
    sample = httpx.get(f"{page.address}/sample")
    assert phantom.MARK in sample.content
    assert visitor.read([("sample.jpg", sample.content)], [sample.headers["x-roi"]]).status_code == 200
