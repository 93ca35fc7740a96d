"""Reads an artifact's tokenizer while the server is imported: it needs no Python, and so takes no time from it."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


class EarlyTokenizer:
    """The one in this file. It is being read, by a thread of its own, from the beginning on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tokenizer: Tokenizer | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="tokenizer", daemon=True)
        self._thread.start()

    def result(self) -> "Tokenizer":
        """Waits for it. Raises whatever reading it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._tokenizer is not None
        return self._tokenizer

    def _read(self) -> None:
        try:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_buffer(self._file.read_bytes())
        except Exception as error:
            self._error = error
