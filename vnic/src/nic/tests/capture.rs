//! The capture, as the workers write it.

use super::*;

#[test]
fn a_capture_is_complete_once_the_workers_have_ended_whoever_still_knows_them() {
    let path = std::env::temp_dir().join(format!("vnic-workers-{}.pcapng", std::process::id()));
    let capture = Capture::create(&path).unwrap();
    let served = serve_captured(vec![link::open(&LinkKind::Sink, 1).unwrap()], 1, Some(&capture));
    drop(capture);
    let mut rig = Rig::of(served, FEATURES);
    let frame = [0xa5; 1000];
    rig.ram.write(PAYLOAD, &frame).unwrap();
    rig.send(1000);
    rig.tx.used();
    // As the control socket's threads do, the rig has them as well, and goes on asking.
    rig.workers.end();
    let captured = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(captured.windows(frame.len()).any(|window| window == frame), "{} bytes", captured.len());
    assert!(!rig.workers.hold(TX, true), "nobody is there to do it");
}
