//! A QEMU without a guest: its CPU stands still, and whoever speaks its qtest protocol reads and writes ports and memory as a CPU would.
//! <https://www.qemu.org/docs/master/devel/testing/qtest.html>

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_fixture::{Child, Folder};
use vnic::memory::SharedArea;

/// How long QEMU may take to answer.
const SILENCE: Duration = Duration::from_secs(20);
/// All of its memory is one file, from address 0 on.
pub(crate) const RAM: u64 = 16 << 20;

/// Such a QEMU with one virtio-net-pci, whose far end gives every frame back. Killed when dropped.
pub(crate) struct Qtest {
    reader: BufReader<UnixStream>,
    _qemu: Child,
    _folder: Folder,
}

impl Qtest {
    /// Starts it, with its memory in a file that is shared with us.
    pub(crate) fn start(program: &Path) -> Result<(Qtest, OwnedFd)> {
        let folder = Folder::new();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (orders_at, frames_at, device_at) = (path("qtest.sock"), path("frames.sock"), path("device.sock"));
        let orders = UnixListener::bind(&orders_at)?;
        let far_end = UnixDatagram::bind(&frames_at)?;
        let memory = SharedArea::file(RAM)?;
        // By its path among our open files: QEMU opens it there, and it has no name elsewhere.
        let at = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&memory));
        std::fs::write(path("halt.bin"), halt())?;
        let mut command = Command::new(program);
        command.args(["-machine", "q35,accel=tcg,memory-backend=ram", "-display", "none", "-nodefaults", "-m"]);
        command.arg(format!("{}M", RAM >> 20));
        command.args(["-object", &format!("memory-backend-file,id=ram,size={RAM},share=on,mem-path={at}")]);
        command.args(["-bios", &path("halt.bin")]);
        let [local, remote] = [("local", &device_at), ("remote", &frames_at)]
            .map(|(side, at)| format!("{side}.type=unix,{side}.path={at}"));
        command.args(["-netdev", &format!("dgram,id=net,{local},{remote}")]);
        command.args(["-device", &format!("virtio-net-pci,netdev=net,addr=2,romfile=,{OPTIONS}")]);
        command.args(["-qtest", &format!("unix:{orders_at}"), "-qtest-log", "/dev/null"]);
        std::thread::spawn(move || give_back(&far_end, Path::new(&device_at)));
        let mut qemu = Child::start("qemu", folder.path(), command);
        let stream = accept(&orders, &mut qemu)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok((Qtest { reader: BufReader::new(stream), _qemu: qemu, _folder: folder }, memory))
    }

    /// Says one line; what is answered behind `OK`.
    fn ask(&mut self, line: &str) -> Result<String> {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer).with_context(|| format!("QEMU does not answer {line:?}"))?;
        match answer.trim_end().strip_prefix("OK") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => bail!("QEMU answers {answer:?} to {line:?}"),
        }
    }

    /// Reads by one of qtest's commands: `inl`, `readw`, …
    pub(crate) fn read(&mut self, command: &str, at: u64) -> Result<u64> {
        let said = self.ask(&format!("{command} {at:#x}"))?;
        u64::from_str_radix(said.trim_start_matches("0x"), 16).with_context(|| format!("{command} {at:#x}: {said:?}"))
    }

    /// Writes by one of qtest's commands: `outl`, `writew`, …
    pub(crate) fn write(&mut self, command: &str, at: u64, value: u64) -> Result<()> {
        self.ask(&format!("{command} {at:#x} {value:#x}")).map(drop)
    }
}

/// All that this device can offer beyond its defaults.
const OPTIONS: &str = "disable-legacy=on,vectors=4,packed=on,queue_reset=on";

/// A firmware that has the CPU stand still, with no interrupt to wake it. (Debian's QEMU is built without the accelerator that has none.)
fn halt() -> Vec<u8> {
    let mut image = vec![0; 64 << 10];
    // Where a CPU begins: cli; hlt; jmp back.
    let code = [0xfa, 0xf4, 0xeb, 0xfd];
    image.iter_mut().skip((64 << 10) - 16).zip(code).for_each(|(byte, code)| *byte = code);
    image
}

/// QEMU connects, or has ended.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let start = std::time::Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if let Some(status) = qemu.ended() {
                    bail!("QEMU ended with {status}: {}", qemu.output());
                }
                if start.elapsed() > SILENCE {
                    bail!("QEMU does not come up");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The far end, as long as there is a device: each frame is a datagram.
fn give_back(far_end: &UnixDatagram, device: &Path) -> std::io::Result<()> {
    let mut frame = vec![0; 1 << 16];
    far_end.set_read_timeout(Some(Duration::from_secs(1)))?;
    loop {
        match far_end.recv(&mut frame) {
            Ok(len) => far_end.send_to(frame.get(..len).unwrap_or_default(), device).map(drop)?,
            Err(error) if error.kind() == ErrorKind::WouldBlock && device.exists() => {}
            Err(error) => return Err(error),
        }
    }
}
