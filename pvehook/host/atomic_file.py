"""Files that are complete whenever somebody reads them. Stdlib only: the path without a daemon imports it."""

from __future__ import annotations

import os
import threading


def replace_file(path: str, text: str, mode: int | None = None) -> None:
    """Writes the whole file or nothing: a reader sees the old text or the new, even after we crash. `mode` is not
    subject to the umask."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
