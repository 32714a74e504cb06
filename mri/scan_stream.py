"""The bytes of a scan file, decompressed where it is gzip-compressed; checksums are compared."""
from isal import isal_zlib

from mri.not_a_scan import check_file
from utils.errors import UserError

READ_BYTES = 2 ** 18           # of a compressed file, at a time
GZIP_MAGIC = b"\x1f\x8b"
GZIP_WBITS = 31                # of zlib: a gzip stream, with its checksum
READ_ERRORS = (OSError, EOFError, isal_zlib.error)  # what a gzip stream's reader raises


def is_gzip_name(path):
    """Whether a file's name says that it is gzip-compressed."""
    return path.name.lower().endswith((".gz", ".mgz"))


def check_stream(path):
    """Checks that a file may be a scan, and that its name says whether it is compressed.

    :raises UserError: missing, not readable, no scan at all, or its name and its first bytes
        contradict each other
    """
    check_file(path)
    with open(path, "rb") as f:
        is_gzip = f.read(2) == GZIP_MAGIC
    if is_gzip and not is_gzip_name(path):
        raise UserError(f"{path}: not a NIfTI image but gzip-compressed; add .gz to its name")
    if is_gzip_name(path) and not is_gzip:
        raise UserError(f"{path}: not a NIfTI image: not gzip-compressed as its name says; "
                        "rename it, or copy it again")


def read_beginning(path, count):
    """The first bytes of a file, decompressed; fewer where it ends.

    :raises UserError: see `check_stream`
    """
    check_stream(path)
    if not is_gzip_name(path):
        with open(path, "rb") as f:
            return f.read(count)
    beginning = b""
    for block in GzipBlocks(path, count):
        beginning += block
        if len(beginning) >= count:
            break
    return beginning[:count]


class GzipBlocks:
    """Iterates over a gzip file's decompressed bytes, block by block, checksums compared.

    Bytes behind the last stream that are no further stream are counted in `junk_bytes`; zeros are
    padding, and not counted.
    """

    def __init__(self, path, block_bytes):
        """
        :param block_bytes: of a block, at most
        """
        self.path = path
        self.block_bytes = block_bytes
        self.junk_bytes = 0

    def __iter__(self):
        with open(self.path, "rb") as f:
            waiting = f.read(READ_BYTES)
            while waiting:
                stream = isal_zlib.decompressobj(wbits=GZIP_WBITS)
                while not stream.eof:
                    block = stream.decompress(waiting, self.block_bytes)
                    waiting = stream.unconsumed_tail
                    if block:
                        yield block
                    if not waiting and not stream.eof:
                        waiting = f.read(READ_BYTES)
                        if not waiting and not block:
                            raise EOFError("it ends before its gzip stream does")
                waiting = stream.unused_data or f.read(READ_BYTES)
                waiting += f.read(len(GZIP_MAGIC))                # may begin in the next read
                if not waiting.startswith(GZIP_MAGIC):
                    self._count_junk(waiting, f)
                    return

    def _count_junk(self, waiting, f):
        """Counts what is left of a file, unless all of it is zero."""
        count, is_padding = 0, True
        while waiting:
            count += len(waiting)
            is_padding = is_padding and not waiting.strip(b"\0")
            waiting = f.read(READ_BYTES)
        self.junk_bytes = 0 if is_padding else count
