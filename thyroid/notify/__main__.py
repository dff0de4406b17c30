"""Send a test message to every receiver of notifications that the environment names.

python -m thyroid.notify
"""

import datetime
import os
import sys
import uuid

from thyroid import RESEARCH_USE_ONLY, command
from thyroid.errors import InputError
from thyroid.notify.notification import Notification
from thyroid.notify.notify import send
from thyroid.notify.receivers import PLAIN, SLACK, configured


def run() -> None:
    """Send a test message to every receiver of notifications that the environment names.

    Raises:
        InputError: No receiver is named, a variable cannot be used, or a receiver did not take the message.
    """
    receivers, problems = configured(os.environ)
    if problems:
        raise InputError("; ".join(problems))
    if not receivers:
        raise InputError(f"no receiver: set {SLACK} or {PLAIN} to the address of a webhook")
    now = datetime.datetime.now(datetime.UTC)
    message = Notification(
        id=f"msg_{uuid.uuid4().hex}",
        event="test",
        time=now.isoformat(timespec="seconds"),
        sentence="This is a test of the notifications.",
        notice=RESEARCH_USE_ONLY,
    )
    outcomes = send([receiver.request(message, int(now.timestamp())) for receiver in receivers])
    if lost := [f"{name}: {outcome}" for name, outcome in outcomes.items() if outcome != "delivered"]:
        raise InputError(f"a test message was not delivered: {'; '.join(lost)}; check the address and the network")
    print("\n".join(f"{name}: delivered" for name in outcomes))


main = command.main("python -m thyroid.notify", run)

if __name__ == "__main__":
    sys.exit(main())
