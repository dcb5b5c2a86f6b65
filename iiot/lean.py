"""Loading a library without the further ones that it takes along wherever they are installed."""

import importlib
import sys


def load(name: str, *without: str) -> None:
    """Import module `name`; it finds the packages `without` missing (`None` in sys.modules makes an import fail, docs.python.org).

    Does nothing when it is loaded already. Others may still import those packages afterwards.
    """
    if name in sys.modules:
        return
    hidden = [each for each in without if each not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        importlib.import_module(name)
    finally:
        for each in hidden:
            del sys.modules[each]
