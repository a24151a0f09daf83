//! A picture of the model: what stands where.
//!
//! Queues stand above the views, or beside them where the screen is wide. [`place`] says what stands at a place, for clicks.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Position, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Tabs, Wrap};

use super::input::KEYS;
use super::model::{Model, Tab};
use super::tabs::{chains, counters, flows, hold, page, queues, rings};
use super::theme::{BAD, CHOSEN, DIM, GOOD, HEAD, WARN};

/// From here on the queues stand beside the views.
const WIDE: u16 = 150;
/// How wide they are there.
const BESIDE: u16 = 64;

/// Where the parts are.
struct Parts {
    head: Rect,
    queues: Rect,
    tabs: Rect,
    body: Rect,
    foot: Rect,
}

fn parts(area: Rect, model: &Model) -> Parts {
    let [head, middle, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(area);
    let (queues, rest) = if area.width >= WIDE {
        let [queues, _, rest] =
            Layout::horizontal([Constraint::Length(BESIDE), Constraint::Length(2), Constraint::Fill(1)]).areas(middle);
        (queues, rest)
    } else {
        let lines = u16::try_from(queues::lines(model)).unwrap_or(u16::MAX);
        let most = (middle.height / 4).max(3);
        let [queues, rest] = Layout::vertical([Constraint::Length(lines.min(most)), Constraint::Fill(1)]).areas(middle);
        (queues, rest)
    };
    let [tabs, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(rest);
    Parts { head, queues, tabs, body, foot }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let parts = parts(frame.area(), model);
    frame.render_widget(head(model), parts.head);
    queues::draw(frame, parts.queues, model);
    let titles = Tab::ALL.iter().enumerate().map(|(at, tab)| format!("{} {}", at + 1, title(*tab, parts.tabs)));
    let tabs = Tabs::new(titles).select(model.tab.at()).highlight_style(CHOSEN).divider("│").padding(" ", " ");
    frame.render_widget(tabs, parts.tabs);
    let body = parts.body;
    match model.tab {
        _ if !model.seen => {
            let why = model.gone.as_deref().unwrap_or("asking the device …");
            frame.render_widget(Paragraph::new(why).style(DIM).wrap(Wrap { trim: true }), body);
        }
        Tab::Rings => rings::draw(frame, body, model),
        Tab::Chains => chains::draw(frame, body, model),
        Tab::Flows => flows::draw(frame, body, model),
        Tab::Counters => counters::draw(frame, body, model),
        Tab::Page => page::draw(frame, body, model),
        Tab::Hold => hold::draw(frame, body, model),
    }
    frame.render_widget(foot(model), parts.foot);
    if model.help {
        help(frame);
    }
}

/// A view's name; where there is little room, its first word.
fn title(tab: Tab, area: Rect) -> &'static str {
    let whole: usize = Tab::ALL.iter().map(|tab| tab.title().len() + 5).sum();
    match whole <= usize::from(area.width) {
        true => tab.title(),
        false => tab.title().split(' ').next().unwrap_or_default(),
    }
}

fn head(model: &Model) -> Line<'static> {
    let status = &model.status;
    let mut line = vec![Span::styled("vnic ", HEAD)];
    if let Some(why) = &model.gone {
        let why = format!("the device is gone, and looked for again and again: {why}");
        line.push(Span::styled(if model.seen { why } else { "no device yet".to_owned() }, BAD));
        return Line::from(line);
    }
    if !model.seen {
        return Line::from(line);
    }
    let others = model.devices().len();
    let (style, state) = match (status.connected, others) {
        (true, _) => (GOOD, "connected"),
        (false, 1) => (WARN, "no front-end"),
        (false, _) => (WARN, "not all have a front-end"),
    };
    line.push(Span::raw(format!("{}  ", status.socket)));
    line.push(Span::styled(state, style));
    if others > 1 {
        line.push(Span::raw(format!("  {others} devices")));
    } else if !status.link.is_empty() {
        line.push(Span::styled(format!("  link {}", status.link), DIM));
    }
    if status.sessions > 0 || others == 1 {
        line.push(Span::styled(format!("  session {}", status.sessions), DIM));
    }
    let held: Vec<&str> = model.held().map(|queue| queue.queue.as_str()).collect();
    match held.as_slice() {
        [] => {}
        [one] => line.push(Span::styled(format!("  held: {one}"), WARN)),
        several => line.push(Span::styled(format!("  {} queues are held", several.len()), WARN)),
    }
    if let Some(error) = &status.last_error {
        line.push(Span::styled(format!("  {error}"), BAD));
    }
    Line::from(line)
}

/// What the keys do here.
fn foot(model: &Model) -> Line<'static> {
    let own = match model.tab {
        Tab::Rings => "↑↓ queue  Enter each buffer  PgDn more",
        Tab::Chains if model.chains.editing.is_some() => "Enter shows these only  Esc not",
        Tab::Chains if model.chains.open.is_some() => "↑↓ buffer  Enter whose page  Esc back",
        Tab::Chains => "↑↓ chain  G newest  Space stand still  / filter  Enter all of it",
        Tab::Flows => "f what comes first  ↑↓ more",
        Tab::Counters => "↑↓ queue  PgDn more",
        Tab::Page if model.page.editing.is_some() => "Enter asks  Esc not",
        Tab::Page => "/ an address or a file  ↑↓ more",
        Tab::Hold => "↑↓ queue  H hold  R release",
    };
    Line::styled(format!("? keys  q quits  Tab next view  {own}"), DIM)
}

fn help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let lines: Vec<Line<'_>> = KEYS
        .iter()
        .map(|(keys, what)| Line::from(vec![Span::styled(format!(" {keys:<21} "), HEAD), Span::raw(*what)]))
        .chain([
            Line::default(),
            Line::styled(" Looking touches nothing. To mark text with the mouse, hold Shift.", DIM),
        ])
        .collect();
    let width = lines.iter().map(Line::width).max().unwrap_or_default() + 3;
    let (width, height) =
        (u16::try_from(width).unwrap_or(u16::MAX), u16::try_from(lines.len() + 2).unwrap_or(u16::MAX));
    let (width, height) = (width.min(area.width), height.min(area.height));
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(" keys ").title_bottom(" any key closes ").title_alignment(Alignment::Center);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

/// What somebody may click on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tab(Tab),
    Queue(String),
    /// By its number.
    Chain(u64),
}

/// What stands there.
pub(super) fn place(area: Rect, model: &Model, column: u16, row: u16) -> Option<Place> {
    let parts = parts(area, model);
    let at = Position::new(column, row);
    if parts.tabs.contains(at) {
        // As the widget has it: a space, the title, a space, and the divider.
        let mut end = parts.tabs.x;
        return Tab::ALL.into_iter().find_map(|tab| {
            end += u16::try_from(title(tab, parts.tabs).len()).unwrap_or_default() + 5;
            (column < end).then_some(Place::Tab(tab))
        });
    }
    if parts.queues.contains(at) {
        return queues::at(parts.queues, model, row).map(Place::Queue);
    }
    if parts.body.contains(at) && model.tab == Tab::Chains && model.chains.open.is_none() {
        return chains::at(parts.body, model, row).map(Place::Chain);
    }
    if parts.body.contains(at) && model.tab == Tab::Hold {
        return hold::at(parts.body, model, row).map(Place::Queue);
    }
    None
}
