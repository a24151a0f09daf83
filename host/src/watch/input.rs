//! What keys and clicks do.

use ratatui::layout::Rect;
use vnic::observe::protocol::LifeOf;

use super::draw::{self, Place};
use super::feed::Ask;
use super::model::{Model, Tab};
use crate::screen::{Input, Key};

/// What follows.
#[derive(Debug)]
pub(super) enum Done {
    /// The picture may be another.
    Draw,
    /// The device is to be asked.
    Ask(Ask),
    /// It is over.
    End,
}

/// Keys, and what they do, as `?` lists them.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("1 … 6, Tab, ← →, h l", "the views; or a click on their names"),
    ("↑ ↓, j k", "a queue, a chain, a buffer; or wheel, or click"),
    ("PgUp PgDn, g G", "a page; to the first, to the last"),
    ("[ ]", "the queue before, the queue behind, in any view"),
    ("Enter", "Rings: each buffer, or a line for a chain"),
    ("L", "Rings: whose memory the buffers are, or not"),
    ("Space", "Chains: stand still, go on"),
    ("/", "Chains: only these: queue, flow, file, 0xADDRESS"),
    ("Enter", "Chains: the whole chain; in it: a buffer's page"),
    ("f", "Flows and files: what comes first"),
    ("/, Enter", "Page: an address or a file's path"),
    ("H, R", "Hold: hold the queue, release it: these two keys"),
    ("", "are the only ones that touch the device"),
    ("Esc", "back"),
    ("q, Ctrl-C", "the end"),
];

/// So far the wheel goes.
const WHEEL: isize = 3;
/// So far a page goes.
const PAGE: isize = 10;

/// Does it. `area` is the screen's.
pub(super) fn act(model: &mut Model, input: Input, area: Rect) -> Done {
    let key = match input {
        Input::Key(key) => key,
        Input::Answer => return Done::Draw,
        Input::WheelUp => return moved(model, -WHEEL),
        Input::WheelDown => return moved(model, WHEEL),
        Input::Click { column, row } => {
            model.help = false;
            match draw::place(area, model, column, row) {
                Some(Place::Tab(tab)) => model.tab = tab,
                Some(Place::Queue(queue)) => model.choose(Some(queue)),
                Some(Place::Chain(number)) if model.chains.selected == Some(number) => model.chains.enter(),
                Some(Place::Chain(number)) => model.chains.selected = Some(number),
                None => {}
            }
            return Done::Draw;
        }
    };
    if model.help {
        model.help = false;
        return Done::Draw;
    }
    let line = match model.tab {
        Tab::Chains => &mut model.chains.editing,
        Tab::Page => &mut model.page.editing,
        _ => &mut None,
    };
    if let Some(line) = line {
        match edit(line, key) {
            Edited::Goes => Done::Draw,
            Edited::Given => given(model),
            Edited::Not => {
                (model.chains.editing, model.page.editing) = (None, None);
                Done::Draw
            }
        }
    } else {
        press(model, key)
    }
}

enum Edited {
    Goes,
    Given,
    Not,
}

fn edit(line: &mut String, key: Key) -> Edited {
    /// A path is no longer.
    const LONGEST: usize = 4096;
    match key {
        Key::Enter => return Edited::Given,
        Key::Escape => return Edited::Not,
        Key::Backspace => drop(line.pop()),
        Key::Char(char) if line.len() < LONGEST => line.push(char),
        _ => {}
    }
    Edited::Goes
}

/// A line was written.
fn given(model: &mut Model) -> Done {
    if model.tab == Tab::Chains {
        let line = model.chains.editing.take().unwrap_or_default();
        model.chains.choose(&line);
        return Done::Draw;
    }
    let line = model.page.editing.take().unwrap_or_default();
    match line.trim() {
        "" => Done::Draw,
        text => match text.parse::<crate::address::Of>() {
            Ok(of) => know(model, of.0),
            Err(why) => {
                model.page.refused = Some(why);
                Done::Draw
            }
        },
    }
}

/// Asks whose page that is.
fn know(model: &mut Model, of: LifeOf) -> Done {
    model.tab = Tab::Page;
    (model.page.refused, model.page.known) = (None, None);
    model.page.asked = Some(of.clone());
    Done::Ask(Ask::Known(of))
}

fn press(model: &mut Model, key: Key) -> Done {
    match key {
        Key::Char('q') | Key::Interrupt => return Done::End,
        Key::Escape if model.tab == Tab::Chains && model.chains.open.is_some() => model.chains.open = None,
        Key::Escape => return Done::End,
        Key::Char('?') => model.help = true,
        Key::Tab | Key::Right | Key::Char('l') => model.tab = model.tab.moved(1),
        Key::BackTab | Key::Left | Key::Char('h') => model.tab = model.tab.moved(-1),
        Key::Char(digit @ '1'..='6') => {
            let at = digit.to_digit(10).unwrap_or(1) as usize - 1;
            model.tab = Tab::ALL.get(at).copied().unwrap_or_default();
        }
        Key::Up | Key::Char('k') => return moved(model, -1),
        Key::Down | Key::Char('j') => return moved(model, 1),
        Key::PageUp => return paged(model, -PAGE),
        Key::PageDown => return paged(model, PAGE),
        Key::Home | Key::Char('g') => return paged(model, isize::from(i16::MIN)),
        Key::End | Key::Char('G') => return paged(model, isize::from(i16::MAX)),
        Key::Char('[') => model.move_queue(-1),
        Key::Char(']') => model.move_queue(1),
        other => return own(model, other),
    }
    Done::Draw
}

/// Keys that mean something in one view only.
fn own(model: &mut Model, key: Key) -> Done {
    match (model.tab, key) {
        (Tab::Rings, Key::Char('L')) => model.labels = !model.labels,
        (Tab::Rings, Key::Enter) => model.buffers = !model.buffers,
        (Tab::Chains, Key::Char(' ' | 'p')) => {
            model.chains.paused = !model.chains.paused;
            model.chains.ignored = 0;
        }
        (Tab::Chains, Key::Char('/')) => model.chains.editing = Some(model.chains.line.clone()),
        (Tab::Chains, Key::Enter) => match (model.chains.open, model.chains.chain()) {
            (Some(at), Some(chain)) => {
                let gpa = chain.buffers.get(at).map(|buffer| buffer.gpa.unwrap_or(buffer.addr));
                return gpa.map_or(Done::Draw, |gpa| know(model, LifeOf::Page { gpa }));
            }
            _ => model.chains.enter(),
        },
        (Tab::Flows, Key::Char('f')) => model.flows.by = model.flows.by.other(),
        (Tab::Page, Key::Char('/') | Key::Enter) => model.page.editing = Some(String::new()),
        (Tab::Hold, Key::Char('H')) => return touch(model, Ask::Hold),
        (Tab::Hold, Key::Char('R')) => return touch(model, Ask::Release),
        _ => {}
    }
    Done::Draw
}

fn touch(model: &mut Model, ask: impl FnOnce(String) -> Ask) -> Done {
    model.touched = None;
    model.selected().map(|queue| queue.queue.clone()).map_or(Done::Draw, |queue| Done::Ask(ask(queue)))
}

/// A line up or down.
fn moved(model: &mut Model, by: isize) -> Done {
    match model.tab {
        Tab::Chains if model.chains.open.is_some() => model.chains.move_buffer(by),
        Tab::Chains => model.chains.move_by(by),
        Tab::Rings | Tab::Counters | Tab::Hold => model.move_queue(by),
        Tab::Flows | Tab::Page => return paged(model, by),
    }
    Done::Draw
}

/// A page up or down.
fn paged(model: &mut Model, by: isize) -> Done {
    match model.tab {
        Tab::Chains | Tab::Hold => return moved(model, by),
        tab => {
            let scroll = &mut model.scroll[tab.at()];
            *scroll = scroll.saturating_add_signed(by as i16);
        }
    }
    Done::Draw
}
