"""CRC-32 of stored bytes: zlib-ng's, several times as fast as zlib's; zlib's own where that package is missing."""

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
