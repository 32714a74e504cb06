"""Contact sheets: pages of prepared scans, three views each, so that a person spots a bad one.

    page-001.png …  axial, coronal and sagittal center slices, with the scan's id and warnings below
"""
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mri import geometry
from utils.files import write_bytes

SCANS_PER_ROW = 4
ROWS_PER_PAGE = 6
VIEW_PIXELS = 112          # side of the square that a view is fitted into
VIEW_GAP_PIXELS = 2
TEXT_PIXELS = 46           # height of the text below a scan
CELL_MARGIN_PIXELS = 10    # left and right of a scan's views, together
TITLE_PIXELS = 26          # height of the page's title
WARNING_LINES = 2          # below a scan
LINE_PIXELS = 12           # height of such a line
TITLE_FONT_PIXELS = 13
WARNING_FONT_PIXELS = 11
PAGE_COLOR = (16, 16, 16)
TITLE_COLOR = (190, 190, 190)
ID_COLOR = (235, 235, 235)
WARNING_COLOR = (255, 120, 90)
FRAME_COLOR = (255, 70, 50)
PNG_LEVEL = 1

_CELL_WIDTH = 3 * (VIEW_PIXELS + VIEW_GAP_PIXELS) + CELL_MARGIN_PIXELS
_CELL_HEIGHT = VIEW_PIXELS + TEXT_PIXELS + 8
_SCANS_PER_PAGE = SCANS_PER_ROW * ROWS_PER_PAGE


def views(cube, voxel_sizes):
    """Axial, coronal and sagittal center slices in true proportions, left on the left.

    :param cube: (D, D, D) uint8, RAS
    :param voxel_sizes: (3,), mm
    :return: list of (rows, columns) uint8, VIEW_PIXELS at most
    """
    side = cube.shape[0] * np.asarray(voxel_sizes)                                  # mm
    pixels = np.maximum(1, np.rint(VIEW_PIXELS * side / side.max())).astype(int)
    images = []
    for view, axis in geometry.VIEWS.items():
        x, y = (other for other in range(3) if other != axis)
        image = Image.fromarray(geometry.view_slice(cube, view).copy())
        resized = image.resize((pixels[x], pixels[y]), Image.Resampling.BILINEAR)
        images.append(np.asarray(resized))
    return images


def page_number(index):
    """Number of the page, from 1, that scan `index`, from 0, is on."""
    return index // _SCANS_PER_PAGE + 1


def write_pages(folder, ids, views_of_scans, warnings_of_scans):
    """Writes page-001.png and so on.

    :param views_of_scans: of each scan, what `views` gave
    :param warnings_of_scans: of each scan, a list of lines
    """
    page_count = math.ceil(len(ids) / _SCANS_PER_PAGE)
    for page in range(page_count):
        part = slice(page * _SCANS_PER_PAGE, (page + 1) * _SCANS_PER_PAGE)
        title = (f"page {page + 1} of {page_count}     axial, coronal, sagittal     left is on the "
                 "left, anterior on the right")
        image = _draw_page(title, ids[part], views_of_scans[part], warnings_of_scans[part])
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=PNG_LEVEL)
        write_bytes(Path(folder) / f"page-{page + 1:03d}.png", buffer.getvalue())


def _draw_page(title, ids, views_of_scans, warnings_of_scans):
    rows = math.ceil(len(ids) / SCANS_PER_ROW)
    size = (SCANS_PER_ROW * _CELL_WIDTH + 4, rows * _CELL_HEIGHT + TITLE_PIXELS + 4)
    page = Image.new("RGB", size, PAGE_COLOR)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(TITLE_FONT_PIXELS)
    small_font = ImageFont.load_default(WARNING_FONT_PIXELS)
    draw.text((8, 5), title, TITLE_COLOR, font)
    for i, (scan_id, images, lines) in enumerate(zip(ids, views_of_scans, warnings_of_scans)):
        x = i % SCANS_PER_ROW * _CELL_WIDTH + 4
        y = i // SCANS_PER_ROW * _CELL_HEIGHT + TITLE_PIXELS
        _paste_views(page, x + 4, y + 3, images)
        text_width = _CELL_WIDTH - 16
        draw.text((x + 5, y + VIEW_PIXELS + 4), _fit(scan_id, text_width, font), ID_COLOR, font)
        wrapped = _wrap("; ".join(lines), text_width, small_font, WARNING_LINES)
        for line, text in enumerate(wrapped):
            position = (x + 5, y + VIEW_PIXELS + 20 + LINE_PIXELS * line)
            draw.text(position, text, WARNING_COLOR, small_font)
        if lines:
            corners = (x, y, x + _CELL_WIDTH - 5, y + _CELL_HEIGHT - 5)
            draw.rectangle(corners, outline=FRAME_COLOR, width=2)
    return page


def _paste_views(page, x, y, images):
    """Each image in the center of its square; x, y is the first square's upper left corner."""
    for k, image in enumerate(images):
        height, width = image.shape
        left = x + k * (VIEW_PIXELS + VIEW_GAP_PIXELS) + (VIEW_PIXELS - width) // 2
        top = y + (VIEW_PIXELS - height) // 2
        page.paste(Image.fromarray(image).convert("RGB"), (left, top))


def _fit(text, width, font):
    """The text, or as much of it as is `width` pixels wide."""
    while font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
    return text


def _wrap(text, width, font, max_lines):
    """The text in lines of `width` pixels; what is left over is cut from the last."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    if len(lines) > max_lines:
        lines[max_lines - 1] = " ".join(lines[max_lines - 1:])
    return [_fit(line, width, font) for line in lines[:max_lines]]
