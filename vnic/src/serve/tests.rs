//! A whole process in this one: several devices, their front-ends, the control socket.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::link::LinkKind;
use crate::observe::protocol::{Reply, Request, Status};
use crate::vhost_user::message;
use crate::vhost_user::socket::Connection;

const DEADLINE: Duration = Duration::from_secs(20);

/// A front-end's end of a socket, and the other as an endpoint.
fn connected() -> (UnixStream, Endpoint) {
    let (front_end, back_end) = UnixStream::pair().unwrap();
    front_end.set_read_timeout(Some(DEADLINE)).unwrap();
    (front_end, Endpoint::Fd(back_end.into_raw_fd()))
}

fn offered(front_end: &UnixStream) -> u64 {
    let ask = Connection::new(front_end.try_clone().unwrap().into());
    ask.send(&message::Request::GetFeatures.to_bytes(0), &[]).unwrap();
    let mut reply = [0; 20];
    (&*front_end).read_exact(&mut reply).unwrap();
    u64::from_le_bytes(reply[12..].try_into().unwrap())
}

fn status(control: &Path) -> Status {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    client::send(&mut stream, &Request::Status).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    match serde_json::from_str(&line).unwrap() {
        Reply::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_nic_and_an_rng_live_in_one_process_and_each_has_its_front_end() {
    let path = std::env::temp_dir().join(format!("vnic-process-{}", std::process::id()));
    let (net, net_endpoint) = connected();
    let (rng, rng_endpoint) = connected();
    let control = path.clone();
    let process = std::thread::spawn(move || {
        let options = Options { link: LinkKind::Sink, ..Options::new(net_endpoint.clone()) };
        let mut process = Process::prepare(PollMode::Adaptive, &[])?;
        process.add_nic(&net_endpoint, &options)?;
        process.add(&rng_endpoint, Rng { queue_size: 64 }, RngDataPath::open().unwrap())?;
        process.listen(&control, None)?;
        process.run()
    });
    let features = [&net, &rng].map(offered);
    assert_eq!(features[1], Rng { queue_size: 64 }.offered().0);
    assert_ne!(features[0], features[1]);
    let status = status(&path);
    let devices: Vec<_> = status
        .devices
        .iter()
        .map(|device| (device.device.as_str(), device.connected, device.queues[0].queue.as_str()))
        .collect();
    assert_eq!(devices, [("net", true, "receiveq0"), ("rng", true, "requestq")]);
    assert_eq!((status.device.as_str(), status.link.as_str()), ("net", "sink"), "at the top is the first device");
    // One front-end over an inherited socket is gone: so is the process, with the other's session.
    drop(rng);
    process.join().unwrap().unwrap();
    assert_eq!((&net).read(&mut [0]).unwrap(), 0);
    assert!(!path.exists());
}
