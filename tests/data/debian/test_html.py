"""From a page to its running text."""

from topklm.data.debian.html import html_paragraphs
from topklm.data.debian.prose import is_prose

PAGE = """<!DOCTYPE html><html><head><title>A title of this page.</title><style>p { color: red }</style></head><body>
<nav><ul><li>Home</li><li><a href="x">Next</a></li></ul></nav>
<div class="sphinxsidebar"><div>inner</div><p>Of the sidebar, which holds a nested element.</p></div>
<h1>Heading</h1>
<p>A first paragraph with <code>inline_code()</code>, an &eacute;tude &amp; a
   <a href="y">link</a>.<p>An unclosed one follows<br>over two lines.
<pre>for i in range(3):
    print(i)</pre>
<div class="highlight-python notranslate"><div class="highlight"><span>x = 1</span></div></div>
<ul><li>An item.<li><p>Another item.</p></ul>
<p><a href="1">One link</a> and <a href="2">another link here</a></p>
<table class="note"><tr><td>Note</td><td>What a cell says.</td></tr></table>
<script>var text = "<p>not text</p>";</script>
<p>After it.<a class="headerlink" href="#h">¶</a></p>
<footer><p>Copyright somebody.</p></footer></body></html>"""


def test_running_text_alone_is_left():
    assert html_paragraphs(PAGE) == [
        "A first paragraph with inline_code(), an étude & a link.",
        "An unclosed one follows over two lines.",
        "An item.",
        "Another item.",
        "Note",
        "What a cell says.",
        "After it.",
    ]


def test_the_frame_of_a_theme_is_no_navigation():
    page = '<section class="wy-nav-content-wrap"><div id="contents" class="contents"><p>The text.</p></div></section>'
    assert html_paragraphs(page) == ["The text."]


def test_a_page_that_breaks_off():
    assert html_paragraphs("<p>One.</p><div><p>Two, and then <b>noth") == ["One.", "Two, and then noth"]
    assert html_paragraphs("") == []


def test_prose():
    for text in (
        "This is an ordinary sentence of a manual page.",
        "Use the option (see below) to write, in this case, the value 42:",
        "“Quoted, it ends like this, with a mark behind the stop.”",
    ):
        assert is_prose(text), text
    for text in (
        "Too short a sentence.",
        "No sentence since nothing ends it and it goes on",
        "if (x == 1) { y[i] += 2; } else { z->a = *p++; } return 0;.",
        "- a line that begins with a mark and not with a word.",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15.",
    ):
        assert not is_prose(text), text
