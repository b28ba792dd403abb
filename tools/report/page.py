"""Writes a report as one self-contained HTML page: pictures inside, nothing loaded, good on paper too."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

from tools.report.document import (
    Cell,
    Code,
    Document,
    Figure,
    Foldout,
    Item,
    Link,
    Paragraph,
    Section,
    Strip,
    Table,
    TableRow,
    Text,
)

_STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--pale:#f6f8fa;--good:#17652f;--warn:#7a4d00;--bad:#a1121b;--link:#0b4f9e}
*{box-sizing:border-box} html{-webkit-text-size-adjust:100%}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:#fff;margin:0 auto;padding:1rem;max-width:72rem;
color-scheme:light}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0} h2{font-size:1.25rem;margin:2.2rem 0 .5rem;padding-top:.4rem;
border-top:2px solid var(--line)} p{margin:.5rem 0;max-width:48rem} a{color:var(--link)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;padding:0;margin:.5rem 0;font-size:.9rem}
.verdict{padding:.5rem .8rem;border-left:5px solid var(--line);background:var(--pale)}
.verdict.good{border-color:var(--good)} .verdict.warn{border-color:var(--warn)} .verdict.bad{border-color:var(--bad)}
.wide{overflow-x:auto;margin:.8rem 0 1.4rem} .wide:focus-visible{outline:3px solid var(--link)}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;width:100%}
caption{text-align:left;font-weight:600;padding:.3rem 0}
caption span,td.span div{position:sticky;display:inline-block;left:0;max-width:min(100%,calc(100vw - 2rem))}
caption i{display:none;font-style:normal;font-weight:400;color:var(--soft)}
th,td{padding:.35rem .6rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{vertical-align:bottom;background:var(--pale);border-bottom:2px solid var(--line)}
th:first-child{text-align:left;position:sticky;left:0;background:#fff;min-width:8rem;z-index:1}
thead th:first-child{background:var(--pale)}
tbody th{font-weight:600} td.span{text-align:left}
td a,th a{text-decoration-thickness:1px;text-underline-offset:2px}
small{display:block;color:var(--soft);font-weight:400;font-size:.82em;line-height:1.35}
td,small{overflow-wrap:anywhere} td.number,td.number small{white-space:nowrap}
.good{color:var(--good)} .warn{color:var(--warn)} .bad{color:var(--bad)} p.verdict{color:var(--ink)}
td.good,td.warn,td.bad{font-weight:600} td.good a,td.warn a,td.bad a,.shaded td a{color:inherit}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));gap:1rem 1.5rem;margin:.8rem 0}
.strip table{width:100%} .strip .wide{margin:0}
.shaded th,.shaded td{text-align:center} .shaded th:first-child{text-align:left;min-width:0}
.shaded td{border:1px solid #fff;vertical-align:middle} .shaded td small{color:inherit}
.shaded td,.shaded th{padding:.35rem .1rem} .shaded{font-size:.8rem} .shaded thead th{font-size:.72rem}
figure{margin:.8rem 0;break-inside:avoid} .strip figure{margin:0}
figure img,figure svg{max-width:100%;height:auto;display:block}
figcaption{font-size:.85rem;color:var(--soft)} .narrow{display:none!important}
code{font:.88em ui-monospace,monospace;background:var(--pale);padding:.05em .3em;overflow-wrap:anywhere}
details{margin:.4rem 0;border:1px solid var(--line);border-radius:4px;padding:.3rem .7rem}
summary{cursor:pointer;font-weight:600;padding:.3rem 0} details ul{margin:.3rem 0;padding-left:1.1rem;font-size:.86rem}
details li{overflow-wrap:anywhere;break-inside:avoid} footer{margin-top:2rem;color:var(--soft);font-size:.9rem}
@media(min-width:60rem){details ul{columns:2;column-gap:2rem}}
@media(max-width:40rem){body{padding:.75rem} h1{font-size:1.35rem} table{font-size:.82rem} th,td{padding:.3rem .4rem}
th:first-child{min-width:5.6rem;max-width:7rem;box-shadow:2px 0 0 var(--line)} caption i{display:block}
.shaded{font-size:.75rem} .shaded thead th{font-size:.68rem} .shaded th:first-child{box-shadow:none}
.shaded caption i{display:none}
td.span div{left:7.4rem;max-width:calc(100vw - 10rem)}
.fit{display:none!important} .narrow{display:block!important}}
@media print{@page{size:A4;margin:13mm} *{-webkit-print-color-adjust:exact;print-color-adjust:exact}
body{font-size:10pt;max-width:none;padding:0} nav,.screen{display:none} a{color:inherit;text-decoration:none}
.wide{overflow:visible} table{font-size:7.8pt} th,td{padding:1.2mm 1.4mm} th:first-child{position:static;min-width:0}
h2,h2+p{break-after:avoid} tr,.strip>*,.verdict,.wide{break-inside:avoid} p{break-inside:avoid}
thead{display:table-header-group}
.strip{grid-template-columns:1fr 1fr} figure img{max-height:120mm} .fit{display:block!important}
.narrow{display:none!important}
details.short::details-content{content-visibility:visible;display:block;height:auto} details li{font-size:8pt}}
"""

_SHORT = 20
"""Lines of a list that is printed even where it is folded."""


def render_page(document: Document) -> str:
    """Return the report as HTML."""
    links = "".join(f'<li><a href="#{part.name}">{escape(part.title)}</a></li>' for part in document.sections)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(document.title)}</title><style>{_STYLE}</style></head><body>",
        f"<header><h1>{escape(document.title)}</h1>",
        *(_item(paragraph) for paragraph in document.lead),
        f'</header><nav aria-label="Sections"><ul>{links}</ul></nav><main>',
        *(_section(section) for section in document.sections),
        "</main><footer>Not a medical device. Made by <code>python -m tools.report</code> from the stored answers of "
        "every model.</footer></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(section: Section) -> str:
    items = "\n".join(_item(item) for item in section.items)
    return f'<section id="{section.name}"><h2>{escape(section.title)}</h2>\n{items}\n</section>'


def _item(item: Item) -> str:
    if isinstance(item, Paragraph):
        mark = f' class="verdict {item.tone}"' if item.tone else ""
        return f"<p{mark}>{_text(item.text)}</p>"
    if isinstance(item, Table):
        return _table(item)
    if isinstance(item, Figure):
        return _figure(item)
    if isinstance(item, Foldout):
        lines = "".join(f"<li>{_text(line)}</li>" for line in item.lines)
        kind = ' class="short"' if len(item.lines) <= _SHORT else ""
        return f'<details id="{item.name}"{kind}><summary>{escape(item.summary)}</summary><ul>{lines}</ul></details>'
    return _strip(item)


def _strip(strip: Strip) -> str:
    return f'<div class="strip">{"".join(_item(part) for part in strip.parts)}</div>'


def _table(table: Table) -> str:
    shaded = any(cell.shade is not None for row in table.rows for cell in row.cells)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(_row(row, len(table.columns) - 1) for row in table.rows)
    # A region that scrolls must be reachable by keyboard, and have a name.
    region = f'role="region" tabindex="0" aria-label="{escape(table.caption)}"'
    return (
        f'<div class="wide" {region}><table{" class=shaded" if shaded else ""}>'
        f"<caption><span>{escape(table.caption)}<i>(swipe sideways for all columns)</i></span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(row: TableRow, columns: int) -> str:
    header = f'<th scope="row">{_content(row.header)}</th>'
    if row.spans:
        tone = row.cells[0].tone
        return f'<tr>{header}<td class="span {tone}" colspan="{columns}"><div>{_content(row.cells[0])}</div></td></tr>'
    return f"<tr>{header}{''.join(_cell(cell) for cell in row.cells)}</tr>"


def _cell(cell: Cell) -> str:
    shade = ""
    if cell.shade is not None:
        ink = "#fff" if cell.shade > 0.5 else "#1b1f24"
        shade = f' style="background:rgba(11,79,158,{cell.shade:.3f});color:{ink}"'
    kind = f"number {cell.tone}" if _is_short(cell) else cell.tone
    return f'<td class="{kind.strip()}"{shade}>{_content(cell)}</td>'


def _is_short(cell: Cell) -> bool:
    """Numbers and single words must not be broken across lines."""
    return all(len(line) <= 22 for text in (cell.text, cell.note) for line in _plain(text).split("\n"))


def _plain(text: Text) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in text)


def _content(cell: Cell) -> str:
    return _text(cell.text) + (f"<small>{_text(cell.note)}</small>" if cell.note else "")


def _text(text: Text) -> str:
    return "".join(_span(part) for part in text)


def _span(part: str | Link | Code) -> str:
    if isinstance(part, Code):
        return f"<code>{escape(part.text)}</code>"
    if isinstance(part, Link) and part.href is not None:
        return f'<a href="{quote_href(part.href)}">{escape(part.text)}</a>'
    return escape(part if isinstance(part, str) else part.text).replace("\n", "<br>")


def _figure(figure: Figure) -> str:
    if figure.name.endswith(".svg"):
        both = (("fit", figure.data), ("narrow", figure.narrow or figure.data))
        drawn = "".join(f'<div class="{kind}">{data.decode("utf-8")}</div>' for kind, data in both)
    else:
        source = "data:image/png;base64," + base64.b64encode(figure.data).decode("ascii")
        drawn = f'<img alt="{escape(figure.alt)}" src="{source}">'
    return f"<figure>{drawn}<figcaption>{_text(figure.caption)}</figcaption></figure>"


def quote_href(path: str) -> str:
    """Return a relative path as a link may hold it; an address is left as it is."""
    return escape(path if "://" in path else quote(path, safe="/#."))


def find_links(document: Document) -> Iterable[str]:
    """Yield every file that the report links to."""
    for text in _texts(document):
        yield from (part.href for part in text if isinstance(part, Link) and part.href is not None)


def _texts(document: Document) -> Iterable[Text]:
    yield from (paragraph.text for paragraph in document.lead)
    for section in document.sections:
        for item in section.items:
            for part in item.parts if isinstance(item, Strip) else (item,):
                yield from _texts_of(part)


def _texts_of(item: Item) -> Iterable[Text]:
    if isinstance(item, Paragraph):
        yield item.text
    elif isinstance(item, Foldout):
        yield from item.lines
    elif isinstance(item, Figure):
        yield item.caption
    elif isinstance(item, Table):
        for row in item.rows:
            for cell in (row.header, *row.cells):
                yield from (cell.text, cell.note)
