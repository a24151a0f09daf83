//! `vnic top`: flows and files, with where their bytes came from.

use std::fmt::{self, Write as _};
use std::os::fd::AsFd;
use std::time::Duration;

use ansi_to_tui::IntoText as _;
use anyhow::{Result, bail};
use comfy_table::Cell;
use ratatui::Frame;
use ratatui::widgets::Paragraph;
use vnic::observe::protocol::{FlowReport, LifeOf, Report, SourceKind, SourceReport};

use super::last_page::{self, LastPage};
use super::style::{BAD, DIM, GOOD, HEAD, WARN};
use super::table::Align;
use super::{figures, table};
use crate::control::{Client, Top};
use crate::screen::{self, Happening, Input, Key, Next, Show, Signals};

/// How often it is drawn at least: reports come as they come.
const REFRESH: Duration = Duration::from_secs(5);
/// Lines of a table that are shown to people, at most.
const LINES: usize = 20;
/// A screen on which the first line has to be two.
const NARROW: u16 = 100;
/// What a flow is told to come from, at most.
const SOURCES: usize = 3;

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum By {
    #[default]
    /// Who talks to whom.
    Flow,
    /// What is sent.
    File,
}

/// Prints a report, and what happened to the page that was sent last, if `lives` knows.
pub(crate) fn show(report: &Report, by: By, lives: Client) -> Result<()> {
    let page = Lives(Some(lives)).last_page(report);
    super::put(text(report, None, by, table::width())?)?;
    super::put(under(page.as_ref(), table::width()))
}

/// Knows what happened to pages, where that is recorded.
struct Lives(Option<Client>);

impl Lives {
    /// The page that was sent last of the file of which most was sent.
    fn last_page(&mut self, report: &Report) -> Option<LastPage> {
        let (client, path) = (self.0.as_mut()?, last_page::file(report)?);
        match client.life(LifeOf::File { path: path.into() }) {
            Ok(life) => LastPage::of(path, &life),
            Err(_) => {
                // It is not recorded here, nor will it be.
                self.0 = None;
                None
            }
        }
    }
}

fn under(page: Option<&LastPage>, width: u16) -> String {
    page.map_or_else(String::new, |page| format!("\n{}", page.text(width)))
}

/// Shows reports live until somebody or the time ends it; what was seen at the end stays on the ordinary screen.
pub(crate) fn run(top: Top, by: By, time: Option<Duration>, lives: Client) -> Result<()> {
    let (news, lives) = (top.news()?, Lives(Some(lives)));
    let mut live = Live { top, last: Report::default(), before: None, by, time, lives, page: None };
    if !screen::run(&Signals::block()?, REFRESH, news.as_fd(), &mut live)? {
        return Ok(());
    }
    super::put(text(&live.last, None, live.by, table::width())?)?;
    super::put(under(live.page.as_ref(), table::width()))
}

/// Reports on a screen.
struct Live {
    top: Top,
    last: Report,
    before: Option<Report>,
    by: By,
    time: Option<Duration>,
    lives: Lives,
    page: Option<LastPage>,
}

impl Live {
    fn is_over(&self) -> bool {
        self.time.is_some_and(|time| self.last.seconds >= time.as_secs_f64())
    }
}

impl Show for Live {
    fn happens(&mut self, what: Happening) -> Result<Next> {
        match what {
            Happening::Input(Input::Key(Key::Char('f'))) => self.by = self.by.other(),
            Happening::Input(Input::Key(Key::Char('q') | Key::Escape)) => return Ok(Next::End),
            _ => {}
        }
        // What was received already makes no news.
        let mut news = what == Happening::News;
        while (news || self.top.has_more()) && !self.is_over() {
            let Some(report) = self.top.next()? else { bail!("`vnic serve` has ended") };
            self.before = Some(std::mem::replace(&mut self.last, report));
            self.page = self.lives.last_page(&self.last);
            news = false;
        }
        Ok(if self.is_over() { Next::End } else { Next::Draw })
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        // Writing to a string does not fail.
        let text = text(&self.last, self.before.as_ref(), self.by, area.width).unwrap_or_default();
        let page = under(self.page.as_ref(), area.width);
        let lines = format!("{DIM}q quits, f: by flow, by file{DIM:#}\n{text}{page}");
        frame.render_widget(Paragraph::new(lines.into_text().unwrap_or_default()), area);
    }
}

/// A report, no wider than `width`; with the one before, how fast it goes.
pub(crate) fn text(report: &Report, before: Option<&Report>, by: By, width: u16) -> Result<String, fmt::Error> {
    let rates = before.map(|before| Rates { before, seconds: report.seconds - before.seconds });
    let mut text = head(report, rates, width)?;
    if report.bytes > 0 {
        let (first, second) = match by {
            By::Flow => (flows(report, rates, width), files(report, rates, width)),
            By::File => (files(report, rates, width), flows(report, rates, width)),
        };
        write!(text, "\n{first}\n{second}")?;
    }
    text += &others(report);
    Ok(text)
}

impl By {
    /// The other one.
    pub(crate) fn other(self) -> By {
        match self {
            By::Flow => By::File,
            By::File => By::Flow,
        }
    }
}

/// The report before, and how long ago that was.
#[derive(Debug, Clone, Copy)]
struct Rates<'r> {
    before: &'r Report,
    seconds: f64,
}

impl Rates<'_> {
    /// So many new bytes.
    fn per_second(self, new: u64) -> String {
        if new == 0 || self.seconds <= 0.0 {
            return String::new();
        }
        format!("{}/s", figures::bytes((new as f64 / self.seconds) as u64))
    }

    /// Bytes that are new.
    fn flow(self, flow: &FlowReport) -> u64 {
        let same = |other: &&FlowReport| (&other.flow, &other.protocol) == (&flow.flow, &flow.protocol);
        flow.bytes.saturating_sub(self.before.flows.iter().find(same).map_or(0, |flow| flow.bytes))
    }

    fn source(self, source: &SourceReport) -> u64 {
        let mut all = self.before.files.iter().chain(&self.before.elsewhere);
        let before = all.find(|other| other.source == source.source);
        source.bytes.saturating_sub(before.map_or(0, |source| source.bytes))
    }
}

/// What is said of all of it.
fn head(report: &Report, rates: Option<Rates<'_>>, width: u16) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let kernel = report.kernel.as_deref().map_or("guest".to_owned(), |kernel| format!("Linux {kernel}"));
    let (passed, time) = (figures::bytes(report.passed.bytes), figures::seconds(report.seconds));
    write!(text, "{HEAD}{kernel}{HEAD:#}  sent {passed} in {time}")?;
    let (seen, all) = (report.seen, report.passed);
    // From outside, nobody knows how long those were that were missed.
    let share = match seen.bytes < all.bytes {
        true => figures::percent(seen.bytes, all.bytes).map(|share| share + " of it"),
        false => figures::percent(seen.frames, all.frames).map(|share| share + " of the frames"),
    };
    match share {
        None => writeln!(text, ", nothing yet")?,
        Some(_) if report.seen == report.passed => writeln!(text, ", all of it seen")?,
        Some(share) if width < NARROW => writeln!(text, "\n{WARN}{share} seen{WARN:#}: the figures are of that")?,
        Some(share) => writeln!(text, ", {WARN}{share} seen{WARN:#}: the figures are of that")?,
    }
    if let Some(rates) = rates {
        let new = report.passed.bytes.saturating_sub(rates.before.passed.bytes);
        let rate = if new == 0 { "nothing".to_owned() } else { rates.per_second(new) };
        writeln!(text, "now {rate}")?;
    }
    if let Some(why) = &report.why {
        writeln!(text, "{BAD}{why}{BAD:#}")?;
    }
    Ok(text)
}

fn flows(report: &Report, rates: Option<Rates<'_>>, width: u16) -> String {
    let mut columns =
        vec![("flow", Align::Left), ("bytes", Align::Right), ("zero-copy", Align::Right), ("from", Align::Left)];
    if rates.is_some() {
        columns.insert(2, ("rate", Align::Right));
    }
    let row = |flow: &FlowReport| {
        let share = flow.zero_copy_share();
        let mut row = vec![
            Cell::new(name(flow)),
            Cell::new(figures::bytes(flow.bytes)),
            table::styled(percent(flow.zero_copy_bytes, flow.bytes.saturating_sub(flow.unsettled_bytes)), style(share)),
            Cell::new(from(flow)),
        ];
        if let Some(rates) = rates {
            row.insert(2, Cell::new(rates.per_second(rates.flow(flow))));
        }
        row
    };
    let mut all: Vec<&FlowReport> = report.flows.iter().collect();
    // What moves comes first.
    all.sort_by_key(|flow| rates.is_some_and(|rates| rates.flow(flow) == 0));
    table::table_within(width, &columns, all.into_iter().take(LINES).map(row).collect())
}

/// Its addresses; of what is not TCP, its protocol, too.
fn name(flow: &FlowReport) -> String {
    if flow.protocol == "tcp" { flow.flow.clone() } else { format!("{} {}", flow.flow, flow.protocol) }
}

/// What it comes from, with a share where that is several.
fn from(flow: &FlowReport) -> String {
    let one = |source: &SourceReport| {
        if source.bytes == flow.bytes {
            source.source.to_string()
        } else {
            format!("{} {}", percent(source.bytes, flow.bytes), source.source)
        }
    };
    let mut all: Vec<String> = flow.sources.iter().take(SOURCES).map(one).collect();
    if flow.sources.len() > SOURCES {
        all.push(format!("{} more", flow.sources.len() - SOURCES));
    }
    all.join(", ")
}

fn files(report: &Report, rates: Option<Rates<'_>>, width: u16) -> String {
    let mut columns = vec![("from", Align::Left), ("bytes", Align::Right), ("share", Align::Right)];
    if rates.is_some() {
        columns.insert(2, ("rate", Align::Right));
    }
    let mut all: Vec<&SourceReport> = report.files.iter().chain(&report.elsewhere).collect();
    all.sort_by_key(|source| {
        let silent = rates.is_some_and(|rates| rates.source(source) == 0);
        (silent, std::cmp::Reverse(source.bytes))
    });
    let row = |source: &&SourceReport| {
        let style = match source.source.kind {
            SourceKind::File | SourceKind::Anonymous => GOOD,
            SourceKind::Socket => BAD,
            SourceKind::Other | SourceKind::Unsettled => WARN,
        };
        let mut row = vec![
            table::styled(&source.source, style),
            Cell::new(figures::bytes(source.bytes)),
            Cell::new(percent(source.bytes, report.bytes)),
        ];
        if let Some(rates) = rates {
            row.insert(2, Cell::new(rates.per_second(rates.source(source))));
        }
        row
    };
    table::table_within(width, &columns, all.iter().take(LINES).map(row).collect())
}

/// What is not listed.
fn others(report: &Report) -> String {
    let hidden = |all: usize, gone: u64| all.saturating_sub(LINES) as u64 + gone;
    let flows = hidden(report.flows.len(), report.others.flows);
    let sources = hidden(report.files.len() + report.elsewhere.len(), report.others.sources);
    if flows + sources == 0 {
        return String::new();
    }
    format!("{DIM}{flows} more flows and {sources} more sources, with fewer bytes or gone silent{DIM:#}\n")
}

fn style(share: Option<f64>) -> anstyle::Style {
    match share {
        Some(share) if share >= 0.999 => GOOD,
        Some(share) if share <= 0.01 => BAD,
        _ => WARN,
    }
}

/// A part of payload bytes; of none it is not known.
fn percent(part: u64, whole: u64) -> String {
    figures::percent(part, whole).unwrap_or_else(|| "?".to_owned())
}
