//! What comes from a terminal's keyboard and mouse, out of the bytes it sends.
//!
//! Operation: an escape sequence may come in pieces, over a slow line. What is not whole yet stays in the [`Keyboard`]; if nothing
//! follows for a moment, a lone escape byte was the key.

use std::str;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Enter,
    Escape,
    Tab,
    BackTab,
    Backspace,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    /// Ctrl-C.
    Interrupt,
}

/// A key, or something done with the mouse; places count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Key(Key),
    Click {
        column: u16,
        row: u16,
    },
    WheelUp,
    WheelDown,
    /// The terminal says where its cursor is.
    Answer,
}

/// A sequence is no longer than this.
const LONGEST: usize = 64;

/// The bytes that have no meaning yet.
#[derive(Debug, Default)]
pub(crate) struct Keyboard(Vec<u8>);

impl Keyboard {
    /// What these bytes mean, behind those from before.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<Input> {
        self.0.extend_from_slice(bytes);
        let mut inputs = Vec::new();
        let mut at = 0;
        while at < self.0.len() {
            match first(&self.0[at..]) {
                First::Whole(len, input) => {
                    inputs.extend(input);
                    at += len;
                }
                First::Part if self.0.len() - at > LONGEST => at = self.0.len(),
                First::Part => break,
            }
        }
        self.0.drain(..at);
        inputs
    }

    /// Does something wait for its rest?
    pub(crate) fn waits(&self) -> bool {
        !self.0.is_empty()
    }

    /// Nothing has followed.
    pub(crate) fn give_up(&mut self) -> Option<Input> {
        let bytes = std::mem::take(&mut self.0);
        (bytes == [0x1b]).then_some(Input::Key(Key::Escape))
    }
}

/// What stands at the beginning of some bytes.
enum First {
    /// So many of them, and what they mean, if anything.
    Whole(usize, Option<Input>),
    /// The beginning of something.
    Part,
}

fn first(bytes: &[u8]) -> First {
    let key = |len, key| First::Whole(len, Some(Input::Key(key)));
    match bytes {
        [0x1b] | [0x1b, b'[' | b'O'] => First::Part,
        [0x1b, b'O', last, ..] => First::Whole(3, named(*last).map(Input::Key)),
        [0x1b, b'[', rest @ ..] => sequence(rest),
        // Escape, and then something else.
        [0x1b, ..] => key(1, Key::Escape),
        [b'\r' | b'\n', ..] => key(1, Key::Enter),
        [b'\t', ..] => key(1, Key::Tab),
        [0x7f | 0x08, ..] => key(1, Key::Backspace),
        [0x03, ..] => key(1, Key::Interrupt),
        [0..0x20, ..] => First::Whole(1, None),
        [byte, ..] => {
            let len = match byte {
                0..0x80 => 1,
                0xc0..0xe0 => 2,
                0xe0..0xf0 => 3,
                0xf0..0xf8 => 4,
                _ => return First::Whole(1, None),
            };
            let Some(bytes) = bytes.get(..len) else { return First::Part };
            let char = str::from_utf8(bytes).ok().and_then(|text| text.chars().next());
            First::Whole(if char.is_some() { len } else { 1 }, char.map(|char| Input::Key(Key::Char(char))))
        }
        [] => First::Part,
    }
}

/// Behind `ESC [`: parameters, then the byte that ends it.
fn sequence(rest: &[u8]) -> First {
    let Some(end) = rest.iter().position(|byte| (0x40..=0x7e).contains(byte)) else { return First::Part };
    let (parameters, last) = (str::from_utf8(&rest[..end]).unwrap_or_default(), rest[end]);
    let input = match (parameters, last) {
        (mouse, b'M' | b'm') if mouse.starts_with('<') => mouse_input(&mouse[1..], last == b'M'),
        (place, b'R') if place.contains(';') => Some(Input::Answer),
        (number, b'~') => match number.split(';').next() {
            Some("1" | "7") => Some(Input::Key(Key::Home)),
            Some("4" | "8") => Some(Input::Key(Key::End)),
            Some("5") => Some(Input::Key(Key::PageUp)),
            Some("6") => Some(Input::Key(Key::PageDown)),
            _ => None,
        },
        _ => named(last).map(Input::Key),
    };
    First::Whole(2 + end + 1, input)
}

fn named(last: u8) -> Option<Key> {
    Some(match last {
        b'A' => Key::Up,
        b'B' => Key::Down,
        b'C' => Key::Right,
        b'D' => Key::Left,
        b'H' => Key::Home,
        b'F' => Key::End,
        b'Z' => Key::BackTab,
        _ => return None,
    })
}

/// xterm's SGR mouse reports: `button;column;row`, from 1.
fn mouse_input(parameters: &str, pressed: bool) -> Option<Input> {
    let mut numbers = parameters.split(';').map(|number| number.parse::<u16>().ok());
    let (button, column, row) = (numbers.next()??, numbers.next()??, numbers.next()??);
    match button {
        0 if pressed => Some(Input::Click { column: column.checked_sub(1)?, row: row.checked_sub(1)? }),
        64 => Some(Input::WheelUp),
        65 => Some(Input::WheelDown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Input> {
        Keyboard::default().take(bytes)
    }

    #[test]
    fn keys_arrows_and_the_mouse() {
        let key = |key| vec![Input::Key(key)];
        for (bytes, inputs) in [
            (&b"q"[..], key(Key::Char('q'))),
            ("é".as_bytes(), key(Key::Char('é'))),
            (b"\x03", key(Key::Interrupt)),
            (b"\x1b[A", key(Key::Up)),
            (b"\x1bOB", key(Key::Down)),
            (b"\x1b[1;5C", key(Key::Right)),
            (b"\x1b[5~", key(Key::PageUp)),
            (b"\x1b[Z", key(Key::BackTab)),
            (b"\x1b[<0;11;3M", vec![Input::Click { column: 10, row: 2 }]),
            (b"\x1b[<0;11;3m", vec![]),
            (b"\x1b[<65;1;1M", vec![Input::WheelDown]),
            (b"\x1b[24;80Rq", vec![Input::Answer, Input::Key(Key::Char('q'))]),
            (b"\x1b[<0;0;0M", vec![]),
            (b"\xff\xfe", vec![]),
            (b"jj", vec![Input::Key(Key::Char('j')); 2]),
        ] {
            assert_eq!(keys(bytes), inputs, "{bytes:?}");
        }
    }

    #[test]
    fn a_sequence_in_pieces_is_one_key_and_a_lone_escape_is_a_key_of_its_own() {
        let mut keyboard = Keyboard::default();
        assert!(keyboard.take(b"\x1b").is_empty() && keyboard.waits());
        assert!(keyboard.take(b"[").is_empty());
        assert_eq!(keyboard.take(b"B"), [Input::Key(Key::Down)]);
        assert!(keyboard.take(b"\x1b").is_empty());
        assert_eq!(keyboard.give_up(), Some(Input::Key(Key::Escape)));
        assert!(!keyboard.waits());
    }

    #[test]
    fn a_sequence_without_an_end_is_forgotten() {
        let mut keyboard = Keyboard::default();
        assert!(keyboard.take(&[b"\x1b[".as_slice(), &[b'1'; 2 * LONGEST]].concat()).is_empty());
        assert!(!keyboard.waits());
    }
}
