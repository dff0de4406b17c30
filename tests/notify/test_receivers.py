import base64
import hashlib
import hmac
import json

import pytest

from tests.support.receivers import SECRET
from thyroid import RESEARCH_USE_ONLY
from thyroid.notify.notification import Notification
from thyroid.notify.receivers import KEY, PAGES, PLAIN, SLACK, Receiver, configured, run_page

MESSAGE = Notification(
    id="msg_1",
    event="gate.released",
    time="2026-11-29T02:30:00+00:00",
    sentence="A <b> & c.",
    link="https://kubeflow.example/#/runs/details/7",
    run="7",
    version=12,
    notice=RESEARCH_USE_ONLY,
)


def test_slack_gets_a_text_with_a_link_in_its_markup():
    request = Receiver("slack", "https://x/y").request(MESSAGE, 1)
    assert json.loads(request["body"]) == {
        "text": f"A &lt;b&gt; &amp; c. <https://kubeflow.example/#/runs/details/7|Open>\n_{RESEARCH_USE_ONLY}_"
    }
    assert not {name for name in request["headers"] if name.startswith("webhook")}


@pytest.mark.parametrize("link", ["gs://bucket/registry/thyroid/12", "https://x/a|b>"])
def test_what_slack_takes_for_no_link_is_plain_text(link):
    request = Receiver("slack", "https://x/y").request(MESSAGE.model_copy(update={"link": link}), 1)
    shown = link.replace(">", "&gt;")
    assert json.loads(request["body"])["text"].startswith(f"A &lt;b&gt; &amp; c. ({shown})\n")


def test_the_plain_form_is_the_record_signed_as_standard_webhooks_say():
    key = b"k" * 32
    request = Receiver("plain", "https://x/y", key).request(MESSAGE, 1764383400)
    assert Notification.parse(json.loads(request["body"]), "body") == MESSAGE
    headers = request["headers"]
    assert headers["webhook-id"] == "msg_1"
    assert headers["webhook-timestamp"] == "1764383400"
    signed = f"msg_1.1764383400.{request['body']}".encode()
    version, _, signature = headers["webhook-signature"].partition(",")
    assert version == "v1"
    assert base64.b64decode(signature) == hmac.new(key, signed, hashlib.sha256).digest()


def test_the_signature_is_that_of_the_standards_own_example():
    # https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    (receiver,), _ = configured({PLAIN: "https://x/y", KEY: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    body = '{"test": 2432232314}'
    signed = f"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{body}".encode()
    digest = hmac.new(receiver.key, signed, hashlib.sha256).digest()
    assert base64.b64encode(digest).decode() == "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example/services/x",
        "http://localhost:8065/hooks/x",
        "http://127.0.0.1/x",
        "http://[::1]:80/x",
        "http://mattermost.chat.svc:8065/hooks/x",
        "http://mattermost.chat.svc.cluster.local/hooks/x",
    ],
)
def test_addresses_that_can_be_used(url):
    receivers, problems = configured({SLACK: f"{url}\n", PLAIN: url})
    assert [(one.form, one.url) for one in receivers] == [("slack", url), ("plain", url)]
    assert not problems
    assert url not in repr(receivers)


@pytest.mark.parametrize(
    "url",
    [
        "hooks.example/x",
        "ftp://hooks.example/x",
        "http://hooks.example/x",
        "http://10.0.0.7/x",
        "http://localhost.example/x",
        "http://evil-svc/x",
        "https:///x",
        "https://h:99999/x",
        "https://[::1/x",
        "https://host/a b",
        "https://host/a\r\nX: y",
        "https://host/\x00",
    ],
)
@pytest.mark.parametrize("variable", [SLACK, PLAIN])
def test_other_addresses_are_refused_without_being_quoted(variable, url):
    receivers, (problem,) = configured({variable: url + SECRET})
    assert not receivers
    assert problem.startswith(f"{variable}: ")
    assert "https://" in problem
    assert SECRET not in problem
    assert url.removeprefix("https://host") not in problem


@pytest.mark.parametrize("key", ["whsec_", "whsec_no base64!", "kéy", "abc"])
def test_a_message_that_cannot_be_signed_is_not_sent_unsigned(key):
    receivers, (problem,) = configured({PLAIN: "https://x/y", KEY: key})
    assert not receivers
    assert problem.startswith(f"{KEY}: ")
    assert key.removeprefix("whsec_") not in problem or not key.removeprefix("whsec_")


def test_nothing_is_configured_without_variables():
    assert configured({}) == ([], [])
    assert configured({SLACK: "", PLAIN: " ", KEY: "whsec_AAAA"}) == ([], [])


def test_the_page_of_a_run_needs_the_address_of_the_ui():
    assert run_page({PAGES: "https://kf.example/pipeline/\n"}, "7") == "https://kf.example/pipeline/#/runs/details/7"
    assert run_page({PAGES: "https://kf.example/pipeline"}, "") == ""
    assert run_page({PAGES: "kf.example"}, "7") == ""
    assert run_page({}, "7") == ""
