"""Paragraphs of an HTML page, without its code, headings, navigation and indexes."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from .prose import tidy

BLOCKS = set(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure hr html li "
    "main ol p section summary table tbody td tfoot th thead tr ul".split()
)
# Elements that are left out with all they hold; each has an end tag. Two are Mallard's, which GNOME's help is in.
SKIPPED = set(
    "button form footer h1 h2 h3 h4 h5 h6 head header iframe info math nav noscript object pre screen script select "
    "style svg template textarea title".split()
)
CONTAINERS = {"div", "ul", "ol", "dl", "table", "section", "aside", "blockquote", "span", "a"}
# Whole words of a container's class, id or role that say the same of it. No more than that: wy-nav-content-wrap and
# contents hold the text itself with some generators, and lists of links are known by their links.
APART = re.compile(
    r"(nav|navbar|navigation|navheader|navfooter|wy-nav-(side|top)|topnav|subnav|bottomnav|toc|tableofcontents|sidebar|"
    r"sphinxsidebar|related|breadcrumbs?|footer|headerlink|anchor|search|genindex|highlight(-.*)?|literal-block|"
    r"programlisting|screen|sourcecode|listingblock|verseblock|copyright|toolbar)",
    re.IGNORECASE,
)
MOST_LINKED = 0.5  # of a paragraph's characters


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._linked = self._links = 0  # characters inside links, and how many links are open
        self._left_out: str | None = None  # the element being left out, and how deep we are in its like
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._left_out is not None:
            self._depth += tag == self._left_out
            return
        if tag in BLOCKS or tag in SKIPPED:
            self.flush()
        if tag in SKIPPED or (tag in CONTAINERS and _is_apart(attrs)):
            self._left_out, self._depth = tag, 1
        elif tag == "br":
            self._text.append(" ")
        elif tag == "a":
            self._links += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS and self._left_out is None:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        if self._left_out is not None:
            self._depth -= tag == self._left_out
            if self._depth == 0:
                self._left_out = None
        elif tag in BLOCKS:
            self.flush()
        elif tag == "a":
            self._links = max(0, self._links - 1)

    def handle_data(self, data: str) -> None:
        if self._left_out is None:
            self._text.append(data)
            self._linked += len(data.strip()) if self._links else 0

    def flush(self) -> None:
        """Ends a paragraph."""
        text = tidy("".join(self._text))
        if text and self._linked <= MOST_LINKED * len(text):
            self.paragraphs.append(text)
        self._text, self._linked, self._links = [], 0, 0


def _is_apart(attrs: list[tuple[str, str | None]]) -> bool:
    words = (word for name, value in attrs if name in ("class", "id", "role") for word in (value or "").split())
    return any(map(APART.fullmatch, words))


def html_paragraphs(page: str) -> list[str]:
    """The page's running text, a paragraph, list item or table cell each; of those that are mostly links, none."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    parser.flush()
    return parser.paragraphs
