//! What the page looks like: on a screen, light or dark, and on paper.

/// The one style sheet.
pub(super) const STYLE: &str = "\
:root{--ink:#1d2733;--soft:#5b6b7c;--line:#d6dde5;--paper:#fbfcfd;--lane:#f1f4f7;--zero:#1a7f5a;--copy:#c2571a;--bad:#b3261e;--mark:#fff0b8}
@media(prefers-color-scheme:dark){:root{--ink:#e4eaf0;--soft:#9aa9b8;--line:#33404d;--paper:#141a20;--lane:#1b232b;--zero:#4cc396;\
--copy:#f0905a;--bad:#ff8a80;--mark:#5a4a10}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:78rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p.about,.why,footer{color:var(--soft)}footer{margin-top:2rem}
a{color:inherit}a:focus-visible{outline:2px solid var(--zero);outline-offset:2px}
.rows{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(34rem,100%),1fr));gap:1rem;margin:1.5rem 0}
figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;min-width:0}
figure:target{border-color:var(--zero)}
figcaption{font-weight:600;display:flex;justify-content:space-between;gap:1rem;margin-bottom:.4rem}
figcaption .soft{font-weight:400}
.why{font-size:.85rem;margin:.3rem 0 0}
svg{width:100%;height:auto;display:block}
svg text{font:13px system-ui,sans-serif;fill:var(--ink);text-anchor:middle;paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
svg text.end{text-anchor:end}svg text.start{text-anchor:start}svg text.name{font-size:11px}
.soft{color:var(--soft)}svg .soft{fill:var(--soft)}
.lane{fill:var(--lane);stroke:var(--line)}.way text{stroke:var(--lane)}.sizes text{font-size:12px}
.box{fill:var(--paper);stroke:var(--soft);stroke-width:1.5}.way .box+text,.way .box+text+text{stroke:var(--paper)}
.faint{stroke:var(--line);stroke-dasharray:4 3}
.mode{fill:none;stroke:var(--ink);stroke-width:2}
.map{stroke:var(--soft);stroke-width:1.5}.none{stroke-dasharray:3 4;opacity:.6}
.lives{max-width:46rem}.lives g,.lives circle{stroke:none}.lives .filled{fill:var(--ink)}.lives .rest{fill:var(--soft);opacity:.5}\
.bars rect{stroke:none}.descriptors{fill:var(--soft)}.rest{fill:var(--line)}
.zero{stroke:var(--zero);fill:var(--zero)}.copy,.cpu{stroke:var(--copy);fill:var(--copy)}.dma{stroke:var(--soft);fill:var(--soft)}
.cpu path,.dma path{stroke-width:2.5}
dl.totals{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;margin:.5rem 0 .3rem;font-variant-numeric:tabular-nums}
dl.totals div{display:flex;gap:.4rem}dt{color:var(--soft)}dd{margin:0;font-weight:600}
mark{background:var(--mark);color:inherit;font-weight:400;border-radius:3px;padding:0 .3rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child,.word{text-align:left}tbody th{font-weight:400}
.bar{display:inline-block;height:.7em;background:var(--soft);border-radius:2px;margin-right:.4rem;min-width:1px}
.bars-of td{min-width:9rem;white-space:nowrap}
.z{color:var(--zero)}.c{color:var(--copy)}.b{color:var(--bad);font-weight:600}.scroll{overflow-x:auto}
@media print{body{max-width:none;margin:0}figure,tr,svg{break-inside:avoid}.rows{grid-template-columns:1fr 1fr}h2{break-after:avoid}\
.scroll{overflow:visible}}";
