//! `vnic watch`: a device on a full screen, live.
//!
//! | module | one sentence |
//! |---|---|
//! | [`feed`] | asks the device, on threads of its own |
//! | [`feeds`] | several devices as one |
//! | [`model`] | what is known and what is chosen |
//! | [`chains`] | the part of it that a trace fills |
//! | [`sources`] | whose memory a chain is of, in few words |
//! | [`input`] | what keys and clicks do to it |
//! | [`draw`] | a picture of it: where everything stands |
//! | [`tabs`] | the views, one file each |
//!
//! Operation: news and keys change the [`Model`]; a picture is made of nothing else, so that tests make pictures of models.

mod chains;
mod draw;
mod feed;
mod feeds;
mod input;
mod model;
mod sources;
mod tabs;
#[cfg(test)]
mod tests;
mod theme;

use std::cell::Cell;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Result;
use ratatui::Frame;
use ratatui::layout::Rect;

use self::feed::{Ask, Look};
use self::feeds::Feeds;
use self::model::Model;
pub(crate) use self::model::Tab;
use crate::control::Client;
use crate::screen::{self, Happening, Next, Show, Signals};
use crate::views;

/// How often it is drawn at least.
const REFRESH: Duration = Duration::from_secs(1);

/// Watches until somebody ends it. What is still held then is said on the ordinary screen.
pub(crate) fn run(clients: Vec<Client>, tab: Tab, labels: bool) -> Result<()> {
    // Before there are threads.
    let signals = Signals::block()?;
    let model = Model::new(tab, labels);
    let look = model.look();
    let feeds = Feeds::start(clients, &look)?;
    let mut watch = Watch { model, feeds, look, area: Rect::default().into() };
    let bell = watch.feeds.bell();
    if screen::run(&signals, REFRESH, bell.as_fd(), &mut watch)? {
        for queue in watch.model.held() {
            let name = &queue.queue;
            let release = watch.feeds.release(name);
            views::sentence(&format!("{name} is held; `{release}` lets its buffers go"))?;
        }
    }
    Ok(())
}

struct Watch {
    model: Model,
    feeds: Feeds,
    /// What the device was told last.
    look: Look,
    /// Where it was drawn last: clicks are on that.
    area: Cell<Rect>,
}

impl Show for Watch {
    fn happens(&mut self, what: Happening) -> Result<Next> {
        match what {
            Happening::Time => {}
            Happening::News => self.feeds.news().into_iter().for_each(|news| self.model.take(news)),
            Happening::Input(input) => match input::act(&mut self.model, input, self.area.get()) {
                input::Done::End => return Ok(Next::End),
                input::Done::Ask(ask) => self.feeds.ask(ask),
                input::Done::Draw => {}
            },
        }
        let look = self.model.look();
        if look != self.look {
            self.look = look.clone();
            self.feeds.ask(Ask::Look(look));
        }
        let there = self.model.gone.is_none();
        let shown = |tab| self.model.tab == tab && there;
        self.feeds.want_trace(shown(Tab::Chains));
        self.feeds.want_top(shown(Tab::Flows));
        Ok(Next::Draw)
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        self.area.set(frame.area());
        draw::draw(frame, &self.model);
    }
}
