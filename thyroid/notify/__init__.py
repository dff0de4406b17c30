"""Tells people by webhook what happened: a run's end, a gate's decision, a watch's alarm, a deployment taken back.

`words` says what happened, `notification` is the message, `receivers` says who is told and in which form, `post` sends
it, and `notify` remembers what was told, so that each event is told once.
"""

from thyroid.notify.notify import present_run, tell
from thyroid.notify.words import News

__all__ = ["News", "present_run", "tell"]
