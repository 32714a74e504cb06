"""An HTML page in one file: its styles, scripts and pictures are embedded, and it loads nothing.

Its content security policy lets the browser run and apply nothing but what is embedded here.
"""
import base64
import hashlib
import json
from pathlib import Path

from utils.escaping import html_text

WEB = Path(__file__).resolve().parent / "web"   # styles, scripts and pieces of pages


def web_file(name):
    """The text of a file in reporting/web/."""
    return (WEB / name).read_text(encoding="utf-8")


def page(body, title, styles, scripts):
    """A whole page.

    :param body: HTML
    :param styles, scripts: names of files in reporting/web/, in this order; each once
    :return: HTML
    """
    styles, scripts = ([web_file(name) for name in dict.fromkeys(names)]
                       for names in (styles, scripts))
    policy = "; ".join((
        "default-src 'none'", "img-src data:", f"style-src {_hashes(styles)}",
        f"script-src {_hashes(scripts)}", "base-uri 'none'", "form-action 'none'"))
    head = "".join((
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{html_text(title)}</title>",
        *(f"<style>{style}</style>" for style in styles)))
    last = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n{last}'
            "</body></html>\n")


def embedded_json(name, content):
    """A value as an element that scripts find by its id; nothing in it can end the element."""
    text = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def embedded_text(name, text):
    """A text without markup, such as base64, as an element that scripts find by its id."""
    return f'<script type="text/plain" id="{name}">{text}</script>'


def _hashes(texts):
    """What a content security policy allows: the texts of these elements, by their hashes."""
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
