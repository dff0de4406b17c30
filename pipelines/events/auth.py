"""Who may send events: whoever has the token of a file, or an identity that an OpenID Connect issuer vouches for."""

import hmac
import json
import logging
import math
import ssl
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt

from thyroid.errors import InputError
from thyroid.serve.limits import RequestError

log = logging.getLogger("thyroid.listen")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key that only the issuer has."""
LEEWAY = 30.0
"""Seconds by which the issuer's clock may differ."""
FETCH_SECONDS, FETCH_BYTES = 5.0, 1_000_000
"""Limits of a request to the issuer."""
FRESH, PAUSE = 3600.0, 30.0
"""Seconds for which the issuer's keys are kept, and that lie between two requests for them at least."""


@dataclass(frozen=True)
class Senders:
    """Who may send events.

    Attributes:
        event_token_file: File with the bearer token that senders must give.
        issuer: Address of an OpenID Connect issuer whose tokens senders may give in its place: https://accounts.google.com
            for Google's push deliveries, that of the cluster for Knative Eventing.
        issuer_certificate: PEM file of the authority that has signed the issuer's certificate, if the system does not
            trust it.
        audience: Audience that these tokens must name.
        subject: Subject or verified e-mail address that may send; may be repeated. Anybody can get a token for any
            audience from a public issuer.
        no_auth: Take events from everybody who reaches the port. Without it, a token file or an issuer must be given.
    """

    event_token_file: Path | None = None
    issuer: str = ""
    issuer_certificate: Path | None = None
    audience: str = ""
    subject: Sequence[str] = ()
    no_auth: bool = False

    def check(self) -> None:
        """Check which options are given together.

        Raises:
            InputError: Senders are neither authenticated nor waved through, or an option lacks another one.
        """
        if self.no_auth and (self.event_token_file or self.issuer):
            raise InputError("--no-auth: give it alone, or give --event-token-file or --issuer without it")
        if not (self.no_auth or self.event_token_file or self.issuer):
            raise InputError("listen: give --event-token-file or --issuer; with --no-auth, everybody may send events")
        if bool(self.issuer) != bool(self.audience) or bool(self.issuer) != bool(self.subject):
            raise InputError("--issuer: give --audience and --subject, too; all three or none")
        if self.issuer and not _is_safe(self.issuer):
            raise InputError(f"--issuer {self.issuer}: expected https://host")


class Gate:
    """Lets senders in.

    Args:
        senders: Who they are.

    Raises:
        InputError: The token file is empty, or the certificate is none.
    """

    def __init__(self, senders: Senders) -> None:
        """Read the token; the issuer's keys are fetched when the first token of it comes."""
        senders.check()
        self._senders = senders
        self._token = senders.event_token_file.read_bytes().strip() if senders.event_token_file else b""
        if senders.event_token_file and not self._token:
            raise InputError(f"--event-token-file {senders.event_token_file}: contains no token")
        self._trust = None
        if senders.issuer_certificate:
            self._trust = _trusting(senders.issuer_certificate)
        self._keys: dict[str, Any] = {}
        self._fetched = self._asked = -math.inf
        self._lock = threading.Lock()

    def admit(self, authorization: str) -> None:
        """Let a sender in or not. This takes a few times `FETCH_SECONDS` at most if the issuer must be asked.

        Args:
            authorization: The request's header of this name; "" without one.

        Raises:
            RequestError: The sender may not send (401), or the issuer must be asked and cannot be asked now (503).
        """
        if self._senders.no_auth:
            return
        scheme, _, presented = authorization.partition(" ")
        presented = presented.strip()
        if scheme.lower() == "bearer" and presented:
            if self._token and hmac.compare_digest(presented.encode("latin-1", "replace"), self._token):
                return
            if self._senders.issuer and self._is_vouched_for(presented):
                return
        raise RequestError("authorization: a bearer token is required", HTTPStatus.UNAUTHORIZED, "unauthorized")

    def _is_vouched_for(self, presented: str) -> bool:
        """Return whether a token is signed by the issuer, for this audience, and about one of the subjects."""
        try:
            key = self._key(str(jwt.get_unverified_header(presented).get("kid", "")))
            if key is None:
                return False
            claims = jwt.decode(
                presented,
                key.key,
                algorithms=list(ALGORITHMS),
                audience=self._senders.audience,
                issuer=self._senders.issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return False
        is_known = claims.get("email_verified") is True and claims.get("email") in self._senders.subject
        return is_known or claims["sub"] in self._senders.subject

    def _key(self, name: str) -> Any:
        """Return a key of the issuer; None if the issuer has just said that it has no such key.

        Raises:
            RequestError: The issuer must be asked and cannot be asked now. It may have a new key, so that a refusal for
                good could lose an event.
        """
        if not self._lock.acquire(timeout=FETCH_SECONDS):  # an issuer must not hold every thread up
            raise _unavailable()
        try:
            now = time.monotonic()
            if now - self._fetched > FRESH or name not in self._keys:
                if now - self._asked <= PAUSE:
                    raise _unavailable()
                self._asked = now
                self._keys, self._fetched = self._fetch_keys(), now
            return self._keys.get(name)
        finally:
            self._lock.release()

    def _fetch_keys(self) -> dict[str, Any]:
        """Fetch the keys of the issuer, by name.

        Raises:
            RequestError: It cannot be reached, or does not answer as OpenID Connect Discovery 1.0 describes.
        """
        try:
            facts = self._fetch(f"{self._senders.issuer.rstrip('/')}/.well-known/openid-configuration")
            keys = jwt.PyJWKSet.from_dict(self._fetch(str(facts["jwks_uri"])))
            return {str(key.key_id): key for key in keys.keys}
        except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
            log.warning("the issuer's keys cannot be read", extra={"fields": {"kind": type(error).__name__}})
            raise _unavailable() from None

    def _fetch(self, address: str) -> Any:
        if not _is_safe(address):
            raise ValueError(address)
        body, deadline = b"", time.monotonic() + FETCH_SECONDS
        with urllib.request.urlopen(address, timeout=FETCH_SECONDS, context=self._trust) as answer:
            if not _is_safe(answer.url):  # after redirections
                raise ValueError(answer.url)
            while (part := answer.read1(FETCH_BYTES)) and len(body) < FETCH_BYTES:
                body += part
                if time.monotonic() > deadline:
                    raise TimeoutError
        return json.loads(body)


def _is_safe(address: str) -> bool:
    """Return whether nobody on the way to an address can change what it answers."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    host = parts.hostname or ""
    return (parts.scheme == "https" and host != "") or (parts.scheme == "http" and host in ("localhost", "127.0.0.1"))


def _trusting(certificate: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(certificate)
        return context
    except ssl.SSLError:
        raise InputError(f"--issuer-certificate {certificate}: no certificate in PEM form") from None


def _unavailable() -> RequestError:
    text = "the issuer of the token cannot be asked now; try again"
    return RequestError(text, HTTPStatus.SERVICE_UNAVAILABLE, "issuer")
