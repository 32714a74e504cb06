"""Zip archives of arrays (.pt, .npz): what they claim is compared with what they hold."""
import os
import zipfile


def claims_more_than_it_holds(path):
    """Why an archive must not be unpacked, for an error; "" if it may.

    torch.save and numpy.savez never compress, so only a file made to fill the memory claims more.

    :raises zipfile.BadZipFile: not a zip archive
    """
    with zipfile.ZipFile(path) as archive:
        claimed = sum(record.file_size for record in archive.infolist())
    held = os.path.getsize(path)
    return f"claims to unpack to {claimed:,} bytes, the file has {held:,}" if claimed > held else ""
