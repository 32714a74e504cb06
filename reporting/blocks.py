"""The parts of a report, each as Markdown and as HTML, so that both say the same.

In texts, `code`, *italic* and **bold** are marked as in Markdown. What comes from a file, such as
the name of a class, goes through `escaping.markup` or `escaping.code` first.
"""
import base64
import html
import re
from dataclasses import dataclass
from pathlib import Path

from reporting.page import page
from utils import escaping

STYLES = ("page.css",)       # of every report, in reporting/web/
SCRIPTS = ("tables.js",)


@dataclass(frozen=True)
class Heading:
    level: int          # 1: of the page
    text: str

    def markdown(self):
        return "#" * self.level + " " + self.text

    def html(self, figures):
        return f"<h{self.level}>{_inline_html(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Paragraph:
    text: str

    def markdown(self):
        return self.text

    def html(self, figures):
        return f"<p>{_inline_html(self.text)}</p>"


@dataclass(frozen=True)
class Bullets:
    items: list

    def markdown(self):
        return "\n".join(f"- {item}" for item in self.items)

    def html(self, figures):
        return "<ul>" + "".join(f"<li>{_inline_html(item)}</li>" for item in self.items) + "</ul>"


@dataclass(frozen=True)
class Table:
    head: list
    rows: list          # of lists, as long as the head

    def markdown(self):
        lines = [self._markdown_row(row) for row in (self.head, *self.rows)]
        return "\n".join([lines[0], "|" + "---|" * len(self.head), *lines[1:]])

    def html(self, figures):
        head = self._html_row(self.head, 'th scope="col"')
        body = "".join(self._html_row(row, "td") for row in self.rows)
        return ('<div class="table" role="region" aria-label="table" tabindex="0">'
                f"<table><thead>{head}</thead><tbody>{body}</tbody></table></div>")

    @staticmethod
    def _markdown_row(row):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    @staticmethod
    def _html_row(row, tag):
        end = tag.split()[0]
        return "<tr>" + "".join(f"<{tag}>{_inline_html(cell)}</{end}>" for cell in row) + "</tr>"


@dataclass(frozen=True)
class Picture:
    file: str           # in the folder figures/
    caption: str

    def markdown(self):
        return f"![{self.caption}](figures/{self.file})\n\n*{self.caption}*"

    def html(self, figures):
        data = base64.b64encode((Path(figures) / self.file).read_bytes()).decode()
        caption = html.escape(self.caption)
        return (f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>")


def markdown_page(blocks):
    """Blocks -> a Markdown file whose pictures are files in figures/."""
    return "\n\n".join(block.markdown() for block in blocks) + "\n"


def html_page(blocks, figures, title):
    """Blocks -> one HTML file that needs no other: its pictures are embedded.

    :param figures: folder of the pictures
    """
    body = "\n".join(block.html(figures) for block in blocks)
    styles, scripts = list(STYLES), list(SCRIPTS)
    for block in blocks:
        styles += getattr(block, "styles", ())
        scripts += getattr(block, "scripts", ())
    return page(body, title, styles, scripts)


def _inline_html(text):
    """Escapes a text; `code` stays as it is, *italic* and **bold** become tags."""
    pieces = re.split(r"`([^`]+)`", text)
    for k, piece in enumerate(pieces):
        if k % 2:  # re.split puts what was between backticks at the odd places
            pieces[k] = f"<code>{escaping.html_text(piece)}</code>"
        else:
            text = escaping.html_text(piece)
            bold = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
            pieces[k] = re.sub(r"\*([^*]+)\*", r"<i>\1</i>", bold)
    return "".join(pieces)
