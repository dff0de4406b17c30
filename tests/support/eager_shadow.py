"""A candidate's process that gets its share of a busy machine: python -m tests.support.eager_shadow FOLDER [FORM].

The real one only gets what no other process wants, so that it would keep tests waiting that run beside others.
"""

from thyroid import cores
from thyroid.serve.shadow import __main__ as real

if __name__ == "__main__":
    real._give_way = lambda: cores.limit(1)
    real.main()
