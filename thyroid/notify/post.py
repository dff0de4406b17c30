"""Send messages and end in time, whatever the receivers do. `notify` runs this file in a process of its own.

Only the end of a process is sure to end everything: a look-up of a name cannot be interrupted, and a receiver that
sends its answer byte by byte keeps every time-out of a socket.
"""

import json
import signal
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import certifi
import urllib3
from urllib3.util import Timeout, make_headers, parse_url, ssl_

_TIMEOUT = Timeout(connect=4, read=8)
_PAUSES = (0.5, 1.0, 2.0)  # seconds before each further attempt
_LATER = (408, 425, 429)  # refusals that another attempt may not get


def main() -> None:
    """Read requests as JSON from standard input, send them side by side, and print the outcome of each as a line.

    A line is the request's name and "delivered", or why it was not. It never has the address. The argument is the
    number of seconds after which the process ends in any case.
    """
    signal.alarm(int(sys.argv[1]))
    requests = json.load(sys.stdin)
    with ThreadPoolExecutor(len(requests)) as pool:
        list(pool.map(_deliver, requests))


def _deliver(request: dict[str, Any]) -> None:
    for pause in (*_PAUSES, None):
        outcome, again = _attempt(request)
        if not again or pause is None:
            break
        time.sleep(pause)
    sys.stdout.write(f"{request['name']} {outcome}\n")
    sys.stdout.flush()


def _attempt(request: dict[str, Any]) -> tuple[str, bool]:
    """Send a request once.

    A redirect is not followed, so that the message goes nowhere else, and the body of the answer is not read. A message
    whose answer does not come in time is not sent again, since it has most likely arrived.

    Returns:
        The outcome, and whether another attempt may have another one.
    """
    try:
        url = parse_url(request["url"])
        headers = request["headers"] | _credentials(url.auth, "basic_auth")
        answer = _pool(url).request(
            "POST",
            url._replace(auth=None).url,
            body=request["body"].encode(),
            headers=headers,
            redirect=False,
            retries=False,
            preload_content=False,
            timeout=_TIMEOUT,
        )
        status = answer.status
        answer.close()
    except Exception as error:  # its text may quote the address
        lost = isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ProtocolError)
        return type(error).__name__, lost or isinstance(error, urllib3.exceptions.ConnectTimeoutError)
    if 200 <= status < 300:
        return "delivered", False
    return f"status {status}", status >= 500 or status in _LATER


def _pool(url: urllib3.util.Url) -> urllib3.PoolManager:
    """Return a pool that trusts this machine's certificates and certifi's, and asks the proxy of the environment."""
    context = ssl_.create_urllib3_context()
    context.load_default_certs()
    context.load_verify_locations(certifi.where())
    proxy = urllib.request.getproxies().get(url.scheme or "")
    if not proxy or urllib.request.proxy_bypass(url.host or ""):
        return urllib3.PoolManager(ssl_context=context)
    credentials = _credentials(parse_url(proxy).auth, "proxy_basic_auth")
    return urllib3.ProxyManager(proxy, proxy_headers=credentials, ssl_context=context)


def _credentials(auth: str | None, kind: str) -> dict[str, str]:
    return dict(make_headers(**{kind: unquote(auth)})) if auth else {}  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
