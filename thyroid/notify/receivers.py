"""Who is told, and in which form. The addresses are secrets, so they come from the environment alone.

A Slack address holds its token. No log line and no error message quotes an address.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from thyroid.notify.notification import Notification

SLACK = "THYROID_NOTIFY_SLACK"
"""Variable with the address of a webhook that takes Slack's JSON, as Mattermost and Rocket.Chat do, too."""
PLAIN = "THYROID_NOTIFY_URL"
"""Variable with the address of a receiver that takes the record `Notification` as JSON."""
KEY = "THYROID_NOTIFY_KEY"
"""Variable with the key that signs messages in the plain form; optional."""
PAGES = "THYROID_NOTIFY_PAGES"
"""Variable with the address of Kubeflow Pipelines' UI, for links to runs; optional, and no secret."""
RUN = "THYROID_RUN_ID"
"""Variable with the id of the run that this process is a step of; empty or absent if it is none."""
VARIABLES = {"slack": SLACK, "url": PLAIN, "key": KEY, "pages": PAGES}
"""Fields of the Secret for notifications, and the variables that they become."""

_KEY_PREFIX = "whsec_"
_IN_CLUSTER = (".svc", ".svc.cluster.local", ".localhost")


@dataclass(frozen=True)
class Receiver:
    """Somebody who is told.

    Attributes:
        form: Form of the messages.
        url: Address, which is a secret.
        key: Key of the signature; empty for none.
    """

    form: Literal["slack", "plain"]
    url: str = field(repr=False)
    key: bytes = field(default=b"", repr=False)

    def request(self, notification: Notification, seconds: int) -> dict[str, Any]:
        """Return a message as `post` takes it.

        The plain form has the headers of Standard Webhooks (https://www.standardwebhooks.com, version 1).

        Args:
            notification: What is told.
            seconds: Seconds since the epoch, for the signature.
        """
        headers = {"content-type": "application/json", "user-agent": "thyroid"}
        if self.form == "slack":
            body = json.dumps({"text": _mrkdwn(notification)}, ensure_ascii=False)
        else:
            body = json.dumps(notification.to_dict(), ensure_ascii=False)
            headers |= {"webhook-id": notification.id, "webhook-timestamp": str(seconds)}
        if self.key:
            signed = hmac.digest(self.key, f"{notification.id}.{seconds}.{body}".encode(), hashlib.sha256)
            headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
        return {"name": self.form, "url": self.url, "headers": headers, "body": body}


def configured(environment: Mapping[str, str]) -> tuple[list[Receiver], list[str]]:
    """Return the receivers that the environment names, and what is wrong with those that cannot be used.

    Args:
        environment: Environment variables.

    Returns:
        The receivers, and a line for people about each variable that cannot be used, without its value.
    """
    receivers, problems = [], []
    slack, plain, key = (environment.get(name, "").strip() for name in (SLACK, PLAIN, KEY))
    if slack:
        if wrong := _wrong_address(slack):
            problems.append(f"{SLACK}: {wrong}")
        else:
            receivers.append(Receiver("slack", slack))
    if plain:
        try:
            secret = base64.b64decode(key.removeprefix(_KEY_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if wrong := _wrong_address(plain):
            problems.append(f"{PLAIN}: {wrong}")
        elif key and not secret:
            problems.append(f"{KEY}: not base64; make a key with: echo whsec_$(openssl rand -base64 32)")
        else:
            receivers.append(Receiver("plain", plain, secret))
    return receivers, problems


def run_page(environment: Mapping[str, str], run: str) -> str:
    """Return the address of a run's page in Kubeflow; empty if the environment does not name its UI.

    Args:
        environment: Environment variables.
        run: Id of the run; empty for none.
    """
    pages = environment.get(PAGES, "").strip().rstrip("/")
    return f"{pages}/#/runs/details/{run}" if run and pages.startswith(("https://", "http://")) else ""


def _wrong_address(url: str) -> str:
    """Return why messages cannot be sent to an address; empty if they can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("https", "http") or not url.isprintable() or " " in url:
        return "no https:// address; write it as https://host/path"
    if parts.scheme == "http" and not _is_near(host):
        return "only this machine and services of the cluster (NAME.NAMESPACE.svc) may be told by http://; use https://"
    return ""


def _is_near(host: str) -> bool:
    """Return whether a host is this machine, or a service of this cluster."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(_IN_CLUSTER)


def _mrkdwn(notification: Notification) -> str:
    """Return a message in Slack's markup (https://docs.slack.dev/messaging/formatting-message-text)."""
    link = notification.link or ""
    shown = ""
    if link.startswith(("https://", "http://")) and not set(link) & set("<>| "):
        shown = f" <{_escaped(link)}|Open>"
    elif link:
        shown = f" ({_escaped(link)})"
    return f"{_escaped(notification.sentence)}{shown}\n_{_escaped(notification.notice)}_"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
