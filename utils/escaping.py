"""Texts from files that others made, as they may appear on a terminal, in a page, or in a table.

A class name or a file name can hold anything: sequences that a terminal obeys, marks that turn the
direction of writing, HTML, a formula. Here, and nowhere else, such texts are made harmless; what
is harmless already stays as it is.
"""
import functools
import html
import os
import re
import sys
import unicodedata

MARKUP = re.compile(r"[\\`*<>&\[\]|~$#]|(?<!\w)_|_(?!\w)")   # an _ within a word is no markup
NOT_IN_CODE = re.compile(r"[`<>&]")
FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r")        # of a cell, for a spreadsheet
LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\"": "''",
    "−": "$-$", "–": "--", "—": "---", "…": r"\ldots{}", "×": r"$\times$", "±": r"$\pm$",
    "∞": r"$\infty$", "‖": r"$\|$", "≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$",
    "√": r"$\surd$", "²": "$^2$", "³": "$^3$", "α": r"$\alpha$", "σ": r"$\sigma$", "Δ": r"$\Delta$",
    "“": "``", "”": "''", "’": "'", "°": r"$^\circ$",
}
LATEX_LETTERS = "ßæøœłÆØŒŁ"       # that its default fonts have, beside letters with accents
OGONEK = "\u0328"                 # the accent that they lack
END_OF_LATIN = 0x180              # code points of letters with accents that they have lie below
CURSOR_UP = "\x1b[A"                                         # what progress bars need
MAX_SHOWN_NAMES = 20


# ------------------------------------------------------------------------------------- a terminal

def printable(text):
    """A text on one line that a terminal shows and does not obey, and that UTF-8 can hold.

    Control characters (line breaks among them), marks of direction and other invisible signs,
    and bytes of a path that are no UTF-8, become backslash sequences such as \\x1b.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(sign):
    if sign.isprintable() or unicodedata.category(sign) == "Zs":   # Zs: blanks of all widths
        return sign
    return sign.encode("unicode_escape").decode()


def some_names(names):
    """Names from a file in a line, separated by commas; of many, the first MAX_SHOWN_NAMES."""
    shown = ", ".join(map(printable, names[:MAX_SHOWN_NAMES]))
    more = len(names) - MAX_SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def protect_terminal():
    """From now on, stdout and stderr write what is not printable as `printable` shows it.

    A net below the calls of `printable`: whatever a line, a library's warning or a traceback names,
    only line breaks and tabs in it stay.
    """
    os.environ.setdefault("PYTHON_COLORS", "0")   # from 3.13 on, Python colors help and tracebacks
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:     # None: it was closed before Python started
            stream.write = functools.partial(_write, stream.write)


def _write(write, text):
    """Writes a text to a stream; progress bars may return to the beginning of a line.

    :param write: the stream's own method
    :return: number of characters of the text, as such a method does
    """
    if text.isprintable() or not text.replace(CURSOR_UP, "").strip("\n"):
        write(text)
        return len(text)
    start = text[:1] if text.startswith("\r") else ""
    lines = [_protected_line(line) for line in text[len(start):].split("\n")]
    write(start + "\n".join(lines))
    return len(text)


def _protected_line(line):
    return "\t".join(map(printable, line.split("\t")))


# ----------------------------------------------------------------------------------------- a page

def markup(text):
    """A text in Markdown that means itself: what would be Markdown or HTML becomes entities."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def code(text):
    """A text in Markdown as code; without that emphasis where it could end it."""
    shown = printable(text)
    return markup(text) if not shown or NOT_IN_CODE.search(shown) else f"`{shown}`"


def sentence(text):
    """A sentence that quotes commands as `code`, and perhaps names from files, in Markdown.

    What is between backticks stays code; the rest is as `markup` makes it.
    """
    pieces = re.split(r"`([^`]+)`", printable(text))
    # re.split puts what was between backticks at the odd places
    return "".join(code(piece) if k % 2 else markup(piece) for k, piece in enumerate(pieces))


def html_text(text):
    """A text in HTML that means itself; what `markup` made entities stays as it is."""
    return re.sub(r"&amp;(#\d+;)", r"&\1", html.escape(text, quote=False))


# ---------------------------------------------------------------------------------------- a paper

def latex_text(text):
    """A text in LaTeX that prints itself.

    Letters with accents stay; other signs that LaTeX's default fonts lack become [U+XXXX].
    """
    return "".join(map(_latex_sign, " ".join(str(text).split())))


def _latex_sign(sign):
    if sign in LATEX_SIGNS:
        return LATEX_SIGNS[sign]
    if sign in LATEX_LETTERS:
        return sign
    letter, *accents = unicodedata.normalize("NFD", sign)
    is_latin = letter.isascii() and sign.isprintable() and ord(sign) < END_OF_LATIN
    return sign if is_latin and OGONEK not in accents else f"[U+{ord(sign):04X}]"


# ---------------------------------------------------------------------------------------- a table

def cell(text):
    """A cell of a TSV or CSV file on one line, which no spreadsheet takes for a formula.

    An apostrophe is put before a text that begins like one; a number such as -0.5 stays.
    """
    text = " ".join(str(text).split())
    text = printable(text)
    if text.startswith(FORMULA_BEGINNINGS) and not _is_number(text):
        return f"'{text}"
    return text


def _is_number(text):
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", text) is not None
