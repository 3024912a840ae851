"""The checksums with which HDF5 guards what it keeps for itself, so that a made-up file can be made to look whole."""

import numpy as np

from anyecg.kernels._jit import kernel

SIGNATURES = (
    b"\x89HDF", b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"FHIB", b"BTHD", b"BTLF", b"BTIN", b"EAHD", b"EAIB", b"EASB",
    b"EADB", b"FAHD", b"FADB",
)  # fmt: skip
_LONGEST = 8000


@kernel
def _word(data_T, first, n):
    word = np.uint32(0)
    for i in range(min(4, n)):
        word |= np.uint32(np.uint32(data_T[first + i]) << np.uint32(8 * i))
    return word


@kernel
def _turn(word, n):
    return np.uint32(np.uint32(word << np.uint32(n)) | np.uint32(word >> np.uint32(32 - n)))


@kernel
def lookup3(data_T):
    """Return Jenkins' hash lookup3 of bytes, as HDF5 stores it behind each of its blocks."""
    n, first = len(data_T), 0
    a = b = c = np.uint32(0xDEADBEEF + n)
    while n > 0:
        a = np.uint32(a + _word(data_T, first, n))
        if n > 4:
            b = np.uint32(b + _word(data_T, first + 4, n - 4))
        if n > 8:
            c = np.uint32(c + _word(data_T, first + 8, n - 8))
        if n <= 12:
            for turn in (14, 11, 25, 16, 4, 14, 24):
                c = np.uint32(np.uint32(c ^ b) - _turn(b, turn))
                a, b, c = b, c, a
            return b
        for turn in (4, 6, 8, 16, 19, 4):
            a = np.uint32(np.uint32(a - c) ^ _turn(c, turn))
            a, b, c = b, np.uint32(c + b), a
        n, first = n - 12, first + 12
    return c


@kernel
def _length(data_T, first, last):
    """Return how many bytes from ``first`` on have their hash right behind them, -1 where none have."""
    for n in range(8, last - first - 3):
        if lookup3(data_T[first : first + n]) == _word(data_T, first + n, 4):
            return n
    return -1


def find_blocks(data):
    """Return (first byte, byte behind, place of the checksum) of every block of HDF5's own in a whole file."""
    data_T = np.frombuffer(data, np.uint8)
    found = []
    for signature in SIGNATURES:
        first = data.find(signature)
        while first >= 0:
            n = _length(data_T, first, min(len(data), first + _LONGEST))
            if n >= 0:
                found.append((first, first + n, first + n))
            elif signature == b"FHDB":
                found += _heap_block(data, first)
            first = data.find(signature, first + 1)
    return found


def _heap_block(data, first):
    """A block of a heap has its checksum within, taken as zero."""
    for place in range(first + 14, first + 22):
        stored = data[place : place + 4]
        for n in (512, 1024, 2048, 4096, 8192):
            block = np.frombuffer(data[first:place] + bytes(4) + data[place + 4 : first + n], np.uint8)
            if int(lookup3(block)).to_bytes(4, "little") == stored:
                return [(first, first + n, place)]
    return []


def mend(data, blocks):
    """Return a changed file with the checksum of each block made right."""
    data = bytearray(data)
    for first, last, place in blocks:
        if place + 4 <= len(data):
            if place < last:
                data[place : place + 4] = bytes(4)
            data[place : place + 4] = int(lookup3(np.frombuffer(bytes(data[first:last]), np.uint8))).to_bytes(
                4, "little"
            )
    return bytes(data)
