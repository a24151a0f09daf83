//! A vhost-user front-end that sets up one queue pair and nothing else.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vnic::memory::testing::GuestRam;
use vnic::ring::RingLayout;
use vnic::spec::vhost_user::{
    HEADER_LEN, IOTLB_READ, IOTLB_UPDATE, IOTLB_WRITE, Iotlb, ProtocolFeature, ProtocolFeatures, VringAddr, VringState,
};
use vnic::spec::{Feature, Features};
use vnic::vhost_user::message::{Request, VringFile};
use vnic::vhost_user::socket::Connection;

/// A session with a back-end whose rings run.
pub(crate) struct FrontEnd {
    /// To be kept open: its end is the session's.
    _session: Arc<Connection>,
    /// Available-buffer notifications of the transmitq.
    pub(crate) kick: EventFd,
    /// Used-buffer notifications of the transmitq.
    pub(crate) call: EventFd,
    _others: Vec<EventFd>,
}

impl FrontEnd {
    /// Connects to `socket`, announces `ram`, starts the rings of one pair at `rings` (receiveq, transmitq); behind an IOMMU
    /// that leaves every address where it is, in `translations` of so many bytes.
    pub(crate) fn start(
        socket: &Path,
        ram: &GuestRam,
        rings: [RingLayout; 2],
        wanted: Features,
        translations: Option<u64>,
    ) -> Result<Self> {
        let wanted = if translations.is_some() { wanted.with(Feature::AccessPlatform) } else { wanted };
        let stream = connect(socket)?;
        let mut reader = stream.try_clone()?;
        let session = Arc::new(Connection::new(OwnedFd::from(stream)));
        let send = |request: &Request, fds: &[BorrowedFd<'_>]| session.send(&request.to_bytes(0), fds);
        let mut ask = |request: Request| -> Result<u64> {
            send(&request, &[])?;
            let mut reply = [0; HEADER_LEN + 8];
            reader.read_exact(&mut reply).with_context(|| format!("no answer to {request:?}"))?;
            Ok(reply.last_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word)))
        };
        send(&Request::SetOwner, &[])?;
        let offered = Features(ask(Request::GetFeatures)?);
        let missing = wanted.minus(offered);
        if missing != Features::NONE {
            bail!("the back-end does not offer {}", missing.names().join(", "));
        }
        let protocol = ProtocolFeatures(ask(Request::GetProtocolFeatures)?);
        // DPDK waits for as many rings as it has been told of, so it is told of none that do not come.
        let mut taken = ProtocolFeatures::of(&[ProtocolFeature::Mq]);
        if translations.is_some() {
            taken = taken.with(ProtocolFeature::BackendReq);
        }
        send(&Request::SetProtocolFeatures(ProtocolFeatures(protocol.0 & taken.0)), &[])?;
        if let Some(size) = translations {
            let (ours, theirs) = UnixStream::pair()?;
            send(&Request::SetBackendReqFd, &[theirs.as_fd()])?;
            let user = ram.specs().first().map_or(0, |spec| spec.user_addr.0 - spec.gpa.0);
            let session = session.clone();
            // Ends with the session, which closes the channel.
            std::thread::spawn(move || translate(ours, &session, user, size));
        }
        send(&Request::SetFeatures(wanted.with(Feature::ProtocolFeatures)), &[])?;
        send(&Request::SetMemTable(ram.specs().to_vec()), &vec![ram.fd(); ram.specs().len()])?;
        let mut kicks = Vec::new();
        let mut calls = Vec::new();
        for (index, ring) in (0..).zip(rings) {
            let state = |num| VringState { index, num };
            let file = VringFile { index, present: true };
            // Behind an IOMMU the device finds its rings as it finds everything.
            let user = |gpa: u64| match translations {
                Some(_) => gpa,
                None => ram.specs().first().map_or(0, |spec| spec.user_addr.0 + gpa - spec.gpa.0),
            };
            let base = if wanted.has(Feature::RingPacked) { 0x8000_8000 } else { 0 };
            let (kick, call) = (eventfd()?, eventfd()?);
            send(&Request::SetVringNum(state(u32::from(ring.size))), &[])?;
            send(&Request::SetVringBase(state(base)), &[])?;
            let addr = VringAddr {
                index,
                flags: 0,
                descriptor: user(ring.desc),
                used: user(ring.used),
                available: user(ring.avail),
                log: 0,
            };
            send(&Request::SetVringAddr(addr), &[])?;
            send(&Request::SetVringCall(file), &[call.as_fd()])?;
            send(&Request::SetVringKick(file), &[kick.as_fd()])?;
            send(&Request::SetVringEnable(state(1)), &[])?;
            kicks.push(kick);
            calls.push(call);
        }
        // Answered only when all before it has been taken in.
        ask(Request::GetFeatures)?;
        let kick = kicks.pop().context("no transmitq")?;
        let call = calls.pop().context("no transmitq")?;
        kicks.append(&mut calls);
        Ok(FrontEnd { _session: session, kick, call, _others: kicks })
    }
}

/// The IOMMU: answers each miss with the translation that it lies in.
fn translate(mut channel: UnixStream, session: &Connection, user: u64, size: u64) {
    let mut message = [0; HEADER_LEN + size_of::<Iotlb>()];
    while channel.read_exact(&mut message).is_ok() {
        let Some(asked) = message.get(HEADER_LEN..).and_then(|payload| payload.first_chunk::<8>()) else { return };
        let iova = u64::from_le_bytes(*asked) & !(size - 1);
        let answer =
            Iotlb { iova, size, user_address: user + iova, permissions: IOTLB_READ | IOTLB_WRITE, kind: IOTLB_UPDATE };
        if session.send(&Request::IotlbMsg(answer).to_bytes(0), &[]).is_err() {
            return;
        }
    }
}

fn eventfd() -> Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

/// Connects, waiting for the back-end to come up.
fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("nobody listens on {} after 20 s", socket.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
