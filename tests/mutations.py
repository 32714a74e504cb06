"""Random changes to valid files: bytes, header fields, values in JSON, PNG chunks, cells of tables.

A generator of None changes nothing.
"""
import json
import struct
import zlib

import numpy as np

NUMBERS = [0, -0.0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 32767, -32768, 65535, 2 ** 31 - 1,
           -2 ** 31, 2 ** 63 - 1, 1e-40, 1e30, -1e30, float("nan"), float("inf"), 0.5, 1000]
VALUES = [None, True, False, 0, 1, -1, 2, 10 ** 12, 10 ** 400, 1e308, -1e308, float("nan"),
          float("inf"), 0.5, "", "x", "../../x", "/etc/passwd", "a" * 5000, "\u0000", "\n", "é",
          [], {}, [[]], [1, 2, 3], [0, 0, 0], [10 ** 6] * 3, {"a": 1}, [None] * 16, "1"]


def mutate_bytes(raw, rng):
    """One to three changes anywhere: flipped, overwritten, cut, doubled, zeroed or added bytes.

    :param rng: generator; None changes nothing
    """
    if rng is None:
        return raw
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        n = max(1, len(raw))
        at = int(rng.integers(n))
        length = int(rng.integers(1, max(2, min(n, 64))))
        what = rng.integers(7)
        if what == 0 and raw:
            raw[min(at, len(raw) - 1)] ^= 1 << int(rng.integers(8))
        elif what == 1:
            raw[at:at + length] = rng.bytes(length)
        elif what == 2:
            del raw[at:]
        elif what == 3:
            raw[at:at] = raw[at:at + length]
        elif what == 4:
            raw[at:at + length] = bytes(length)
        elif what == 5:
            raw += rng.bytes(length)
        else:
            del raw[at:at + length]
    return bytes(raw)


def mutate_header(raw, cls, rng, endian="<"):
    """One to three fields of a header become an odd value, or random bytes."""
    if rng is None:
        return raw
    raw = bytearray(raw)
    fields = cls.template_dtype.fields
    for _ in range(rng.integers(1, 4)):
        dtype, start = fields[str(rng.choice(list(fields)))][:2]
        scalar = dtype.base.newbyteorder(endian)
        if scalar.kind == "S" or rng.integers(4) == 0:
            raw[start:start + dtype.itemsize] = rng.bytes(dtype.itemsize)
            continue
        start += int(rng.integers(dtype.itemsize // scalar.itemsize)) * scalar.itemsize
        value = NUMBERS[rng.integers(len(NUMBERS))]
        raw[start:start + scalar.itemsize] = encode(value, scalar, endian)
    return bytes(raw)


def encode(value, scalar, endian):
    """A number as bytes of this dtype; integers wrap around."""
    with np.errstate(all="ignore"):
        if scalar.kind not in "iu":
            return np.array([value], scalar).tobytes()
        value = int(value) & (2 ** (8 * scalar.itemsize) - 1) if np.isfinite(value) else 0
        return np.array([value], f"{endian}u{scalar.itemsize}").tobytes()


def mutate_json(text, rng):
    """One or two values anywhere in the tree are replaced, removed or doubled.

    One time in four the bytes are mutated instead.
    """
    if rng is None or rng.integers(4) == 0:
        return mutate_bytes(text.encode(), rng)
    content = json.loads(text)
    for _ in range(rng.integers(1, 3)):
        parent, key = random_place(content, rng)
        if parent is None:
            continue
        what = rng.integers(4)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, list):
            parent.insert(key, parent[key])
        else:
            parent[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(content).encode()


def random_place(content, rng):
    """A random (container, key) within JSON; (None, None) if it has none."""
    node, parent, key = content, None, None
    while isinstance(node, dict | list) and node and (parent is None or rng.integers(4)):
        parent = node
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = keys[int(rng.integers(len(keys)))]
        node = node[key]
    return parent, key


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def mutate_png(raw, rng):
    """The bytes; or a header of another size or kind with a valid checksum; or a bomb of text."""
    what = rng.integers(4) if rng else 3
    if what == 0:
        header = bytearray(raw[16:29])
        header[int(rng.integers(13))] = int(rng.integers(256))
        return raw[:8] + png_chunk(b"IHDR", bytes(header)) + raw[33:]
    if what == 1:
        bomb = zlib.compress(bytes(50_000_000), 9)
        chunks = [png_chunk(b"zTXt", b"k\0\0" + bomb), png_chunk(b"iCCP", b"k\0\0" + bomb),
                  png_chunk(b"IDAT", bomb)]
        return raw[:33] + chunks[rng.integers(3)] + raw[33:]
    return mutate_bytes(raw, rng)


HEADERS = ("participant_id", "id", "subject", "sub", "session_id", "visit", "VISCODE", "filename",
           "group", "split", "class", "mask", "path", "PTID", "IXI_ID", "Group ", "", "\u0000")
CELLS = ("sub-00", "sub-01", "01", "1", "2.0", "a", "AD ", "NA", "n/a", "", "NaN", "ses-1", "bl",
         "train", "Validation", "side", "in/sub-00_T1w.nii.gz", "../in", "/etc/passwd", "in",
         "mask.nii.gz", "x" * 5000, "\u0000", "\u202e", "=1+1", "1e999", 'a "quoted" cell',
         "é", "../../../x")
ENCODINGS = (*("utf-8",) * 6, "utf-8-sig", "utf-16", "latin-1")


def mutate_table(rows, rng):
    """A table's bytes after one or two changes of header, cells or rows, and spelled otherwise.

    One time in eight the bytes are mutated, too.

    :param rows: list of lists of text; the first is the header
    """
    if rng is None:
        return _write_table(rows, "\t", "utf-8")
    rows = [list(row) for row in rows]
    for _ in range(rng.integers(1, 3)):
        row = rows[rng.integers(len(rows))]
        column = int(rng.integers(len(row))) if row else 0
        what = rng.integers(7)
        if what == 0:
            rows[0] = [*rows[0], str(rng.choice(HEADERS))]
            rows[1:] = [[*other, str(rng.choice(CELLS))] for other in rows[1:]]
        elif what == 1 and rows[0]:
            rows[0][int(rng.integers(len(rows[0])))] = str(rng.choice(HEADERS))
        elif what == 2:
            rows.append(list(row))
        elif what == 3:
            row.append(str(rng.choice(CELLS)))
        elif what == 4 and len(rows) > 2:
            rows.remove(row)
        elif row:
            row[column] = str(rng.choice(CELLS if row is not rows[0] else HEADERS))
    delimiter = ("\t", "\t", ",", ";")[rng.integers(4)]
    raw = _write_table(rows, delimiter, str(rng.choice(ENCODINGS)))
    return mutate_bytes(raw, rng) if rng.integers(8) == 0 else raw


def _write_table(rows, delimiter, encoding):
    lines = [delimiter.join(_quoted(cell, delimiter) for cell in row) for row in rows]
    return "".join(line + "\n" for line in lines).encode(encoding, "replace")


def _quoted(cell, delimiter):
    if any(sign in cell for sign in (delimiter, '"', "\n")):
        return '"' + cell.replace('"', '""') + '"'
    return cell
