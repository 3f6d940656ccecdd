"""Hooks of the documentation.

Formulas become MathML when built, `<s, v>` is no HTML tag, and "(A)" in the reference is a link.
"""

import html
import re
from functools import partial
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from markdown import Extension
from mkdocs.plugins import event_priority
from mkdocs.utils import get_relative_url

# The address of the repository stands in README.md alone.
CLONE = re.compile(r"^git clone (\S+?)(?:\.git)?$", re.MULTILINE)
# What arithmatex makes of $...$ and $$...$$, and what notebooks leave of them.
ARITHMATEX = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(?P<tex>.*?)\\[)\]]</\1>', re.DOTALL
)
DOLLARS = re.compile(r"\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$]+?)\$(?!\w)", re.DOTALL)
VERBATIM = re.compile(r"(<(pre|code|script|style|svg|a)\b.*?</\2>|<[^>]*>)", re.DOTALL)
# The identities that docstrings cite, as in "(A) or (B)".
IDENTITY = re.compile(r"\(([ABC])\)")
# What opens and closes a group in a formula, and before what it may be broken.
TOKEN = re.compile(r"\\[A-Za-z]+|[{}()\[\]+=]")
OPENING = {"{", "(", "[", r"\langle"}
CLOSING = {"}", ")", "]", r"\rangle"}
BREAKS = {r"\qquad", r"\Rightarrow", "+"}
TAG = re.compile(r"\\tag\{(.*?)\}")
# What browsers would space or slant otherwise than printers do.
ROOM = 'lspace="0.16em" rspace="0.16em"'
TYPESET = [
    (re.compile(r'<mo (stretchy="false">&#x0007C;)'), r'<mo lspace="0" rspace="0" \1'),
    (re.compile(r"<m[io]>(log|div|tr|clip)</m[io]>"), rf"<mo {ROOM}>\1</mo>"),
    (re.compile(r"<mi>(&#x003[9A].;)</mi>"), r'<mi mathvariant="normal">\1</mi>'),
]
# Scripts of nbconvert that fetch MathJax and mermaid from elsewhere.
FOREIGN = re.compile(r"<script\b(?:(?!</script>).)*?(?:mathjax|mermaid).*?</script>", re.S | re.I)


class PlainText(Extension):
    """No HTML in Markdown: inner products of docstrings, <s, v>, are text."""

    def extendMarkdown(self, md):
        md.inlinePatterns.deregister("html")
        md.preprocessors.deregister("html_block")


class PublicFirst(griffe.Extension):
    """Of each module first what `import dgjax` gives, functions before classes."""

    def on_package(self, *, pkg, **_):
        public = {name for name in pkg.exports or () if isinstance(name, str)}

        def rank(module, name):
            member = module.members.get(name)
            return name not in public, member is not None and member.is_class

        def visit(module):
            if module.exports and module is not pkg:
                module.exports = sorted(module.exports, key=lambda name: rank(module, name))
            for inner in module.modules.values():
                if not inner.is_alias:
                    visit(inner)

        visit(pkg)


@event_priority(100)  # before mkdocstrings looks at the extensions
def on_config(config):
    config.markdown_extensions.append(PlainText())
    readme = Path(config.config_file_path).parent / "README.md"
    address = CLONE.search(readme.read_text("utf-8"))[1]
    config.repo_url, config.repo_name = address, "Repository"
    config.edit_uri = f"{address}/edit/main/docs/"


def on_page_markdown(markdown, page, **_):
    """Let links of CONTRIBUTING.md and CHANGELOG.md, which are above docs/, lead to pages here."""
    above = page.file.src_uri in ("CONTRIBUTING.md", "CHANGELOG.md")
    return markdown.replace("](docs/", "](") if above else markdown


def mathml(tex: str, block: bool) -> str:
    """MathML of a formula; its \\tag is the number beside it."""
    tex = html.unescape(tex).strip()
    tag = TAG.search(tex)
    tex = TAG.sub("", tex).strip()
    if not block:
        return _typeset(tex, "inline")
    parts = (f'<span class="part">{_typeset(part, "block")}</span>' for part in _parts(tex))
    number = f"<span>({tag[1]})</span>" if tag else ""
    return f'<div class="formula"><span class="parts">{"".join(parts)}</span>{number}</div>'


def _typeset(tex: str, display: str) -> str:
    formula = convert(tex, display=display)
    for pattern, replacement in TYPESET:
        formula = pattern.sub(replacement, formula)
    # A sum that goes on in a new part: its sign keeps the spaces of one between two terms.
    return re.sub(r"(<math[^>]*><mrow>)<mo>(&#x0002B;)", r'\1<mo form="infix">\2', formula)


def _parts(tex: str) -> list[str]:
    """Split a formula where a narrow screen may break it: at wide spaces, and before a sum's +."""
    parts, start, depth = [], 0, 0
    for token in TOKEN.finditer(tex):
        text = token[0]
        if text in OPENING:
            depth += 1
        elif text in CLOSING:
            depth -= 1
        elif depth == 0 and text in BREAKS:
            parts.append(tex[start : token.start()])
            start = token.start()
    parts.append(tex[start:])
    return [part for part in parts if part.strip()]


def on_page_content(content, page, **_):
    if page.file.src_uri.endswith(".ipynb"):
        return "".join(_outside_tags(FOREIGN.sub("", content), _dollars))
    if page.file.src_uri.startswith("api/"):
        concepts = get_relative_url("concepts/", page.url)
        content = "".join(_outside_tags(content, partial(_cite, concepts)))
    return ARITHMATEX.sub(lambda m: mathml(m["tex"], m[2] == "["), content)


def _outside_tags(content, change):
    """Parts of `content`, with `change` applied to text outside tags, code and links."""
    at = 0
    for verbatim in VERBATIM.finditer(content):
        yield change(content[at : verbatim.start()])
        yield verbatim[0]
        at = verbatim.end()
    yield change(content[at:])


def _cite(concepts, text):
    """Link "(A)" to the equation of that letter on the page `concepts`."""
    return IDENTITY.sub(
        lambda m: f'(<a href="{concepts}#identity-{m[1].lower()}">{m[1]}</a>)', text
    )


def _dollars(text):
    return DOLLARS.sub(lambda m: mathml(m["block"] or m["inline"], bool(m["block"])), text)
