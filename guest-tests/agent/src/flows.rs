//! Many flows at once, each to an echo: what must use several queues, in both directions. Many datagrams at once, which a
//! NIC may cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use nix::unistd::Pid;

/// An echo that says nothing for so long says nothing more.
const SILENCE: Duration = Duration::from_secs(60);

/// Sends `bytes` on each of `flows` connections to the echo at `to`, all at once, and checks what comes back. Flow N runs
/// on CPU N, so that the kernel sends it by that CPU's queue.
///
/// # Errors
/// A flow that fails, with its number.
pub fn echo(to: SocketAddr, flows: usize, bytes: usize) -> Result<()> {
    let all = sched_getaffinity(Pid::from_raw(0)).context("the CPUs there are")?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)).collect();
    ensure!(!cpus.is_empty(), "there is no CPU to run on");
    thread::scope(|scope| {
        let running: Vec<_> = (0..flows)
            .map(|flow| {
                let cpu = cpus[flow % cpus.len()];
                scope.spawn(move || one(to, flow, cpu, bytes).with_context(|| format!("flow {flow}")))
            })
            .collect();
        running.into_iter().try_for_each(|flow| flow.join().map_err(|_| anyhow!("a flow's thread panicked"))?)
    })
}

/// Has the kernel cut one message into datagrams of `size` bytes (`UDP_SEGMENT`), or the NIC if that can, and waits for
/// each of them to come back from the echo at `to`.
///
/// # Errors
/// One does not come back, or comes back as another.
pub fn datagrams(to: SocketAddr, size: u16, bytes: usize) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("a socket")?;
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    socket.set_read_timeout(Some(SILENCE)).context("a time-out")?;
    // So that the neighbour is known: what waits for its address is cut already.
    socket.send(b"?").context("send")?;
    let mut back = vec![0; usize::from(u16::MAX)];
    socket.recv(&mut back).context("the echo's first answer")?;
    setsockopt(&socket, UdpGsoSegment, &i32::from(size)).context("UDP_SEGMENT")?;
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 31 + at / 253) as u8).collect();
    socket.send(&sent).context("send all of it")?;
    for (at, piece) in sent.chunks(usize::from(size)).enumerate() {
        let len = socket.recv(&mut back).with_context(|| format!("datagram {at}"))?;
        ensure!(&back[..len] == piece, "datagram {at} came back as {len} other bytes");
    }
    Ok(())
}

fn one(to: SocketAddr, flow: usize, cpu: usize, bytes: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("run on CPU {cpu}"))?;
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(SILENCE)).context("a time-out")?;
    // No two flows have the same bytes.
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 31 + at / 253 + flow * 7) as u8).collect();
    let mut back = Vec::with_capacity(bytes);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (&stream).write_all(&sent).context("send")?;
            stream.shutdown(Shutdown::Write).context("end the stream")
        });
        (&stream).read_to_end(&mut back).context("receive")?;
        writer.join().map_err(|_| anyhow!("the sending thread panicked"))?
    })?;
    ensure!(back == sent, "other bytes came back than were sent: {} of {bytes}", back.len());
    Ok(())
}
