"""Paragraphs of manual pages, Perl's pod, Info files and plain text."""

from __future__ import annotations

import re

from .prose import tidy

BLANK = re.compile(r"\n[ \t\f]*\n")

# --- manual pages (roff with the man macros) --------------------------------------------------------------------------

BREAKS = {"PP", "P", "LP", "TP", "TQ", "IP", "HP", "RS", "RE", "sp", "SH", "SS", "TH", "Sp", "Vb", "Ve"}
FONTS = {"B", "I", "R", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB"}
VERBATIM = {"nf": "fi", "EX": "EE", "Vb": "Ve", "TS": "TE", "EQ": "EN", "ig": ".", "de": ".", "ie": "el"}
# Of roff's named characters those that prose has; typographic quotes become plain ones.
CHARACTERS = {
    "em": "\u2014",
    "en": "-",
    "hy": "-",
    "mi": "-",
    "bu": "",
    "co": "\u00a9",
    "rs": "\\",
    "ti": "~",
    "ha": "^",
}
CHARACTERS |= dict.fromkeys(("lq", "rq", "dq", 'L"', 'R"', "C`", "C'"), '"') | dict.fromkeys(("oq", "cq", "aq"), "'")
SHORT = {"-": "-", "e": "\\", "\\": "\\", "'": "'", "`": "`", " ": " ", "~": " ", "0": " ", ".": "."}
ESCAPE = re.compile(
    r"\\(?:f(?:\[[^\]]*\]|\(..|.)|s[+-]?\d+|[&|^/,)%:!c]|(?P<two>\((?P<a>..)|\*\((?P<b>..))|\[(?P<long>[^\]]*)\]|"
    r"(?P<one>\*?.))"
)


def man_paragraphs(page: str) -> list[str]:
    """Running text of a page in the man macros; one in mdoc, whose macros are words of its sentences, gives none."""
    if re.search(r"^\.Dd\b", page, re.MULTILINE):
        return []
    found: list[str] = []
    lines: list[str] = []
    until: str | None = None

    def flush() -> None:
        if lines:
            found.append(tidy(" ".join(lines)))
            lines.clear()

    tag = False  # whether the next line is the term of a .TP
    for line in page.splitlines():
        macro = re.match(r"[.'][ \t]*(\S*)[ \t]*(.*)", line)
        if until is not None:
            until = None if macro and macro[1] == until else until
            continue
        if macro is None:
            if not line.strip() or line[0] in " \t":
                flush()
            if not tag and line[:1] not in (" ", "\t"):
                lines.append(_unescaped(line))
            tag = False
            continue
        name, rest = macro[1], re.sub(r'(^|[ \t])\\".*', "", macro[2])
        if name in VERBATIM:
            flush()
            until = VERBATIM[name]
        elif name in BREAKS:
            flush()
            tag = name in ("TP", "TQ")
        elif name in FONTS:
            if not tag:
                apart = " " if len(name) == 1 or name in ("SM", "SB") else ""
                lines.append(_unescaped(apart.join(_arguments(rest))))
            tag = False
    flush()
    return [text for text in found if text]


def _arguments(rest: str) -> list[str]:
    return [quoted.replace('""', '"') or bare for quoted, bare in re.findall(r'"((?:[^"]|"")*)"|(\S+)', rest)]


def _unescaped(line: str) -> str:
    def character(match: re.Match[str]) -> str:
        name = match["a"] or match["b"] or match["long"]
        if name is not None:
            return CHARACTERS.get(name, "")
        return SHORT.get(match["one"] or "", "")

    return ESCAPE.sub(character, re.sub(r'(^|[ \t])\\".*', "", line))


# --- pod --------------------------------------------------------------------------------------------------------------

POD_CODE = re.compile(r"([A-Z])(?:<<+\s+((?:(?!>>).)*?)\s+>>+|<([^<>]*)>)", re.DOTALL)
POD_NAMES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/", "eacute": "é", "uuml": "ü", "ouml": "ö", "auml": "ä"}


def pod_paragraphs(pod: str) -> list[str]:
    """Ordinary paragraphs of a pod file: no headings, no verbatim ones, which are indented, and no formatting codes."""
    found = []
    is_code = is_foreign = False  # after =cut, up to the next command; between =begin and =end
    for block in BLANK.split(pod):
        block = block.strip("\n")
        if block.startswith("="):
            command = block.split(None, 1)[0]
            is_code = command == "=cut"
            is_foreign = command != "=end" if is_foreign else command == "=begin"
        elif block and block[0] not in " \t" and not is_code and not is_foreign:
            text, before = block, None
            while text != before:
                text, before = POD_CODE.sub(_pod_text, text), text
            found.append(tidy(text))
    return found


def _pod_text(match: re.Match[str]) -> str:
    kind, text = match[1], match[2] if match[2] is not None else match[3]
    if kind in "XZ":
        return ""
    if kind == "E":
        return POD_NAMES.get(text, "")
    if kind == "L":
        shown, bar, _ = text.partition("|")
        page, _, section = shown.partition("/")
        return shown if bar or not section else " in ".join(filter(None, (section.strip('"'), page)))
    return text


# --- Info -------------------------------------------------------------------------------------------------------------


INFO_LINK = re.compile(r"\*[Nn]ote\s+([^:]+):(?::|\s+\([^)]*\)[^.,:]*|[^.,:]*)")


def info_paragraphs(text: str) -> list[str]:
    """Paragraphs of an Info file's nodes, without menus, indexes and headers."""
    found = []
    for node in text.split("\x1f\n"):
        header, _, body = node.partition("\n")
        if not header.startswith("File:") or re.search(r"Node: [^,]*\bIndex\b", header):
            continue
        body = body.split("\n* Menu:", 1)[0]
        body = INFO_LINK.sub(r"\1", body)
        found += text_paragraphs(body)
    return found


# --- plain text -------------------------------------------------------------------------------------------------------

ITEM = re.compile(r"(?:[-*•o+]|\(?\d+[.)]|\(?[a-z][.)])\s+")


def text_paragraphs(text: str) -> list[str]:
    """Paragraphs between blank lines whose lines, but for the first, begin at one indent of at most 5; further in
    stands what is quoted or drawn. Underlined headings go too."""
    found = []
    for block in BLANK.split(text.replace("\r\n", "\n").expandtabs()):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines or any(re.fullmatch(r"\s*([-=~*^\"'+#.])\1{2,}\s*", line) for line in lines):
            continue
        indents = {len(line) - len(line.lstrip()) for line in (lines[1:] or lines)}
        if len(indents) > 1 or max(indents) > 5 or any("  " in re.sub(r"([.!?:]) +", r"\1 ", x.strip()) for x in lines):
            continue
        found.append(ITEM.sub("", tidy(" ".join(lines)), count=1) if ITEM.match(lines[0].strip()) else tidy(block))
    return found
