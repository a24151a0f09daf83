//! `vnic report --html`: one page that redraws the textbook's pictures from the measurements.
//!
//! For each row one drawing: the file's page-cache pages on the left, the NIC on the right, and between them the two ways
//! the payload can take, straight or through copies in other memory, each as wide as its share of the bytes. The page
//! fetches nothing.

use std::fmt::{self, Write};

use anyhow::Result;
use vnic::record::run::{Method, Run};

use super::{classic, figures, report};

const STYLE: &str = "\
:root{--ink:#1d2733;--soft:#68788a;--line:#d6dde5;--paper:#fbfcfd;--zero:#1a7f5a;--copy:#c2571a;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4eaf0;--soft:#93a2b1;--line:#33404d;--paper:#141a20;--zero:#4cc396;\
--copy:#f0905a;--bad:#ff8a80}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:1.5rem 0 .5rem}p.about,.why,footer{color:var(--soft)}
.rows{display:grid;grid-template-columns:repeat(auto-fill,minmax(21rem,1fr));gap:1rem;margin:1.5rem 0}
figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem}
figcaption{font-weight:600;display:flex;justify-content:space-between;gap:1rem}
.why{font-size:.8rem;margin:.2rem 0 0}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--ink)}
.box{fill:none;stroke:var(--line);stroke-width:1.5}.soft{fill:var(--soft)!important}
.zero{stroke:var(--zero);fill:var(--zero);opacity:.8}.copy{stroke:var(--copy);fill:var(--copy);opacity:.8}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2),.word{text-align:left}
.z{color:var(--zero)}.c{color:var(--copy)}.b{color:var(--bad);font-weight:600}.scroll{overflow-x:auto}";

/// The whole page.
pub(crate) fn page(run: &Run, surprises: &[String]) -> Result<String> {
    let mut page = String::new();
    let out = &mut page;
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>Who copied the file?</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>Who copied the file?</h1>\n<p class=\"about\">{}</p>\n<div class=\"rows\">\n",
        escape(&report::about(run))
    )?;
    for method in &run.methods {
        figure(out, method)?;
    }
    out.push_str("</div>\n");
    table(out, run)?;
    classic_table(out, run)?;
    notes(out, run, surprises)?;
    out.push_str(
        "<footer>Measured by vnic: the NIC's descriptors against the physical addresses of the file's pages, the guest kernel's own books, the guest's memory read from outside.</footer>\n\
         </body></html>\n",
    );
    Ok(page)
}

/// Class and word of a row's verdict.
fn verdict(method: &Method) -> (&'static str, String) {
    use vnic::record::run::Verdict;
    let class = match method.verdict {
        verdict if method.expected.is_some() && verdict != method.expected => "b",
        Some(Verdict::ZeroCopy) => "z",
        Some(Verdict::Copied) => "c",
        Some(Verdict::WitnessesDisagree) => "b",
        Some(Verdict::Mixed) | None => "",
    };
    (class, method.verdict.map_or_else(|| "no verdict".to_owned(), |verdict| verdict.to_string()))
}

/// A way's width in the drawing: by its share, but never so thin that it cannot be seen.
fn width(part: u64, whole: u64) -> f64 {
    if part == 0 { 0.0 } else { (18.0 * part as f64 / whole as f64).max(1.5) }
}

fn figure(out: &mut String, method: &Method) -> fmt::Result {
    let (class, word) = verdict(method);
    writeln!(
        out,
        "<figure><figcaption><span>{}</span><span class=\"{class}\">{word}</span></figcaption>",
        escape(&method.method)
    )?;
    let device = &method.device;
    match (device.payload_bytes, device.from_page_cache_bytes, device.from_elsewhere_bytes) {
        (Some(whole), Some(cached), Some(elsewhere)) if whole > 0 => drawing(out, whole, cached, elsewhere)?,
        _ => writeln!(out, "<p class=\"why\">No drawing: the device has no figures.</p>")?,
    }
    if let (Some(descriptors), Some(chains)) = (device.descriptors, device.chains) {
        let (descriptors, chains) = (figures::count(descriptors), figures::count(chains));
        writeln!(out, "<p class=\"why\">{descriptors} descriptors in {chains} chains</p>")?;
    }
    writeln!(out, "<p class=\"why\">{}</p></figure>", escape(&method.why))
}

fn drawing(out: &mut String, whole: u64, cached: u64, elsewhere: u64) -> fmt::Result {
    let share = |part| figures::percent(part, whole).unwrap_or_default();
    writeln!(out, "<svg viewBox=\"0 0 340 130\" role=\"img\" aria-label=\"Ways of the payload\">")?;
    // The ways first, so that the boxes lie on top; each ends in a head that points at the NIC.
    if elsewhere > 0 {
        let (width, half) = (width(elsewhere, whole), width(elsewhere, whole) / 2.0 + 5.0);
        writeln!(
            out,
            "<g class=\"copy\"><path d=\"M60 66 C60 104 90 104 128 104 L212 104 C250 104 290 104 290 78\" fill=\"none\" stroke-width=\"{width:.1}\"/>\
             <path d=\"M{:.1} 79 L{:.1} 79 L290 67 Z\" stroke=\"none\"/></g>",
            290.0 - half,
            290.0 + half
        )?;
    }
    if cached > 0 {
        let (width, half) = (width(cached, whole), width(cached, whole) / 2.0 + 5.0);
        writeln!(
            out,
            "<g class=\"zero\"><path d=\"M90 40 L238 40\" stroke-width=\"{width:.1}\"/>\
             <path d=\"M237 {:.1} L237 {:.1} L249 40 Z\" stroke=\"none\"/></g>",
            40.0 - half,
            40.0 + half
        )?;
    }
    for (x, name) in [(10, "page cache"), (250, "NIC")] {
        writeln!(
            out,
            "<rect class=\"box\" x=\"{x}\" y=\"14\" width=\"80\" height=\"52\" rx=\"5\" style=\"fill:var(--paper)\"/>\
             <text x=\"{}\" y=\"44\" text-anchor=\"middle\">{name}</text>",
            x + 40
        )?;
    }
    if elsewhere > 0 {
        writeln!(
            out,
            "<rect class=\"box\" x=\"128\" y=\"86\" width=\"84\" height=\"36\" rx=\"5\" style=\"fill:var(--paper)\"/>\
             <text x=\"170\" y=\"101\" text-anchor=\"middle\">copies</text>\
             <text x=\"170\" y=\"115\" text-anchor=\"middle\" class=\"soft\">{}</text>",
            share(elsewhere)
        )?;
    }
    writeln!(out, "<text x=\"170\" y=\"22\" text-anchor=\"middle\" class=\"soft\">{} straight</text>", share(cached))?;
    writeln!(out, "</svg>")
}

fn table(out: &mut String, run: &Run) -> fmt::Result {
    out.push_str("<div class=\"scroll\"><table><thead><tr><th>method</th><th>nic</th>");
    for (head, _, _) in report::FIGURES {
        write!(out, "<th>{head}</th>")?;
    }
    out.push_str("<th class=\"word\">sha256</th><th class=\"word\">verdict</th></tr></thead><tbody>\n");
    for method in &run.methods {
        write!(out, "<tr><td>{}</td><td>{}</td>", escape(&report::name(method)), method.nic)?;
        for (_, _, show) in report::FIGURES {
            write!(out, "<td>{}</td>", show(method).unwrap_or_else(|| "–".to_owned()))?;
        }
        let (class, word) = verdict(method);
        let digest = report::digest(method).unwrap_or("–");
        let digest_class = if method.sha256_ok == Some(false) { "word b" } else { "word" };
        writeln!(out, "<td class=\"{digest_class}\">{digest}</td><td class=\"word {class}\">{word}</td></tr>")?;
    }
    out.push_str("</tbody></table></div>\n");
    Ok(())
}

fn classic_table(out: &mut String, run: &Run) -> fmt::Result {
    out.push_str("<h2>The textbook\u{2019}s table, as measured</h2>\n<div class=\"scroll\"><table><thead><tr><th>method</th><th>nic</th>");
    for (head, _) in classic::HEADS {
        write!(out, "<th class=\"word\">{head}</th>")?;
    }
    out.push_str("</tr></thead><tbody>\n");
    for (method, line) in run.methods.iter().zip(classic::lines(run)) {
        write!(out, "<tr><td>{}</td><td>{}</td>", escape(&report::name(method)), method.nic)?;
        for cell in line.cells() {
            write!(out, "<td class=\"word\">{}</td>", escape(&cell.unwrap_or_else(|| report::NULL.to_owned())))?;
        }
        out.push_str("</tr>\n");
    }
    writeln!(out, "</tbody></table></div>\n<p class=\"why\">{}</p>", classic::NOTE)?;
    for line in classic::missing(run) {
        writeln!(out, "<p class=\"why\">\u{2013} {}</p>", escape(&line))?;
    }
    for line in classic::notes(run) {
        writeln!(out, "<p class=\"why\">{}</p>", escape(&line))?;
    }
    Ok(())
}

fn notes(out: &mut String, run: &Run, surprises: &[String]) -> fmt::Result {
    for surprise in surprises {
        writeln!(out, "<p class=\"b\">{}</p>", escape(surprise))?;
    }
    for method in &run.methods {
        for (heads, reason) in report::missing(method) {
            writeln!(out, "<p class=\"why\">– {}: {heads}: {}</p>", escape(&method.method), escape(reason))?;
        }
    }
    Ok(())
}

/// The record is a file like any other: nothing in it may become markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_record_becomes_markup() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }

    #[test]
    fn a_way_is_as_wide_as_its_share_and_never_invisible() {
        assert_eq!(width(0, 100), 0.0);
        assert_eq!(width(100, 100), 18.0);
        assert_eq!(width(50, 100), 9.0);
        assert_eq!(width(1, 1_000_000), 1.5);
    }
}
