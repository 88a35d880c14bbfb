"""CRC-32C, the checksum of TFRecord files, by tables and over many bytes at once.

A checksum is linear over GF(2): that of a text is that of its first part, moved past the second,
plus that of the second. Rows of 128 bytes are summed side by side, then pairs of rows are joined.
"""

from __future__ import annotations

import functools

import numpy as np

__all__ = ["masked_crc32c", "masked_crc32c_of_rows"]

_POLYNOMIAL = 0x82F63B78
_ROW = 128
_MASK = 0xA282EAD8


def masked_crc32c(data: bytes) -> int:
    """The checksum of bytes, masked as in TFRecord files."""
    if len(data) < 4:
        padded = np.frombuffer(data, np.uint8)[None]
        return int(masked_crc32c_of_rows(padded)[0])
    values = np.frombuffer(data, np.uint8)
    # zeros before the text change nothing once the register's initial ones are in its first bytes
    rows = np.zeros(-(-len(values) // _ROW) * _ROW, np.uint8)
    start = len(rows) - len(values)
    rows[start:] = values
    rows[start : start + 4] ^= 0xFF
    words = np.ascontiguousarray(rows.reshape(-1, _ROW).view("<u4").T)
    sums = np.zeros(words.shape[1], np.uint32)
    for word in words:
        sums = _moved(sums ^ word, _past_zeros(0))
    level = 0
    while len(sums) > 1:
        if len(sums) % 2:
            sums = np.concatenate([np.zeros(1, np.uint32), sums])
        sums = _moved(sums[::2], _past_zeros(_ROW << level)) ^ sums[1::2]
        level += 1
    return int(_masked(sums)[0])


def masked_crc32c_of_rows(rows: np.ndarray) -> np.ndarray:
    """The masked checksums (rows,) uint32 of short texts (rows, bytes) uint8."""
    sums = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows.T:
        sums = _table()[(sums ^ column) & 0xFF] ^ (sums >> np.uint32(8))
    return _masked(sums)


def _masked(sums: np.ndarray) -> np.ndarray:
    sums = ~sums
    return ((sums >> np.uint32(15)) | (sums << np.uint32(17))) + np.uint32(_MASK)


@functools.cache
def _table() -> np.ndarray:
    """(256,) what a byte in the register becomes when it is shifted out."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


def _moved(sums: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Sums moved by a linear map, given by its values for each of the four bytes."""
    return (
        tables[0][sums & 0xFF]
        ^ tables[1][(sums >> np.uint32(8)) & 0xFF]
        ^ tables[2][(sums >> np.uint32(16)) & 0xFF]
        ^ tables[3][sums >> np.uint32(24)]
    )


@functools.cache
def _past_zeros(count: int) -> np.ndarray:
    """(4, 256) the map that moves a sum past `count` zero bytes, a power of two; 0 stands for 4."""
    if count == 0:
        sums = np.arange(256, dtype=np.uint32)[None] << np.uint32([[0], [8], [16], [24]])
        for _ in range(4):
            sums = _table()[sums & 0xFF] ^ (sums >> np.uint32(8))
        return sums
    half = _past_zeros(0 if count == 8 else count // 2)
    return _moved(half, half)
