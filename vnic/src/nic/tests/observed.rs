//! What an observer on the data path is shown.

use super::*;
use crate::observe::observer::{Observer, TransmittedFrame};

/// Length, bytes read and copied; where its pieces are.
type Note = (u32, u32, u32, Vec<(u64, u64)>);

/// Notes each frame.
#[derive(Debug, Default)]
pub(super) struct Notes(pub(super) Vec<Note>);

impl Observer for Notes {
    fn transmitted(&mut self, sent: &TransmittedFrame<'_>) {
        self.0.push((sent.frame.len, sent.read, sent.copied, sent.pieces().collect()));
    }
}

pub(super) fn notes(observers: Vec<Box<dyn Observer>>) -> Vec<Notes> {
    let taken = observers.into_iter().map(|observer| -> Box<dyn std::any::Any> { observer });
    taken.map(|observer| *observer.downcast::<Notes>().unwrap()).collect()
}

#[test]
fn an_observer_sees_each_frame_with_its_pieces_until_it_is_taken_back() {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    let send = |rig: &mut Rig| {
        rig.tx.add(&[Buffer::readable(HEADER, 12 + 60), Buffer::readable(PAYLOAD, 1000)]);
        rig.tx.used();
    };
    send(&mut rig);
    assert!(crate::nic::observe(&rig.workers, || Some(Box::new(Notes::default()))).is_empty(), "nobody looked before");
    send(&mut rig);
    let [Notes(seen)] = &notes(crate::nic::observe(&rig.workers, || None))[..] else {
        panic!("one worker, one observer")
    };
    assert_eq!(*seen, [(1060, 1060, 1060, vec![(HEADER + 12, 60), (PAYLOAD, 1000)])]);
    send(&mut rig);
    assert!(crate::nic::observe(&rig.workers, || None).is_empty());
}
