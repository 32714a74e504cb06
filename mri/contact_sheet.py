"""Contact sheets: pages of prepared scans, three views each, so that a person spots a bad one.

    page-001.png …  axial, coronal and sagittal center slices, with the scan's id and warnings
                    below; above them, where its brain was outlined, the scan as it was
"""
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

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
MASK_COLOR = (255, 190, 0)      # of a brain mask's outline
TEMPLATE_COLOR = (0, 210, 255)  # of a template's edges
OUTLINED_PERCENTILES = (0.5, 99.5)  # of a scan, that become black and white in its picture
PNG_LEVEL = 1
VIEWS_FOLDER = "views"     # of pictures that are on disk until the pages are drawn

_CELL_WIDTH = 3 * (VIEW_PIXELS + VIEW_GAP_PIXELS) + CELL_MARGIN_PIXELS
_SCANS_PER_PAGE = SCANS_PER_ROW * ROWS_PER_PAGE


def views(volume, voxel_sizes, regions=(), color=None, depths=(0.5, 0.5, 0.5)):
    """Axial, coronal and sagittal slices in true proportions, left on the left.

    :param volume: (X, Y, Z) uint8, RAS
    :param voxel_sizes: (3,), mm
    :param regions: arrays of the volume's shape; where one passes 0.5, a line is drawn
    :param color: of these lines
    :param depths: of the slices along each axis, 0…1
    :return: list of uint8, VIEW_PIXELS at most: (rows, columns), with regions (rows, columns, 3)
    """
    side = np.array(volume.shape) * np.asarray(voxel_sizes)                         # mm
    pixels = np.maximum(1, np.rint(VIEW_PIXELS * side / side.max())).astype(int)
    images = []
    for view, axis in geometry.VIEWS.items():
        x, y = (other for other in range(3) if other != axis)

        def resized(array, view=view, depth=depths[axis], size=(pixels[x], pixels[y])):
            image = Image.fromarray(geometry.view_slice(array, view, depth).copy())
            return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

        image = resized(volume)
        if regions:
            image = np.stack([image] * 3, -1)
        for region in regions:
            inside = resized(region.astype(np.float32)) > 0.5
            image[inside & ~ndimage.binary_erosion(inside)] = color
        images.append(image)
    return images


def outlined(array, voxel_sizes, mask):
    """A scan in three views through the middle of its brain, with the brain mask's outline.

    :param array: (X, Y, Z), RAS
    :param mask: bool, of the array's shape
    :return: PIL image
    """
    lo, hi = np.percentile(array, OUTLINED_PERCENTILES)
    gray = np.clip((array - lo) * (255 / max(hi - lo, 1e-30)), 0, 255).astype(np.uint8)
    depths = (np.array(ndimage.center_of_mass(mask)) + 0.5) / mask.shape
    return _side_by_side(views(gray, voxel_sizes, (mask,), MASK_COLOR, depths))


def view_path(folder, scan_id):
    """Where `write_views` puts a scan's picture until the pages are drawn."""
    return Path(folder) / VIEWS_FOLDER / f"{scan_id}.png"


def write_views(path, cube, voxel_sizes, regions=()):
    """Writes the picture of a prepared scan for its page: in a file, so that memory stays small.

    :param cube: (D, D, D) uint8, RAS
    :param voxel_sizes: of the cube, (3,), mm
    :param regions: arrays of the cube's shape, of a template, whose edges are drawn
    """
    _write_png(path, _side_by_side(views(cube, voxel_sizes, regions, TEMPLATE_COLOR)))


def _side_by_side(images):
    """A picture of three views, each in the center of its square."""
    picture = Image.new("RGB", (3 * (VIEW_PIXELS + VIEW_GAP_PIXELS), VIEW_PIXELS), PAGE_COLOR)
    for k, image in enumerate(images):
        height, width = image.shape[:2]
        left = k * (VIEW_PIXELS + VIEW_GAP_PIXELS) + (VIEW_PIXELS - width) // 2
        picture.paste(Image.fromarray(image).convert("RGB"), (left, (VIEW_PIXELS - height) // 2))
    return picture


def _write_png(path, image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    write_bytes(path, buffer.getvalue())


def page_number(index):
    """Number of the page, from 1, that scan `index`, from 0, is on."""
    return index // _SCANS_PER_PAGE + 1


def write_pages(folder, ids, view_paths, warnings_of_scans, pictures=None):
    """Writes page-001.png and so on.

    :param view_paths: of each scan, the path that `write_views` wrote
    :param warnings_of_scans: of each scan, a list of lines
    :param pictures: of each scan, the path of the picture that `outlined` made, or None
    """
    pictures = pictures or [None] * len(ids)
    page_count = math.ceil(len(ids) / _SCANS_PER_PAGE)
    for page in range(page_count):
        part = slice(page * _SCANS_PER_PAGE, (page + 1) * _SCANS_PER_PAGE)
        title = (f"page {page + 1} of {page_count}     axial, coronal, sagittal     left is on the "
                 "left, anterior on the right")
        if any(pictures):
            title += (", above the scan as it was, with its brain's outline; below as it is "
                      "now, with edges of the template if it was registered")
        image = _draw_page(title, ids[part], view_paths[part], warnings_of_scans[part],
                           pictures[part])
        _write_png(Path(folder) / f"page-{page + 1:03d}.png", image)


def _draw_page(title, ids, view_paths, warnings_of_scans, pictures):
    rows = math.ceil(len(ids) / SCANS_PER_ROW)
    above = VIEW_PIXELS + VIEW_GAP_PIXELS if any(pictures) else 0
    cell_height = above + VIEW_PIXELS + TEXT_PIXELS + 8
    size = (SCANS_PER_ROW * _CELL_WIDTH + 4, rows * cell_height + TITLE_PIXELS + 4)
    page = Image.new("RGB", size, PAGE_COLOR)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(TITLE_FONT_PIXELS)
    small_font = ImageFont.load_default(WARNING_FONT_PIXELS)
    draw.text((8, 5), title, TITLE_COLOR, font)
    for i, (scan_id, view_path, lines) in enumerate(zip(ids, view_paths, warnings_of_scans)):
        x = i % SCANS_PER_ROW * _CELL_WIDTH + 4
        top = i // SCANS_PER_ROW * cell_height + TITLE_PIXELS
        y = top + above
        for picture, height in ((pictures[i], top), (view_path, y)):
            if picture:
                with Image.open(picture) as opened:
                    page.paste(opened, (x + 4, height + 3))
        text_width = _CELL_WIDTH - 16
        draw.text((x + 5, y + VIEW_PIXELS + 4), _fit(scan_id, text_width, font), ID_COLOR, font)
        wrapped = _wrap("; ".join(lines), text_width, small_font, WARNING_LINES)
        for line, text in enumerate(wrapped):
            position = (x + 5, y + VIEW_PIXELS + 20 + LINE_PIXELS * line)
            draw.text(position, text, WARNING_COLOR, small_font)
        if lines:
            corners = (x, top, x + _CELL_WIDTH - 5, top + cell_height - 5)
            draw.rectangle(corners, outline=FRAME_COLOR, width=2)
    return page


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
