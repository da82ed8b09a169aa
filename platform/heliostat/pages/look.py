"""How the pages look: one palette for every class of GPU time, in light and in dark, and one sheet of styles.

`tests/unit/pages/test_pages.py` reckons the contrast of each pair that is used, by the formula of WCAG 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heliostat.meter.facts import Use
from heliostat.pages.html import Html, join, tag

Palette = Mapping[str, str]

LIGHT: Palette = {
    "paper": "#fbfaf7", "raised": "#f3f1ea", "ink": "#1d2125", "soft": "#5d6066", "line": "#dedad0", "link": "#14605a",
    "serving": "#12645e", "training": "#479a90", "overhead": "#b57f1f", "idle": "#8e897d", "unknown": "#b8453a",
    "good": "#12645e", "warn": "#8a5a00", "bad": "#a5352b",
}  # fmt: skip
DARK: Palette = {
    "paper": "#15171a", "raised": "#1e2125", "ink": "#e9e6de", "soft": "#a3a29c", "line": "#33363b", "link": "#6fc7bd",
    "serving": "#6fc7bd", "training": "#38857d", "overhead": "#d0a04a", "idle": "#73726d", "unknown": "#e0766a",
    "good": "#6fc7bd", "warn": "#e0b464", "bad": "#ee8d82",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Classes of GPU time that a reader thinks of together, and their colour in the palette."""

    name: str
    colour: str
    uses: tuple[Use, ...]


FAMILIES = (
    Family("Serving", "serving", (Use.SERVING,)),
    Family("Training", "training", (Use.TRAINING,)),
    Family("Overhead", "overhead", (Use.RECOMPUTED, Use.CHECKPOINT, Use.LOADING, Use.WAITING, Use.STARTING)),
    Family("Idle", "idle", (Use.RESERVED, Use.UNALLOCATED)),
    Family("Unexplained", "unknown", (Use.UNEXPLAINED,)),
)


def family_sums(gpu_seconds: Mapping[str, float]) -> list[tuple[Family, float]]:
    """GPU-seconds by family, in the order of the families."""
    return [(family, sum(gpu_seconds.get(use.label, 0.0) for use in family.uses)) for family in FAMILIES]


def _variables(palette: Palette) -> str:
    return ";".join(f"--{name}:{value}" for name, value in palette.items())


STYLE = (
    f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
"""
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Liberation Sans",Arial,sans-serif;font-variant-numeric:tabular-nums lining-nums}
main,header,footer,nav{max-width:68rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:2.75rem}
h1,h2,.figure b{font-family:"Iowan Old Style","Charter","Palatino Linotype",Palatino,Georgia,"Liberation Serif",serif;
font-weight:500;letter-spacing:-.01em}
h1{font-size:2.1rem;line-height:1.15;margin:0}
h2{font-size:1.3rem;line-height:1.25;margin:0 0 .2rem}
h3{font-size:.95rem;font-weight:600;margin:0 0 .4rem}
p{margin:0 0 .8rem;max-width:44rem}
.lead{color:var(--soft);margin:.35rem 0 0}
.note,caption,figcaption,dt{color:var(--soft);font-size:.875rem}
a{color:var(--link);text-underline-offset:.18em}
:focus-visible{outline:2px solid var(--link);outline-offset:3px;border-radius:2px}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1.5rem;top:.75rem;background:var(--paper);padding:.3rem .6rem;z-index:2}
nav{padding-top:1.1rem}
nav ul{list-style:none;margin:0;padding:.55rem 0;display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;
border-top:1px solid var(--line);border-bottom:1px solid var(--line)}
nav a{text-decoration:none;font-size:.95rem;display:inline-block;padding:.15rem 0}
nav a:hover{text-decoration:underline}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:1.2rem 2rem;margin:1.9rem 0 0;
padding:0}
.figure b{display:block;font-size:1.9rem;line-height:1.15;color:var(--ink)}
.figure span{color:var(--soft);font-size:.9rem;display:block}
section{margin:2.9rem 0 0;scroll-margin-top:1rem}
section>.note{margin-bottom:1rem}
.scroll{overflow-x:auto;margin:0 -.25rem;padding:0 .25rem}
table{border-collapse:collapse;width:100%;font-size:.95rem}
caption{text-align:left;padding:0 0 .4rem}
th{font-weight:500;color:var(--soft);font-size:.875rem;text-align:left;white-space:nowrap;vertical-align:bottom}
th,td{padding:.5rem 1.1rem .5rem 0;border-bottom:1px solid var(--line)}
td{vertical-align:top}
tr:last-child td,tr:last-child th{border-bottom:0}
th:last-child,td:last-child{padding-right:0}
.n{text-align:right;white-space:nowrap}
tbody th{color:var(--ink);font-size:.95rem;font-weight:600;white-space:normal;vertical-align:top}
.n+td,.n+th{padding-left:1.2rem}
.b{width:42%}
.b .bar{margin-top:.35rem}
tfoot td,tfoot th{border-top:1px solid var(--soft);border-bottom:0;font-weight:600;color:var(--ink);font-size:.95rem}
.sub{display:block;color:var(--soft);font-size:.875rem;font-weight:400}
.state{white-space:nowrap}
.state::before{content:"";display:inline-block;width:.55em;height:.55em;border-radius:50%;margin-right:.5em;
background:var(--idle)}
.good::before{background:var(--good)}.warn::before{background:var(--warn)}.bad::before{background:var(--bad)}
.open::before{background:none;border:2px solid var(--idle)}
.empty{color:var(--soft);border-left:3px solid var(--line);padding:.15rem 0 .15rem 1rem;margin-top:.6rem}
.empty code{color:var(--ink);white-space:nowrap}
code{font:.92em/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
.bar{display:flex;height:.85rem;min-width:5rem;gap:1px;background:none}
.bar i{display:block;min-width:2px}
.c-serving{background:var(--serving);fill:var(--serving)}
.c-training{background:var(--training);fill:var(--training)}
.c-overhead{background:var(--overhead);fill:var(--overhead)}
.c-idle{background:var(--idle);fill:var(--idle)}
.c-unknown{background:var(--unknown);fill:var(--unknown)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.3rem;margin:.9rem 0 0;padding:0;font-size:.9rem}
.legend i{display:inline-block;width:.75rem;height:.75rem;margin-right:.5rem;vertical-align:-.05rem}
.legend b{font-weight:600}
figure{margin:.3rem 0 0}
figcaption{margin-bottom:1rem}
.plot{display:grid;grid-template-columns:auto minmax(0,1fr);gap:0 .7rem}
.plot svg{display:block;width:100%;height:13rem;overflow:visible}
.y{display:flex;flex-direction:column;justify-content:space-between;text-align:right;font-size:.8rem;
color:var(--soft);height:13rem;line-height:1}
.y span{transform:translateY(-.4em)}
.y span:last-child{transform:translateY(.4em)}
.x{grid-column:2;display:flex;min-width:0;font-size:.8rem;color:var(--soft);padding-top:.55rem;line-height:1.2}
.x span{flex:1 1 0;display:flex;justify-content:center;min-width:0;white-space:nowrap}
.grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.spark{width:7rem;height:1.7rem;display:block;overflow:visible}
.spark path{fill:none;stroke:var(--training);stroke-width:1.6;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.slots{display:flex;flex-wrap:wrap;gap:3px;max-width:15rem;padding-top:.3rem}
.slots i{width:.85rem;height:.85rem;border-radius:2px;border:1.5px solid var(--idle)}
.slots .used{background:var(--serving);border-color:var(--serving)}
.slots .starting{border-style:dashed;border-color:var(--warn)}
.slots .absent{border-color:var(--line)}
.meter{height:.45rem;background:var(--line);margin-top:.45rem;max-width:11rem}
.meter i{display:block;height:100%;background:var(--training)}
details{margin-top:1rem}
summary{cursor:pointer;color:var(--link);font-size:.9rem;width:fit-content}
details .scroll{margin-top:.7rem}
ol.plain,ul.plain{list-style:none;margin:0;padding:0}
ol.plain li,ul.plain li{padding:.65rem 0;border-bottom:1px solid var(--line)}
ol.plain li:last-child,ul.plain li:last-child{border-bottom:0}
footer{margin-top:3.2rem;padding-bottom:3rem;color:var(--soft);font-size:.875rem}
footer p{border-top:1px solid var(--line);padding-top:1rem;max-width:none}
@media (max-width:40rem){
body{font-size:15.5px}
main,header,footer,nav{padding-left:1.1rem;padding-right:1.1rem}
header{padding-top:1.7rem}
h1{font-size:1.75rem}
.figures{grid-template-columns:1fr 1fr;gap:1.1rem 1.2rem}
.figure b{font-size:1.55rem}
section{margin-top:2.4rem}
.stack,.stack tbody,.stack tr,.stack th,.stack td,.stack tfoot{display:block;width:auto}
.stack thead{position:absolute;left:-99rem}
.stack tr{padding:.75rem 0;border-bottom:1px solid var(--line)}
.stack tr:last-child{border-bottom:0}
.stack th,.stack td{border:0;padding:0;text-align:left;white-space:normal}
.stack tbody th{font-size:1rem}
.stack td{display:grid;grid-template-columns:6.2rem 1fr;gap:0 .8rem;margin-top:.4rem}
.stack td::before{content:attr(data-label);color:var(--soft);font-weight:400;font-size:.875rem;line-height:1.7}
.stack td>*{grid-column:2}
.stack td:empty,.stack td.b::before{display:none}
.stack td.b{display:block;margin-top:.5rem}
.stack tfoot tr{border-top:1px solid var(--soft)}
.stack tfoot th,.stack tfoot td{border:0}
.stack .n+td,.stack .n+th{padding-left:0}
.slots{max-width:none}
.plot svg,.y{height:10rem}
.x .often{visibility:hidden;overflow:hidden}
}
@media print{nav,.skip,summary{display:none}body{font-size:11pt}section{break-inside:avoid}}
"""
)


def page(
    title: str, lead: str, sections: list[tuple[str, str, Html]], *, figures: list[tuple[str, str]], foot: str
) -> str:
    """A whole document. `sections`: (id, heading, content); `figures`: (value, what it is), at the top."""
    links = [tag("li", tag("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    body = join(
        tag("a", "Skip to the content", class_="skip", href="#content"),
        tag(
            "header", tag("h1", title), tag("p", lead, class_="lead"),
            tag("div", *(tag("div", tag("b", value), tag("span", what), class_="figure") for value, what in figures),
                class_="figures"),
        ),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag(
            "main",
            *(tag("section", tag("h2", heading, id=f"{name}-h"), content, id=name, aria_labelledby=f"{name}-h")
              for name, heading, content in sections),
            id="content",
        ),
        tag("footer", tag("p", foot)),
    )  # fmt: skip
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return "<!doctype html>\n" + tag("html", tag("head", head), tag("body", body), lang="en") + "\n"
