"""The page's own files: served as they are, or put together as one file with the data of a text in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
"""The media type of each kind of file, by the end of its name."""

INDEX = "index.html"

_SCRIPT = re.compile(r'<script defer src="page/(\w+\.js)"></script>\n')
_STYLE = '<link rel="stylesheet" href="page/page.css">\n'
_ICON = '<link rel="icon" href="page/icon.svg" type="image/svg+xml">\n'


def page_files() -> dict[str, bytes]:
    """All that the page consists of, by name; nothing of it comes from elsewhere."""
    folder = resources.files(__package__) / "files"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in KINDS}


def one_file(data: Mapping[str, Any]) -> str:
    """The page as one document that shows `data`, `inspection.inspect_text`'s with the `model`'s name.

    Its policy allows its own script and style, by their digests, and no request at all.
    """
    files = {name: content.decode() for name, content in page_files().items()}
    page = files[INDEX]
    names = _SCRIPT.findall(page)
    script = "\n".join(files[name].replace('"use strict";\n', "") for name in names)
    script = f'"use strict";\n{script}'
    style = files["page.css"]
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}"
    # "<" cannot stand in the data, or a token such as "</script>" would end it
    embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = _SCRIPT.sub("", page)
    page = page.replace(_ICON, "").replace(_STYLE, f"<style>{style}</style>\n")
    page = page.replace("<head>\n", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n')
    page = page.replace("<title>glassgpt</title>", f"<title>{html.escape(str(data['model']))}</title>")
    return page.replace(
        "</body>", f'<script type="application/json" id="data">{embedded}</script>\n<script>{script}</script>\n</body>'
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
