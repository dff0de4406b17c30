"""A candidate that answers behind the champion, in a process of its own."""
