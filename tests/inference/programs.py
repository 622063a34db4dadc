"""How often the programs of inference are compiled."""

import contextlib

from jaxvlm.inference import programs

NAMES = ("_encode", "_prefill", "_step")


@contextlib.contextmanager
def compilations():
    """A dictionary that says, after the block, how many programs of each kind were compiled in it."""
    found, before = {}, sizes()
    yield found
    found.update({name: count - before[name] for name, count in sizes().items()})


def sizes():
    return {name: getattr(programs, name)._cache_size() for name in NAMES}
