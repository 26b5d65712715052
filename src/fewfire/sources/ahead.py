"""Making the next item while the present one is used."""

from __future__ import annotations

from collections.abc import Generator
from threading import Event, Thread, current_thread
from typing import Generic, TypeVar

__all__ = ["ahead"]

T = TypeVar("T")


def ahead(items: Generator[T, None, None], stop: Event) -> Generator[T, None, None]:
    """``items``, each made by a background thread while the one before it is used; never more than one ahead.

    An error in the making arrives here as itself. However this ends, by its last item, ``close``, an error or being
    forgotten, ``stop`` is set, at which ``items`` may give up early, and the thread is gone.
    """
    making = _Making(items)
    try:
        while (item := making.take()) is not None:
            making = _Making(items)
            yield item
            del item  # or it would live until the one after the next is made
    finally:
        stop.set()
        if making.thread is not current_thread():  # the collector may run anywhere, and there items end by themselves
            making.thread.join()
            items.close()


class _Making(Generic[T]):
    """One item being made, in a thread that ends with it."""

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._item: T | None = None
        self._error: BaseException | None = None
        self.thread = Thread(target=self._make, args=(items,), name="fewfire-ahead")
        self.thread.start()

    def _make(self, items: Generator[T, None, None]) -> None:
        try:
            self._item = next(items, None)
        except BaseException as error:
            self._error = error

    def take(self) -> T | None:
        """The item, None after the last. Waits for it."""
        self.thread.join()
        item, error = self._item, self._error
        self._item = self._error = None  # an error keeps the frames it went through, which would keep the error
        if error is not None:
            raise error
        return item
