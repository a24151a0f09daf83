//! The textbook's figure of a row, measured: the program above, the kernel in the middle, the devices below, and between
//! them each way that payload took, with how often a byte of it went there.
//!
//! What is drawn comes from the record alone. A copying function of the kernel's says by its name from where to where it
//! copies; what no figure speaks of is not drawn.

use std::collections::BTreeMap;

use maud::{Markup, html};
use vnic_experiment::row::{PathKind, Row};
use vnic_experiment::run::Method;

use super::super::classic::{self, Line, Per};
use super::super::figures;

/// A count below this is none, as in the tables.
const NONE: f64 = 0.005;

/// Payload that went some way, once per payload byte is 1.0.
#[derive(Debug, Default, PartialEq)]
struct Ways<'a> {
    /// Disk to page cache, by DMA.
    from_disk: Option<f64>,
    /// Disk to the program's memory, by DMA.
    past_the_cache: Option<f64>,
    /// Page cache to the program's memory.
    to_program: Copies<'a>,
    /// The program's memory to socket buffers.
    from_program: Copies<'a>,
    /// Within the kernel, into socket buffers.
    in_kernel: Copies<'a>,
    /// A cipher read the payload there, and wrote other bytes into socket buffers.
    by_cipher: bool,
    /// Page faults gave the program pages of its own.
    by_faults: bool,
    /// From the file's pages to the NIC.
    straight: f64,
    /// From other memory of the kernel's to the NIC.
    from_buffers: f64,
    /// From the program's memory to the NIC.
    from_memory: f64,
}

/// Copies by each function.
#[derive(Debug, Default, PartialEq)]
struct Copies<'a>(Vec<(&'a str, f64)>);

impl Copies<'_> {
    fn count(&self) -> f64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    fn any(&self) -> bool {
        self.count() >= NONE
    }

    /// The function that copied most, and that there are others: all have room below the figure.
    fn most(&self) -> String {
        let most = self.0.iter().max_by(|(_, one), (_, other)| one.total_cmp(other)).map_or("", |(name, _)| name);
        if self.0.len() > 1 { format!("{most} …") } else { most.to_owned() }
    }

    fn names(&self) -> String {
        self.0.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" + ")
    }
}

impl<'a> Ways<'a> {
    fn of(method: &'a Method, copied_by: &BTreeMap<&'a str, f64>) -> Option<Self> {
        let device = &method.device;
        let whole = device.payload_bytes.filter(|bytes| *bytes > 0)? as f64;
        let (straight, elsewhere) =
            (device.from_page_cache_bytes? as f64 / whole, device.from_elsewhere_bytes? as f64 / whole);
        let kind = Row::parse(&method.method).map_or(PathKind::PageCache, |row| row.path_kind());
        let mut ways = Ways { straight, ..Ways::default() };
        (ways.by_cipher, ways.by_faults) = (kind == PathKind::Cipher, kind == PathKind::CopyOnWrite);
        for (name, count) in copied_by.iter().filter(|(_, count)| **count >= NONE) {
            let way = match *name {
                "_copy_to_iter" => &mut ways.to_program,
                "_copy_from_iter" => &mut ways.from_program,
                _ => &mut ways.in_kernel,
            };
            way.0.push((name, *count));
        }
        let disk = method.guest.disk_read_bytes.map(|bytes| bytes as f64 / whole);
        match kind {
            PathKind::Direct => ways.past_the_cache = disk,
            _ => ways.from_disk = disk,
        }
        // Nobody copied it into a socket's buffers: it is the program's own memory. Where nobody counted, nobody knows.
        let copied = ways.from_program.count() + ways.in_kernel.count() >= NONE;
        let program = !copied && !ways.by_cipher && method.cpu_copies.is_some();
        *(if program { &mut ways.from_memory } else { &mut ways.from_buffers }) = elsewhere;
        Some(ways)
    }

    fn program_is_touched(&self) -> bool {
        self.to_program.any() || self.from_program.any() || self.from_memory >= NONE || self.past_the_cache.is_some()
    }

    /// Does the program see the file's pages themselves? What it wrote came from somewhere, and nobody has copied it there.
    fn is_mapped(&self) -> bool {
        self.from_program.any() && !self.to_program.any() && self.past_the_cache.is_none()
    }

    fn buffers_are_touched(&self) -> bool {
        self.from_program.any() || self.in_kernel.any() || self.by_cipher || self.from_buffers >= NONE
    }

    /// All of it as a sentence, for those who cannot see the figure.
    fn in_words(&self) -> String {
        let mut words = Vec::new();
        let mut dma = |count: Option<f64>, way: &str| {
            if let Some(count) = count.filter(|count| *count >= NONE) {
                words.push(format!("{count:.2} by DMA from {way}"));
            }
        };
        dma(self.from_disk, "the disk to the page cache");
        dma(self.past_the_cache, "the disk to the program's memory");
        dma(Some(self.straight), "the file's pages to the NIC");
        dma(Some(self.from_buffers), "socket buffers to the NIC");
        dma(Some(self.from_memory), "the program's memory to the NIC");
        let mut cpu = |copies: &Copies<'_>, way: &str| {
            if copies.any() {
                words.push(format!("{:.2} by the CPU {way} ({})", copies.count(), copies.names()));
            }
        };
        cpu(&self.to_program, "from the page cache to the program's memory");
        cpu(&self.from_program, "from the program's memory to socket buffers");
        cpu(&self.in_kernel, "within the kernel to socket buffers");
        format!("Copies per payload byte: {}.", words.join("; "))
    }
}

/// The figure, where the device has figures; and what it comes to, with the textbook's where that differs.
pub(super) fn figure(method: &Method, line: &Line<'_>) -> Markup {
    let Some(ways) = Ways::of(method, &line.copied_by) else {
        return html! { p.why { "No drawing: the device has no figures." } };
    };
    html! {
        (drawing(method, line, &ways))
        (totals(line))
    }
}

fn drawing(method: &Method, line: &Line<'_>, ways: &Ways<'_>) -> Markup {
    // Of what nobody has counted the copies of, nobody can say what it is.
    let known = method.cpu_copies.is_some();
    let label = format!("{}: {}", classic::name(method), ways.in_words());
    html! {
        svg.way viewBox="0 0 640 322" role="img" aria-label=(label) {
            @for (y, height, name) in [(44, 84, "user"), (128, 104, "kernel"), (232, 88, "hardware")] {
                rect.lane x="1" y=(y) width="638" height=(height) {}
                text.start.soft x="8" y=(y + 15) { (name) }
            }
            (switches(line))
            // The ways first, so that the boxes lie on top.
            (by_dma(ways))
            (by_cpu(ways))
            (cell(265, 72, "program's memory", None, ways.program_is_touched()))
            (cell(110, 160, "page cache", None, ways.from_disk.is_some() || ways.straight >= NONE || ways.to_program.any() || ways.is_mapped()))
            (cell(430, 160, if known { "socket buffers" } else { "other memory" }, None, ways.buffers_are_touched()))
            (cell(110, 262, "disk", None, ways.from_disk.or(ways.past_the_cache).is_some_and(|count| count >= NONE)))
            (cell(430, 262, "NIC", method.device.descriptors.map(|count| format!("{} descriptors", figures::count(count))), true))
        }
    }
}

/// A box with a word in it, and perhaps a second; faint where no payload is.
fn cell(x: u32, y: u32, name: &str, second: Option<String>, touched: bool) -> Markup {
    html! {
        rect.box.faint[!touched] x=(x) y=(y) width="140" height="44" rx="5" {}
        text.soft[!touched] x=(x + 70) y=(y + if second.is_some() { 19 } else { 27 }) { (name) }
        @if let Some(second) = second { text.soft.name x=(x + 70) y=(y + 35) { (second) } }
    }
}

/// The program's way into the kernel and back, above the lanes.
fn switches(line: &Line<'_>) -> Markup {
    let Some(calls) = line.calls() else {
        return html! { text.start.soft x="8" y="27" { "mode switches: not known" } };
    };
    // More than these cannot be told apart.
    let shown = (calls.round() as u32).clamp(0, 12);
    let step = 300 / (shown + 1);
    let mut path = "M168 14".to_owned();
    for at in 0..=shown {
        path += &format!(" h{step}");
        if at < shown {
            path += if at % 2 == 0 { " v20" } else { " v-20" };
        }
    }
    let unit = match line.mode_switches_per {
        Per::Chunk => "a chunk",
        Per::Transfer => "in all",
    };
    html! {
        text.start x="8" y="27" { "mode switches" }
        text.end.soft x="162" y="18" { "user" }
        text.end.soft x="162" y="38" { "kernel" }
        path.mode d=(path) {}
        text.start x="482" y="27" { (classic::trimmed(calls)) " " (unit) @if shown >= 12 { " (12 drawn)" } }
    }
}

/// What devices moved.
fn by_dma(ways: &Ways<'_>) -> Markup {
    html! {
        @if let Some(count) = ways.from_disk {
            (arrow("dma", count < NONE, "M180 262 V214", (180, 206), Towards::Up))
            text.end x="172" y="226" { (dma(count)) }
        }
        @if let Some(count) = ways.past_the_cache {
            (arrow("dma", count < NONE, "M250 276 C300 270 318 200 318 126", (318, 118), Towards::Up))
            text.start x="322" y="226" { (dma(count)) }
        }
        @if ways.straight >= NONE {
            g.zero {
                path d="M225 204 C232 262 320 284 416 284" fill="none" stroke-width=(width(ways.straight)) {}
                path d="M414 276 L428 284 L414 292 Z" stroke="none" {}
            }
            text x="330" y="250" { (dma(ways.straight)) }
        }
        @if ways.from_buffers >= NONE {
            g.copy {
                path d="M500 204 V250" fill="none" stroke-width=(width(ways.from_buffers)) {}
                path d="M490 249 L500 261 L510 249 Z" stroke="none" {}
            }
            text.start x="518" y="226" { (dma(ways.from_buffers)) }
        }
        @if ways.from_memory >= NONE {
            g.copy {
                path d="M405 90 C620 90 628 200 584 278" fill="none" stroke-width=(width(ways.from_memory)) {}
                path d="M592 270 L572 284 L594 288 Z" stroke="none" {}
            }
            text.start x="446" y="130" { (dma(ways.from_memory)) }
        }
    }
}

/// What instructions moved.
fn by_cpu(ways: &Ways<'_>) -> Markup {
    html! {
        @if ways.to_program.any() {
            (arrow("cpu", false, "M190 160 C190 110 210 94 255 94", (264, 94), Towards::Right))
            (named(&ways.to_program, "end", 184, 92))
        }
        @if ways.is_mapped() {
            path.map.none[!ways.by_faults] d="M190 160 C190 116 214 100 265 100" fill="none" {}
            text.end.soft x="184" y="98" { (if ways.by_faults { "copied by page faults" } else { "mapped, not copied" }) }
        }
        @if ways.from_program.any() {
            (arrow("cpu", false, "M405 94 C460 94 490 110 490 151", (490, 160), Towards::Down))
            (named(&ways.from_program, "start", 496, 92))
        }
        @if ways.in_kernel.any() && ways.from_program.any() {
            // From one socket buffer into another.
            (arrow("cpu", false, "M570 172 C602 166 602 200 579 193", (570, 192), Towards::Left))
            (named(&ways.in_kernel, "end", 634, 134))
        } @else if ways.in_kernel.any() {
            (arrow("cpu", false, "M250 182 H421", (430, 182), Towards::Right))
            (named(&ways.in_kernel, "", 338, 174))
        } @else if ways.by_cipher {
            (arrow("cpu", false, "M250 182 H421", (430, 182), Towards::Right))
            text x="338" y="174" { "a cipher" }
        }
    }
}

/// Where an arrow's head points.
#[derive(Clone, Copy)]
enum Towards {
    Up,
    Down,
    Left,
    Right,
}

/// A way with a head whose tip is there; dashed where nothing went that way.
fn arrow(class: &str, nothing: bool, way: &str, (x, y): (u32, u32), towards: Towards) -> Markup {
    let head = match towards {
        Towards::Up => "l-5 9 h10 Z",
        Towards::Down => "l-5 -9 h10 Z",
        Towards::Left => "l9 -5 v10 Z",
        Towards::Right => "l-9 -5 v10 Z",
    };
    html! {
        g class=(class) {
            path.none[nothing] d=(way) fill="none" {}
            path d=(format!("M{x} {y} {head}")) stroke="none" {}
        }
    }
}

/// How often, and by which functions: one line below the other, or both above the way.
fn named(copies: &Copies<'_>, anchor: &str, x: u32, y: u32) -> Markup {
    let second = if anchor.is_empty() { y + 24 } else { y + 14 };
    html! {
        text class=(anchor) x=(x) y=(y) { (format!("CPU {:.2}", copies.count())) }
        text class={ "soft name " (anchor) } x=(x) y=(second) { (copies.most()) }
    }
}

fn dma(count: f64) -> String {
    format!("DMA {count:.2}")
}

/// A way's width in the drawing: by its share, but never so thin that it cannot be seen.
fn width(share: f64) -> String {
    if share <= 0.0 { "0".to_owned() } else { format!("{:.1}", (9.0 * share).max(1.5)) }
}

/// What the row comes to. Where the textbook has another figure, both stand there, marked.
fn totals(line: &Line<'_>) -> Markup {
    let cells = line.cells();
    let shown = [("CPU copies", 0), ("DMA copies", 1), ("mode switches", 2), ("instances", 5), ("CPU s/GiB", 6)];
    html! {
        dl.totals {
            @for (name, at) in shown {
                @if let Some(Some(cell)) = cells.get(at) {
                    @let (measured, book) = cell.split_once(" [").unwrap_or((cell, ""));
                    @let (book, rest) = book.split_once(']').unwrap_or((book, ""));
                    div { dt { (name) } dd {
                        (measured) (rest)
                        @if !book.is_empty() { " " mark { "textbook " (book) } }
                    } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str, straight: u64, elsewhere: u64) -> Method {
        let mut method = Method { method: name.to_owned(), cpu_copies: Some(0.0), ..Method::default() };
        method.device.payload_bytes = Some(straight + elsewhere);
        method.device.from_page_cache_bytes = Some(straight);
        method.device.from_elsewhere_bytes = Some(elsewhere);
        method
    }

    #[test]
    fn each_function_copies_where_its_name_says() {
        let method = method("read-write-no-sg", 0, 100);
        let by = BTreeMap::from([("_copy_to_iter", 1.0), ("_copy_from_iter", 1.0), ("skb_copy_bits", 0.999)]);
        let ways = Ways::of(&method, &by).unwrap();
        assert_eq!((ways.to_program.count(), ways.from_program.count(), ways.in_kernel.count()), (1.0, 1.0, 0.999));
        assert_eq!((ways.from_buffers, ways.from_memory), (1.0, 0.0));
        assert!(ways.in_words().contains("1.00 by the CPU within the kernel to socket buffers (skb_copy_bits)"));
    }

    #[test]
    fn what_nobody_copied_and_is_no_files_is_the_programs() {
        let own = method("direct-io-zerocopy", 0, 100);
        assert_eq!(Ways::of(&own, &BTreeMap::new()).unwrap().from_memory, 1.0);
        let unknown = Method { cpu_copies: None, ..own };
        assert_eq!(Ways::of(&unknown, &BTreeMap::new()).unwrap().from_buffers, 1.0);
        let cipher = method("ktls-sendfile", 0, 100);
        assert_eq!(Ways::of(&cipher, &BTreeMap::new()).unwrap().from_buffers, 1.0);
    }

    #[test]
    fn a_disk_that_goes_past_the_cache_is_drawn_past_it() {
        let mut direct = method("direct-io", 0, 100);
        direct.guest.disk_read_bytes = Some(100);
        let ways = Ways::of(&direct, &BTreeMap::new()).unwrap();
        assert_eq!((ways.from_disk, ways.past_the_cache), (None, Some(1.0)));
    }

    #[test]
    fn a_way_is_as_wide_as_its_share_and_never_invisible() {
        assert_eq!(["0", "9.0", "4.5", "1.5"].map(str::to_owned), [0.0, 1.0, 0.5, 1e-6].map(width));
    }
}
