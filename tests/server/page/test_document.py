"""The page's files: nothing from elsewhere, and one file that holds all of it."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from glassgpt.server.page.document import INDEX, KINDS, one_file, page_files


class Parts(html.parser.HTMLParser):
    """Elements, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (dict(attrs).get("type") or tag) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts.append((self._inside, data))


def test_the_page_asks_for_its_own_files_alone_and_has_nothing_inline() -> None:
    files = page_files()
    parts = Parts(files[INDEX].decode())
    for _, attributes in parts.tags:
        address = attributes.get("src") or attributes.get("href")
        if address and not address.startswith("#"):
            assert address.removeprefix("page/") in files
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert [text for _, text in parts.texts if text.strip()] == []
    asked = {attributes.get("src") for tag, attributes in parts.tags if tag == "script"}
    assert asked == {f"page/{name}" for name in files if name.endswith(".js")}
    for name, content in files.items():
        text = content.decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|//cdn|@import|url\(|eval\(|innerHTML", text), name


def test_every_label_and_control_has_its_partner() -> None:
    parts = Parts(page_files()[INDEX].decode())
    names = [attributes["id"] for _, attributes in parts.tags if attributes.get("id")]
    assert len(names) == len(set(names))
    for _, attributes in parts.tags:
        for key in ("for", "aria-labelledby", "aria-controls"):
            assert attributes.get(key) is None or attributes[key] in names, attributes
    scripts = "".join(content.decode() for name, content in page_files().items() if name.endswith(".js"))
    used = set(re.findall(r'\$\("([\w-]+)"\)', scripts))
    made = {"data"}  # in a file of its own
    assert used - made <= set(names)


def test_what_is_installed_has_all_files() -> None:
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    (pattern,) = project["tool"]["setuptools"]["package-data"]["glassgpt.server.page"]
    there = list((root / "src/glassgpt/server/page/files").iterdir())
    assert {path.name for path in there} == set(page_files())
    assert all(fnmatch(f"files/{path.name}", pattern) and path.suffix[1:] in KINDS for path in there)


@pytest.mark.parametrize("token", ["</script>", "<!--", "\u2028", "&amp;", "</body>", '"', "\\"])
def test_one_file_holds_any_text_and_allows_itself_alone(token: str) -> None:
    data = {"model": f"runs/{token}", "tokens": [{"id": 1, "text": token, "probability": None}], "places": [None]}
    page = one_file(data)
    parts = Parts(page)
    texts = dict(parts.texts)
    assert json.loads(texts["application/json"]) == data
    assert not any(attributes.get("src") or tag == "link" for tag, attributes in parts.tags)
    (policy,) = (a["content"] for _, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(texts[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert page.count("</body>") == 1


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        one_file({"model": "m", "tokens": [float("nan")]})
