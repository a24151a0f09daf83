//! Events made by hand, for the tests of whoever adds them up.

use crate::observe::tracer::{Event, EventBuffer};

/// The head of a TCP frame from 10.0.2.15, without options: 54 bytes of headers.
pub(crate) fn tcp(port: u16, payload: u32) -> Event {
    let total = (40 + payload).min(0xffff) as u16;
    let mut head = vec![0_u8; 12];
    head.extend([8, 0, 0x45, 0]);
    head.extend(total.to_be_bytes());
    head.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    head.extend(80_u16.to_be_bytes());
    head.extend(port.to_be_bytes());
    head.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 16, 1, 0, 0, 0, 0, 0]);
    let mut event = Event { frame_len: 54 + payload, head_len: 54, descriptors: 1, ..Event::default() };
    event.head_bytes[..54].copy_from_slice(&head);
    event.push(EventBuffer { addr: 0x5000, gpa: 0x5000, len: 12 + 54, writable: false });
    event
}

/// The same with one more buffer.
pub(crate) fn with(mut event: Event, gpa: u64, len: u32) -> Event {
    event.push(EventBuffer { addr: gpa, gpa, len, writable: false });
    event.descriptors += 1;
    event
}
