"""The page in a real browser. `make test-browser` installs Chromium; pictures of every state go to output-browser/."""

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from pydicom.data import get_testdata_file

from tests.support import ROOT, dicoms, pages, validated
from tests.support.serving import Server, free_port
from thyroid.imaging import images, phantom
from thyroid.model.artefact import Artefact
from thyroid.registry import validations
from thyroid.registry.registry import Registry
from thyroid.web.endpoint import FRESH
from thyroid.web.words import Words

pytestmark = pytest.mark.browser
SHOTS = ROOT / "output-browser"
DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
EN, KO = Words("en"), Words("ko")


@pytest.fixture(scope="module")
def served(model, tmp_path_factory) -> Iterator[pages.Page]:
    """The page before an endpoint."""
    folder = tmp_path_factory.mktemp("served")
    server = Server(folder / "endpoint", "--registry", str(model)).wait()
    page = pages.Page(folder / "page", f"http://127.0.0.1:{server.port}", "--proxies", "1").wait()
    yield page
    page.stop()
    server.stop()


@pytest.fixture
def visit(browser, served, request):
    """Opens the page as somebody; at the end nothing may have gone wrong in the browser or have left for elsewhere."""
    contexts, wrong = [], []
    number = iter(range(250))

    def opened(address: str = served.address, path: str = "/", language: str = "en", **options) -> Page:
        forwarded = f"10.{abs(hash(request.node.name)) % 250}.9.{next(number)}"
        context = browser.new_context(
            **DESK | {"locale": language, "extra_http_headers": {"x-forwarded-for": forwarded}} | options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        page.on(
            "request",
            lambda asked: wrong.append(asked.url) if not asked.url.startswith((address, "data:", "blob:")) else None,
        )
        page.goto(address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    # that the page's own requests may be refused is what some tests are about
    assert [one for one in wrong if "Failed to load resource" not in one] == []


@pytest.fixture(scope="module")
def scans(phantoms) -> list[tuple[str, tuple[int, int, int, int]]]:
    """File and box of some phantoms."""
    rows = [line.split(",") for line in (phantoms / "rois.csv").read_text().splitlines()[1:5]]
    return [(str(phantoms / "scans" / row[0]), tuple(map(int, row[1:5]))) for row in rows]


def shot(page: Page, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.wait_for_timeout(150)  # transitions
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def accessible(page: Page) -> None:
    """No violation of axe-core's rules, in light and in dark."""
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(200)
        found = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []


def fits(page: Page) -> None:
    """Nothing reaches over the side."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def to_screen(page: Page, x: float, y: float) -> tuple[float, float]:
    """Return the screen position of a pixel of the picture on the stage."""
    code = (
        "([x, y]) => { const p = new DOMPoint(x, y)"
        ".matrixTransform(document.querySelector('#stage svg').getScreenCTM());\n"
        "        return [p.x, p.y]; }"
    )
    return tuple(page.evaluate(code, [x, y]))


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With the mouse, from one pixel of the picture to another."""
    page.locator("#stage").scroll_into_view_if_needed()
    page.mouse.move(*to_screen(page, *start))
    page.mouse.down()
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    page.mouse.move(*to_screen(page, *middle))
    page.mouse.move(*to_screen(page, *end))
    page.mouse.up()


def box(page: Page) -> list[int]:
    rect = page.locator("#stage .roi")
    return [round(float(rect.get_attribute(side) or 0)) for side in ("x", "y", "width", "height")]


def mark(page: Page, roi: tuple[int, int, int, int]) -> None:
    drag(page, roi[:2], (roi[0] + roi[2], roi[1] + roi[3]))
    assert all(abs(drawn - meant) <= 2 for drawn, meant in zip(box(page), roi, strict=True)), (box(page), roi)


def seen(page: Page, selector: str) -> list[str]:
    """What these pictures look like."""
    code = """(selector) => Promise.all([...document.querySelectorAll(selector)].map(async (one) => {
        const image = new Image(); image.src = one.src || one.href.baseVal; await image.decode();
        const canvas = document.createElement('canvas'); canvas.width = 64; canvas.height = 48;
        canvas.getContext('2d').drawImage(image, 0, 0, 64, 48); return canvas.toDataURL(); }))"""
    return page.evaluate(code, selector)


def read(page: Page) -> None:
    page.click("#analyse")
    expect(page.locator(".reading")).to_be_visible(timeout=30_000)


def alerted(page: Page) -> str:
    expect(page.locator("#alerts .error")).to_be_visible(timeout=30_000)
    return page.locator("#alerts").inner_text()


@pytest.mark.parametrize("form", ["desk", "phone"])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_from_the_scan_to_the_answer(visit, scans, language, form):
    say = Words(language)
    page = visit(language=language, **(PHONE if form == "phone" else {}))
    name = f"{language}-{form}"
    expect(page.locator("html")).to_have_attribute("lang", language)
    expect(page.get_by_text(say("notice")).first).to_be_visible()
    expect(page.get_by_text(say("drop"))).to_be_visible()
    accessible(page)
    shot(page, f"1-open-{name}")
    file, roi = scans[0]
    page.set_input_files("#files", file)
    expect(page.locator("#stage image")).to_be_visible()
    expect(page.locator("#views .has")).to_have_text(re.compile(f"{say('box_missing')}|{say('box_proposed')}"))
    mark(page, roi)
    expect(page.locator("#views .has")).to_have_text(say("box_there"))
    accessible(page)
    fits(page)
    shot(page, f"2-marked-{name}")
    read(page)
    answer = page.locator(".reading")
    expect(answer.get_by_text(say("who"))).to_be_visible()
    assert re.search(r"\d %", answer.inner_text().replace("\u00a0", " "))
    assert any(say(f"decision_{one}") in answer.inner_text() for one in ("malignant", "benign", "abstain"))
    expect(page.locator("#result")).to_be_focused()
    heat = page.locator(".answer .heat")
    page.locator(".slider input").fill("0")
    assert float(heat.get_attribute("opacity") or 1) == 0
    page.locator(".slider input").fill("80")
    assert float(heat.get_attribute("opacity") or 0) == 0.8
    accessible(page)
    fits(page)
    shot(page, f"3-answer-{name}")


def test_several_views_of_a_patient(visit, scans):
    page = visit()
    page.set_input_files("#files", [file for file, _ in scans])
    expect(page.locator("#views li")).to_have_count(len(scans))
    for number, (_, roi) in enumerate(scans):
        page.locator("#views .thumb").nth(number).click()
        mark(page, roi)
    expect(page.locator("#views .has.yes")).to_have_count(len(scans))
    accessible(page)
    shot(page, "several-marked")
    page.get_by_role("button", name=EN("remove", number=2)).click()
    expect(page.locator("#views li")).to_have_count(len(scans) - 1)
    read(page)
    expect(page.locator(".answer")).to_have_count(len(scans) - 1)
    expect(page.get_by_text(EN("patient_result", count=len(scans) - 1))).to_be_visible()
    accessible(page)
    shot(page, "several-answer")
    # each answer stands on the picture that it belongs to
    page.get_by_role("button", name=EN("remove", number=1)).click()
    shown = page.evaluate("[...document.querySelectorAll('.answer .scan')].map((one) => one.href.baseVal)")
    assert len(set(shown)) == len(scans) - 1
    page.get_by_role("button", name=EN("start_over")).click()
    expect(page.locator(".reading")).to_have_count(0)
    expect(page.get_by_text(EN("drop"))).to_be_visible()


def test_a_box_is_corrected(visit, scans):
    page = visit()
    page.set_input_files("#files", scans[0][0])
    mark(page, (200, 150, 120, 90))
    drag(page, (320, 240), (360, 280))  # a corner
    x, y, width, height = box(page)
    assert (abs(x - 200) <= 2, abs(y - 150) <= 2, abs(width - 160) <= 3, abs(height - 130) <= 3) == (True,) * 4
    drag(page, (280, 215), (300, 205))  # the box
    assert abs(box(page)[0] - 220) <= 3
    assert box(page)[2:] == [width, height]
    page.locator("#stage .roi").focus()
    before = box(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    after = box(page)
    assert after[0] > before[0]
    assert after[3] > before[3]
    page.get_by_text(EN("box_exact")).click()
    page.get_by_label(EN("box_x"), exact=True).fill("17")
    assert box(page)[0] == 17
    page.get_by_label(EN("box_width"), exact=True).fill("9000")
    assert box(page)[0] + box(page)[2] <= 640, "it stays in the picture"
    drag(page, (500, 400), (503, 402))  # a slip of the hand
    assert box(page)[2] > 10
    page.locator("#stage .roi").focus()
    page.keyboard.press("Delete")
    expect(page.locator("#views .has")).to_have_text(EN("box_missing"))


def test_a_finger_draws_the_box(visit, scans):
    page = visit(**PHONE)
    page.set_input_files("#files", scans[0][0])
    page.locator("#stage").scroll_into_view_if_needed()
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *place: float) -> None:
        points = [dict(zip("xy", to_screen(page, *place), strict=True))] if place else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 200, 150)
    for step in range(1, 6):
        touch("touchMove", 200 + 24 * step, 150 + 18 * step)
    touch("touchEnd")
    assert all(abs(drawn - meant) <= 3 for drawn, meant in zip(box(page), (200, 150, 120, 90), strict=True)), box(page)


def test_dicom_and_a_clip(visit, tmp_path):
    (tmp_path / "KIM.dcm").write_bytes(dicoms.write(dicoms.cine(7), name="KIM^YOUNG HEE"))
    page = visit()
    page.set_input_files("#files", tmp_path / "KIM.dcm")
    expect(page.locator("#clip")).to_contain_text(EN("frame", frame=4, frames=7))
    expect(page.locator("#clip-note")).to_have_text(EN("dicom_cleared"))
    first = page.locator("#stage image").get_attribute("href")
    mark(page, (40, 40, 60, 50))
    page.get_by_label(EN("frame_choose")).fill("6")
    expect(page.locator("#clip")).to_contain_text(EN("frame", frame=6, frames=7))
    assert page.locator("#stage image").get_attribute("href") != first
    assert box(page)[2] > 50, "the box stays on another frame of the clip"
    accessible(page)
    shot(page, "dicom-clip")
    read(page)
    shot(page, "dicom-answer")


def test_dicom_of_a_machine_that_names_no_region(visit):
    page = visit()
    page.set_input_files("#files", get_testdata_file("examples_jpeg2k.dcm", download=False))
    expect(page.locator("#clip-note")).to_have_text(EN("dicom_check"))
    expect(page.locator("#clip")).to_be_hidden()


def test_bad_files_are_named_and_the_good_ones_stay(visit, scans, tmp_path):
    files = {
        "letter.jpg": b"Dear colleague",
        "empty.png": b"",
        "ct.dcm": Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes(),
        "large.jpg": bytes(50_000_000),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    page = visit()
    page.set_input_files("#files", [*(tmp_path / name for name in files), scans[0][0]])
    told = alerted(page)
    for name, code in (
        ("letter.jpg", "error_kind"),
        ("empty.png", "error_empty"),
        ("ct.dcm", "error_dicom_modality"),
    ):
        assert EN(code, name=name) in told
    assert EN("error_large", name="large.jpg", megabytes=50, limit=30) in told
    expect(page.locator("#views li")).to_have_count(1)
    expect(page.locator("#alerts")).to_be_focused()
    accessible(page)
    shot(page, "bad-files")


def test_a_file_that_only_the_endpoint_finds_damaged(visit, scans, tmp_path):
    """Browsers show what there is of a cut JPEG."""
    (tmp_path / "cut.jpg").write_bytes(Path(scans[1][0]).read_bytes()[:9000])
    page = visit()
    page.set_input_files("#files", [scans[0][0], tmp_path / "cut.jpg"])
    expect(page.locator("#views li")).to_have_count(2)
    page.click("#analyse")
    assert EN("error_damaged", name="cut.jpg") in alerted(page)


def test_too_many_files_and_a_box_of_one_pixel(visit, scans):
    page = visit()
    page.set_input_files("#files", [scans[0][0]] * 30)
    assert EN("error_many", count=30, views=12) in alerted(page)
    page.set_input_files("#files", scans[0][0])
    page.get_by_text(EN("box_exact")).click()
    for side, value in (("width", "1"), ("height", "1"), ("x", "5"), ("y", "5")):
        page.get_by_label(EN(f"box_{side}"), exact=True).fill(value)
    page.click("#analyse")
    assert EN("error_box", name=Path(scans[0][0]).name, width=1, height=1, min=8) in alerted(page)
    shot(page, "bad-box")


def test_files_are_dropped(visit, scans):
    page = visit()
    encoded = base64.b64encode(Path(scans[0][0]).read_bytes()).decode()
    transfer = page.evaluate_handle(
        "(encoded) => { const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));\n"
        "            const transfer = new DataTransfer(); "
        "transfer.items.add(new File([bytes], 'scan.jpg', { type: 'image/jpeg' }));\n"
        "            return transfer; }",
        encoded,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("#views li")).to_have_count(1)


def test_the_endpoint_is_down_and_comes_back(visit, scans, model, tmp_path):
    """Nothing that was marked is lost meanwhile."""
    port = free_port()
    away = pages.Page(tmp_path / "page", f"http://127.0.0.1:{port}").wait()
    server = None
    try:
        page = visit(away.address)
        expect(page.get_by_text(EN("model_away"))).to_be_visible()
        page.set_input_files("#files", scans[0][0])
        mark(page, scans[0][1])
        page.click("#analyse")
        assert EN("error_unreachable") in alerted(page)
        accessible(page)
        shot(page, "endpoint-down")
        server = Server(tmp_path / "endpoint", "--registry", str(model), port=port).wait()
        read(page)
        expect(page.locator("#alerts .error")).to_have_count(0)
    finally:
        away.stop()
        if server is not None:
            server.stop()


def test_the_page_itself_is_down(visit, scans, model, tmp_path):
    gone = pages.Page(tmp_path / "page", "http://127.0.0.1:1").wait()
    page = visit(gone.address)
    page.set_input_files("#files", scans[0][0])
    gone.stop()
    page.click("#analyse")
    assert EN("error_network") in alerted(page)


def test_progress_and_cancel(visit, scans):
    page = visit()
    page.set_input_files("#files", scans[0][0])
    held = []
    page.route("**/read", lambda route: held.append(route))
    page.click("#analyse")
    expect(page.locator("#progress")).to_be_visible()
    expect(page.locator("#analyse")).to_be_disabled()
    expect(page.locator("#status")).to_have_text(re.compile("…"))
    shot(page, "progress")
    page.get_by_role("button", name=EN("cancel")).click()
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#status")).to_have_text(EN("cancelled"))
    page.unroute("**/read")
    read(page)
    expect(page.locator("#status")).to_have_text(EN("done"))


def test_pictures_that_go_while_the_answer_is_on_its_way(visit, scans):
    """Every answer stands on the picture that was sent."""
    page = visit()
    page.set_input_files("#files", [scans[0][0], scans[3][0]])
    expect(page.locator("#views li")).to_have_count(2)
    sent = seen(page, ".thumb img")
    assert sent[0] != sent[1]
    held = []
    page.route("**/read", lambda route: held.append(route))
    page.click("#analyse")
    expect(page.locator("#progress")).to_be_visible()
    page.get_by_role("button", name=EN("remove", number=1)).click()
    held[0].continue_()
    expect(page.locator(".answer")).to_have_count(2, timeout=30_000)
    assert seen(page, ".answer .scan") == sent


def test_a_result_says_when_it_is_of_other_boxes(visit, scans):
    page = visit()
    page.set_input_files("#files", scans[0][0])
    mark(page, scans[0][1])
    read(page)
    expect(page.get_by_text(EN("stale"))).to_have_count(0)
    drag(page, (150, 120), (300, 260))
    expect(page.get_by_text(EN("stale"))).to_be_visible()
    accessible(page)
    read(page)
    expect(page.get_by_text(EN("stale"))).to_have_count(0)


def test_a_new_patient_while_a_file_of_the_last_one_is_opening(visit, scans, tmp_path):
    (tmp_path / "late.dcm").write_bytes(dicoms.write(dicoms.frame(1)))
    page = visit()
    page.set_input_files("#files", scans[0][0])
    expect(page.locator("#views li")).to_have_count(1)
    held = []
    page.route("**/picture", lambda route: held.append(route))
    page.set_input_files("#files", tmp_path / "late.dcm")
    expect(page.get_by_text(EN("opening"))).to_be_visible()
    expect(page.locator("#analyse")).to_be_disabled()
    page.get_by_role("button", name=EN("start_over")).click()
    held[0].continue_()
    expect(page.locator("#status")).to_have_text("")
    expect(page.locator("#views li")).to_have_count(0)


def test_frames_that_arrive_in_another_order(visit, tmp_path):
    (tmp_path / "clip.dcm").write_bytes(dicoms.write(dicoms.cine(9)))
    page = visit()
    page.set_input_files("#files", tmp_path / "clip.dcm")
    expect(page.locator("#clip")).to_contain_text(EN("frame", frame=5, frames=9))
    held = []
    page.route("**/picture", lambda route: held.append(route))
    page.get_by_label(EN("frame_choose")).fill("2")
    page.get_by_label(EN("frame_choose")).fill("8")
    page.wait_for_timeout(200)
    for route in reversed(held):
        route.continue_()
        page.wait_for_timeout(300)
    expect(page.locator("#clip")).to_contain_text(EN("frame", frame=8, frames=9))


def test_a_number_out_of_bounds_does_not_keep_the_form_from_being_sent(visit, scans):
    page = visit()
    page.set_input_files("#files", scans[0][0])
    mark(page, scans[0][1])
    page.get_by_text(EN("box_exact")).click()
    page.get_by_label(EN("box_x"), exact=True).fill("-5.5")
    page.get_by_text(EN("box_exact")).click()
    read(page)


def test_a_page_that_was_open_all_day(visit, scans, tmp_path):
    """Its cookie is no longer taken: it gets another one, and nothing that was marked is lost."""
    (tmp_path / "one.dcm").write_bytes(dicoms.write(dicoms.frame(1)))
    page = visit()
    page.set_input_files("#files", scans[0][0])
    mark(page, scans[0][1])
    page.context.clear_cookies()
    page.set_input_files("#files", tmp_path / "one.dcm")
    expect(page.locator("#views li")).to_have_count(2)
    page.context.clear_cookies()
    read(page)


def test_without_a_mouse(visit, scans):
    """Every step by keyboard: sample, box, reading, slider."""
    page = visit()

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(one) => document.activeElement.matches(one)", selector):
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to(".skip")
    tab_to("#files")
    tab_to("#sample")
    page.keyboard.press("Enter")
    expect(page.locator("#stage .roi:visible, #stage .proposal.best").first).to_be_visible()
    page.keyboard.press("Enter")  # accepts a proposal, where there is one
    expect(page.locator("#stage .roi")).to_be_visible()
    page.locator("#content").focus()
    tab_to("#stage .roi")
    before = box(page)
    page.keyboard.press("ArrowLeft")
    assert box(page)[0] < before[0]
    tab_to("#analyse")
    page.keyboard.press("Enter")
    expect(page.locator(".reading")).to_be_visible(timeout=30_000)
    tab_to("[data-act=print]")
    tab_to(".slider input")
    page.keyboard.press("ArrowLeft")
    assert float(page.locator(".heat").get_attribute("opacity") or 0) < 0.6


@pytest.mark.parametrize(("device", "language"), [("desk", "en"), ("phone", "ko")])
def test_figures_of_other_hospitals(visit, model, tmp_path, device, language):
    copy = shutil.copytree(model, tmp_path / "registry")
    server = Server(tmp_path / "endpoint", "--registry", str(copy)).wait()
    page = pages.Page(tmp_path / "page", f"http://127.0.0.1:{server.port}", "--proxies", "1").wait()
    words, size = Words(language), DESK if device == "desk" else PHONE
    try:
        alone = visit(page.address, language=language, **size)
        expect(alone.get_by_text(words("sites_none"))).to_be_visible()
        figures = {"auroc": validated.beside(0.92, 0.91), "sensitivity": validated.beside(0.95, 0.93)}
        for entry in (
            validated.of(copy),
            validated.of(copy, site="서울대학교병원 Thyroid Center", boxes="automatic", synthetic=240, figures=figures),
        ):
            validations.record(Registry(copy), 1, entry)
        alone.wait_for_timeout(FRESH * 1000)
        shown = visit(page.address, language=language, **size)
        tables = shown.locator(".sites table")
        expect(tables).to_have_count(2)
        expect(tables.first.locator("caption")).to_contain_text("서울대학교병원")
        expect(shown.locator(".model > .warn", has_text="Seoul East")).to_be_visible()
        fits(shown)
        accessible(shown)
        shot(shown, f"sites-{device}")
    finally:
        page.stop()
        server.stop()


def test_the_print_out(visit, scans):
    page = visit()
    page.evaluate("window.print = () => { window.printed = true; }")
    page.set_input_files("#files", scans[0][0])
    mark(page, scans[0][1])
    read(page)
    page.get_by_label(EN("note")).fill("Study 12, left lobe")
    page.get_by_role("button", name=EN("save")).click()
    assert page.evaluate("window.printed")
    page.emulate_media(media="print")
    expect(page.locator(".notice")).to_be_visible()
    expect(page.locator("#form")).to_be_hidden()
    expect(page.locator(".slider")).to_be_hidden()
    expect(page.get_by_label(EN("note"))).to_be_visible()
    expect(page.locator(".reading")).to_contain_text(EN("version"))
    SHOTS.mkdir(exist_ok=True)
    data = page.pdf(path=SHOTS / "answer.pdf", prefer_css_page_size=True)
    assert data.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", data)) == 1, "one picture fits one page"


def test_the_report(visit, model):
    page = visit(path="/report")
    shown = page.frame_locator("iframe")
    expect(shown.get_by_text("Research use only").first).to_be_visible()
    expect(page.get_by_text(EN("report_lead", version=1))).to_be_visible()
    assert Artefact.verify(Registry(model).find()).record.version == 1
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options={"resultTypes": ["violations"], "iframes": False}).response["violations"]
        assert [one["id"] for one in found] == []
    shot(page, "report")


def test_the_language_is_changed(visit):
    page = visit()
    page.get_by_role("link", name="한국어").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(KO("heading"))
    page.get_by_role("link", name=KO("nav_report"), exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(KO("report_title"))


def test_without_javascript(visit, tmp_path):
    """The form works as it is, for pictures that are cut to the nodule."""
    page = visit(java_script_enabled=False)
    drawn = phantom.draw("M", patient=3, image=1)
    x, y, width, height = drawn.roi
    (tmp_path / "crop.jpg").write_bytes(images.encode(drawn.image[y : y + height, x : x + width]))
    page.set_input_files("#files", tmp_path / "crop.jpg")
    page.locator("noscript button").click()
    expect(page.locator(".reading")).to_be_visible(timeout=30_000)
    expect(page.get_by_text(EN("no_box_taken"))).to_be_visible()
    shot(page, "without-script")


def test_the_page_is_one_request_and_interactive(visit):
    page = visit()
    entries = page.evaluate(
        "performance.getEntriesByType('resource').filter((one) => one.initiatorType !== 'img').length"
    )
    assert entries == 0
    assert page.evaluate("performance.getEntriesByName('interactive').length") == 1
