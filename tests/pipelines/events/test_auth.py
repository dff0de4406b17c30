"""Who may send: the token of the file, and identities of an issuer, whose keys are kept and rarely fetched."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pipelines.events import auth
from pipelines.events.auth import Gate, Senders
from tests.notify.test_notify import certificate
from thyroid.errors import InputError
from thyroid.serve.limits import RequestError

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SUBJECT, AUDIENCE = "system:serviceaccount:lab:sender", "thyroid-listen"


class Issuer(http.server.ThreadingHTTPServer):
    """An issuer that counts how often it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                self.send_response(issuer.status)
                self.end_headers()
                body = issuer.bodies.get(self.path, b"{}")
                if not issuer.pause:
                    self.wfile.write(body)
                    return
                with contextlib.suppress(OSError):
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(issuer.pause)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.status, self.pause = 0, 200, 0.0
        self.url = f"http://127.0.0.1:{self.server_port}"
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key())) | {"kid": "one", "use": "sig"}
        self.bodies = {
            "/.well-known/openid-configuration": json.dumps({"jwks_uri": f"{self.url}/keys"}).encode(),
            "/keys": json.dumps({"keys": [public]}).encode(),
        }
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    yield running
    running.shutdown()
    running.server_close()


def gate(issuer: Issuer, **more: Any) -> Gate:
    return Gate(Senders(issuer=issuer.url, audience=AUDIENCE, subject=(SUBJECT, "a@example.com"), **more))


def signed(issuer: Issuer, key: Any = KEY, kid: str = "one", algorithm: str = "RS256", **claims: Any) -> str:
    now = int(time.time())
    given = {"iss": issuer.url, "aud": AUDIENCE, "sub": SUBJECT, "iat": now, "exp": now + 600} | claims
    given = {name: value for name, value in given.items() if value is not None}
    return "Bearer " + jwt.encode(given, key, algorithm, headers={"kid": kid})


def status(gate: Gate, authorization: str) -> int:
    try:
        gate.admit(authorization)
    except RequestError as error:
        return int(error.status)
    return 200


def test_the_token_of_the_file(tmp_path: Path):
    (tmp_path / "token").write_text("s3cret\n")
    one = Gate(Senders(event_token_file=tmp_path / "token"))
    assert status(one, "Bearer s3cret") == status(one, "bearer s3cret") == 200
    for wrong in ("", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer \xe9"):
        assert status(one, wrong) == 401, wrong


def test_everybody_if_it_is_said():
    assert status(Gate(Senders(no_auth=True)), "") == 200


def test_who_the_issuer_vouches_for(issuer):
    one = gate(issuer)
    assert status(one, signed(issuer)) == 200
    assert status(one, signed(issuer, sub="1", email="a@example.com", email_verified=True)) == 200
    assert issuer.asked == 2, "its keys are kept"


def test_a_token_beside_the_issuer(issuer, tmp_path):
    (tmp_path / "token").write_text("s3cret")
    one = gate(issuer, event_token_file=tmp_path / "token")
    assert status(one, "Bearer s3cret") == 200
    assert issuer.asked == 0
    assert status(one, signed(issuer)) == 200
    assert status(one, "Bearer other") == 401


WRONG: dict[str, dict[str, Any]] = {
    "another subject": {"sub": "system:serviceaccount:lab:other"},
    "an address that is not verified": {"sub": "1", "email": "a@example.com"},
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "another issuer": {"iss": "https://example.com"},
    "expired": {"exp": int(time.time()) - 3600},
    "not expiring": {"exp": None},
    "not yet": {"nbf": int(time.time()) + 10**6},
    "no subject": {"sub": None},
    "another key": {"key": OTHER},
    "another kind of key": {"key": ec.generate_private_key(ec.SECP256R1()), "algorithm": "ES256"},
    "not signed": {"key": "", "algorithm": "none"},
    "a secret of its own": {"key": "x" * 32, "algorithm": "HS256"},
}


@pytest.mark.parametrize("what", WRONG)
def test_who_it_does_not_vouch_for(issuer, what):
    assert status(gate(issuer), signed(issuer, **WRONG[what])) == 401


@pytest.mark.parametrize("text", ["Bearer a.b.c", "Bearer ...", "Bearer eyJ.eyJ.", "Bearer " + "x" * 50_000])
def test_what_is_no_token(issuer, text):
    assert status(gate(issuer), text) == 401


def test_unknown_keys_do_not_make_it_ask_again_and_again(issuer, monkeypatch):
    one = gate(issuer)
    assert status(one, signed(issuer, kid="unknown")) == 401
    for number in range(20):
        assert status(one, signed(issuer, kid=f"unknown-{number}")) == 503, "it may be new; the sender tries again"
    assert issuer.asked == 2
    assert status(one, signed(issuer)) == 200
    monkeypatch.setattr(auth, "PAUSE", 0.0)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER.public_key())) | {"kid": "two"}
    issuer.bodies["/keys"] = json.dumps({"keys": [public]}).encode()
    assert status(one, signed(issuer, key=OTHER, kid="two")) == 200, "keys are replaced now and then"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"keys": 1}', b'{"keys": []}', b"x" * 2_000_000, b'{"keys": [{}]}'])
def test_an_issuer_that_answers_nonsense(issuer, body):
    issuer.bodies["/keys"] = body
    one = gate(issuer)
    assert status(one, signed(issuer)) == 503, "the sender tries again"
    assert status(one, signed(issuer)) == 503
    assert issuer.asked == 2


def test_an_issuer_that_is_away(issuer):
    issuer.status = 500
    one = gate(issuer)
    assert status(one, signed(issuer)) == 503
    assert status(one, signed(issuer)) == 503
    assert issuer.asked == 1


def test_an_issuer_that_draws_its_answer_out(issuer, monkeypatch):
    monkeypatch.setattr(auth, "FETCH_SECONDS", 0.3)
    issuer.pause = 0.02
    assert status(gate(issuer), signed(issuer)) == 503


def test_senders_do_not_wait_for_ever_while_another_one_asks_the_issuer(issuer, monkeypatch):
    monkeypatch.setattr(auth, "FETCH_SECONDS", 0.1)
    one = gate(issuer)
    with one._lock:
        assert status(one, signed(issuer)) == 503


def test_an_address_of_keys_that_is_a_file(issuer):
    issuer.bodies["/.well-known/openid-configuration"] = b'{"jwks_uri": "file:///etc/passwd"}'
    assert status(gate(issuer), signed(issuer)) == 503


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "--event-token-file or --issuer; with --no-auth"),
        ({"no_auth": True, "issuer": "https://a"}, "--no-auth: give it alone"),
        ({"issuer": "https://a"}, "--audience and --subject"),
        ({"issuer": "https://a", "audience": "b"}, "--audience and --subject"),
        ({"audience": "b", "no_auth": True}, "--audience and --subject"),
        *(
            ({"issuer": issuer, "audience": "b", "subject": ("c",)}, f"--issuer {issuer}: expected https")
            for issuer in (
                "http://a",
                "http://localhost.a",
                "http://127.0.0.1.a",
                "http://localhost@a",
                "file:///a",
                "https:///a",
            )
        ),
    ],
)
def test_options_that_do_not_fit_together(given, said):
    with pytest.raises(InputError, match=said):
        Gate(Senders(**given))


def test_an_empty_token_file(tmp_path):
    (tmp_path / "token").write_text("\n")
    with pytest.raises(InputError, match="contains no token"):
        Gate(Senders(event_token_file=tmp_path / "token"))


def test_a_token_of_any_bytes(tmp_path):
    (tmp_path / "token").write_bytes(b"\xff\xfe\n")
    one = Gate(Senders(event_token_file=tmp_path / "token"))
    assert status(one, "Bearer \xff\xfe") == 200
    assert status(one, "Bearer \xff") == 401


def test_the_issuers_certificate_is_trusted_beside_those_of_the_system(tmp_path, monkeypatch):
    """An issuer of a cloud has a public one, whatever the cluster's authority is."""
    for name in ("system", "own"):
        (tmp_path / name).write_bytes(certificate()[0])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert auth._trusting(tmp_path / "own").cert_store_stats()["x509"] == 2


def test_a_certificate_that_is_none(tmp_path):
    (tmp_path / "ca.crt").write_text("none")
    given = Senders(issuer="https://a", audience="b", subject=("c",), issuer_certificate=tmp_path / "ca.crt")
    with pytest.raises(InputError, match="--issuer-certificate"):
        Gate(given)
