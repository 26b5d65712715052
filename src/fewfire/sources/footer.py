"""The numbers of values that a Parquet footer states.

pyarrow knows them too, but on a damaged footer its ``RowGroupMetaData.column`` ends the whole process: pyarrow 26 lets
a C++ exception out when a histogram has another length than it expects. So the footer is read here, in Thrift's
compact protocol; no length that it states makes anything be allocated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["value_counts"]

MAX_BYTES = 16 << 20
MAX_DEPTH = 16
ROW_GROUPS, COLUMNS, META_DATA, NUM_VALUES = 4, 1, 3, 5
"""fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData in parquet.thrift"""


def value_counts(path: Path) -> list[int]:
    """Values of each stored column, missing ones included, over all row groups.

    Raises
    ------
    ValueError
        The footer is damaged, or longer than 16 MiB.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        length = int.from_bytes(file.read(4), "little")
        if length > min(MAX_BYTES, size - 8):
            raise ValueError(f"a footer of {length:,} bytes is more than can be")
        file.seek(size - 8 - length)
        thrift = _Thrift(file.read(length))
    try:
        groups = thrift.struct(0)[ROW_GROUPS]
        counts = [[column[META_DATA][NUM_VALUES] for column in group[COLUMNS]] for group in groups]
        return [sum(column) for column in zip(*counts, strict=True)]
    except (LookupError, TypeError, ValueError):
        raise ValueError("its footer is damaged") from None


class _Thrift:
    """Values in Thrift's compact protocol, one after another."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Fields by their number."""
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):  # a truth value in a list takes a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth) for _ in range(count)]
        if kind == 12:
            return self.struct(depth)
        raise ValueError(f"no type {kind} in a footer")

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._content):
            raise IndexError("beyond the end")
        return self._content[self._at - count : self._at]

    def _integer(self) -> int:
        """Zigzag: 0, -1, 1, -2, ..."""
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
