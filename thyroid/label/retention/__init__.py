"""The command retention, which also knows labelled folders, and the erasure of a patient from one."""
