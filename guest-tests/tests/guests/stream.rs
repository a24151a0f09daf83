//! One stream out of the guest, a block of random bytes over and over; whoever receives it compares each block with the first.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use guest_fixture::{Agent, Deadline, Namespace, until};
use nix::poll::{PollTimeout, poll};
use sha2::{Digest, Sha256};
use vnic_experiment::wire::hex;

const BLOCK: usize = 1 << 20;
const COMES: Deadline = Deadline::secs("the stream to go on", 120);
const ENDS: Deadline = Deadline::secs("the stream to end", 60);

/// Bytes that the receiver takes at a time, and how long it waits then: so that a guest without hardware's help writes less memory than
/// can be copied meanwhile.
const PIECE: usize = 64 << 10;
const PAUSE_MS: u16 = 2;

/// What has come of the stream.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    blocks: AtomicU64,
    /// The first block's digest; what is wrong; whether it is over.
    told: Mutex<(String, Option<String>, bool)>,
}

impl Stream {
    pub(crate) fn listen(namespace: &Namespace) -> Arc<Stream> {
        let stream = Arc::new(Stream::default());
        let anywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9000);
        let listener = namespace.enter(|| TcpListener::bind(anywhere)).expect("a receiver in the namespace");
        let receiving = Arc::clone(&stream);
        std::thread::spawn(move || {
            let (connection, _) = listener.accept().expect("a connection");
            let outcome = receiving.take(connection);
            let mut told = receiving.told.lock().expect("nobody panics with it");
            (told.1, told.2) = (outcome.err(), true);
        });
        stream
    }

    fn take(&self, mut connection: TcpStream) -> Result<(), String> {
        // passt up to March 2023 (Debian 12's) awaits an answer to its SYN, ACK until the guest acknowledges something more: it resets a
        // connection on which the far side never speaks once the guest has paused for two seconds four times.
        connection.write_all(b"\n").map_err(|error| format!("the stream broke: {error}"))?;
        let (mut first, mut block, mut filled) = (Vec::new(), vec![0; BLOCK], 0);
        loop {
            let room = &mut block[filled..BLOCK.min(filled + PIECE)];
            match connection.read(room) {
                Ok(0) if filled == 0 => return Ok(()),
                Ok(0) => return Err(format!("the stream ends within a block, after {filled} bytes")),
                Ok(count) => filled += count,
                Err(error) => return Err(format!("the stream broke: {error}")),
            }
            let _ = poll(&mut [], PollTimeout::from(PAUSE_MS));
            if filled == BLOCK {
                filled = 0;
                let number = self.blocks.load(Ordering::Relaxed);
                if number == 0 {
                    self.told.lock().expect("nobody panics with it").0 = hex(&Sha256::digest(&block));
                    first.clone_from(&block);
                } else if let Some(at) = block.iter().zip(&first).position(|(one, other)| one != other) {
                    return Err(format!("block {number} is another from byte {at} on"));
                }
                self.blocks.store(number + 1, Ordering::Release);
            }
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// Waits for so many blocks.
    #[track_caller]
    pub(crate) fn until(&self, blocks: u64) {
        until(COMES, || {
            let told = self.told.lock().expect("nobody panics with it");
            assert!(!told.2, "the stream is over after {} blocks: {:?}", self.blocks(), told.1);
            (self.blocks() >= blocks).then_some(())
        });
    }

    /// The guest sends its block over and over, until there is a file `/tmp/stop`.
    #[track_caller]
    pub(crate) fn start(&self, agent: &mut Agent) {
        agent.run(&["dd", "if=/dev/urandom", "of=/tmp/block", "bs=65536", "count=16"]);
        let send = "while [ ! -e /tmp/stop ]; do cat /tmp/block; done | nc 10.0.2.2 9000";
        agent.run(&["sh", "-c", &format!("({send}) >/dev/null 2>&1 </dev/null &")]);
        self.until(2);
    }

    /// Ends it. Returns how many bytes came.
    ///
    /// # Panics
    /// Other bytes than were sent.
    #[track_caller]
    pub(crate) fn end(&self, agent: &mut Agent) -> u64 {
        agent.run(&["touch", "/tmp/stop"]);
        until(ENDS, || self.told.lock().expect("nobody panics with it").2.then_some(()));
        let (digest, wrong, _) = self.told.lock().expect("nobody panics with it").clone();
        assert_eq!(wrong, None);
        let own = agent.run(&["sha256sum", "/tmp/block"]);
        assert_eq!(own.split(' ').next(), Some(digest.as_str()), "other bytes arrived");
        self.blocks() * BLOCK as u64
    }
}
