"""Receives in a thread of its own: who waits for a message cannot wait for a computed step as well, without a system call for each."""

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ...protocol import ToWorker
from .channel import Channel, Unreadable


class Listener:
    """Hands on what arrives: lists of messages, at last what ended the listening, which is an exception.

    Use it in a `with` block, after which nothing is received any more.
    """

    def __init__(self, channel: Channel, deliver: Callable[[list[ToWorker | Unreadable] | Exception], None]) -> None:
        self._channel = channel
        self._deliver = deliver
        self._stop, self._stopper = os.pipe()
        self._thread = threading.Thread(target=self._run, name="listen", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        os.close(self._stopper)
        self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        try:
            while self._channel.wait(unless=self._stop):
                self._deliver(self._channel.receive())
        except Exception as error:  # a thread that ended silently would leave the worker without requests
            self._deliver(error)
