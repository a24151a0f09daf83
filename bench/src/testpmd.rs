//! DPDK's virtio-user driver, which knows nothing of us: testpmd on CPU 1.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vnic::spec::{Feature, Features};

use crate::backend::end;
use crate::pump::Shape;

/// What it does with its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It sends.
    Transmit,
    /// It sends, and takes what comes back.
    BothWays,
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drove {
    /// Frames sent per second, or received where it goes both ways.
    pub(crate) frames_per_second: f64,
    /// Share of the time in which the back-end had nothing to do, where it says so.
    pub(crate) idle: Option<f64>,
}

/// For how long it is to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    pub(crate) seconds: f64,
    /// And as much longer as so many frames take.
    pub(crate) frames: u64,
}

/// Runs the driver with `pairs` queue pairs against the back-end on `socket` for so long, after a second to warm up.
/// `idle_ns` is what the back-end says of its idle time so far.
pub(crate) fn run(
    socket: &Path,
    pairs: u16,
    shape: Shape,
    features: Features,
    mode: Mode,
    length: Length,
    idle_ns: impl Fn() -> Option<u64>,
) -> Result<Drove> {
    let mut device = format!("--vdev=net_virtio_user0,path={},queues={pairs},queue_size=1024", socket.display());
    for (feature, option) in [(Feature::RingPacked, ",packed_vq=1"), (Feature::InOrder, ",in_order=1")] {
        if features.has(feature) {
            device.push_str(option);
        }
    }
    let lengths = vec![shape.segment.to_string(); usize::from(shape.segments)].join(",");
    let forward = match mode {
        Mode::Transmit => "--forward-mode=txonly",
        Mode::BothWays => "--forward-mode=flowgen",
    };
    // Into a pipe it would print by the page.
    let mut command = Command::new("stdbuf");
    command.args([
        "-oL",
        "dpdk-testpmd",
        "--lcores",
        "0@1,1@1",
        "--no-pci",
        "--file-prefix=driver",
        "--single-file-segments",
        "-m",
        "256",
    ]);
    command.arg(device).args(["--", "-i", "--total-num-mbufs=16384", forward, "--txd=1024", "--rxd=1024"]);
    command.args([format!("--rxq={pairs}"), format!("--txq={pairs}")]);
    command.arg("--auto-start").arg(format!("--txpkts={lengths}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut driver = Driver::start(command)?;
    driver.wait_for("testpmd>", Duration::from_secs(20))?;
    driver.moved(mode)?;
    std::thread::sleep(Duration::from_secs(1));
    // Asking disturbs the driver's CPU for a moment: outside of the span that its rate is of.
    let (before, start) = (idle_ns(), Instant::now());
    let (first, _) = driver.moved(mode)?;
    let mut rates = Vec::new();
    let moved = loop {
        std::thread::sleep(Duration::from_secs_f64(length.seconds));
        let (frames, rate) = driver.moved(mode)?;
        if rate == 0.0 {
            bail!("DPDK's driver moved no frame");
        }
        rates.push(rate);
        if frames - first >= length.frames {
            break frames - first;
        }
    };
    let took = start.elapsed().as_nanos() as f64;
    if length.frames > 0 {
        eprintln!("    {moved} frames");
    }
    let idle = before.zip(idle_ns()).map(|(before, after)| after.saturating_sub(before) as f64 / took);
    // Of spans of the same length.
    Ok(Drove { frames_per_second: rates.iter().sum::<f64>() / rates.len() as f64, idle })
}

struct Driver {
    child: Child,
    lines: Receiver<String>,
}

impl Driver {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = guest_fixture::guard::spawn(&mut command).with_context(|| format!("start {command:?}"))?;
        let (sender, lines) = channel();
        let out = child.stdout.take().context("its output")?;
        let err = child.stderr.take().context("its errors")?;
        for pipe in [Box::new(out) as Box<dyn std::io::Read + Send>, Box::new(err)] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Driver { child, lines })
    }

    fn order(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("testpmd listens")?;
        writeln!(stdin, "{line}").context("testpmd listens")
    }

    /// Waits for a line with `words`, and returns it. The prompt has no line of its own: what is asked next makes one.
    fn wait_for(&mut self, words: &str, limit: Duration) -> Result<String> {
        if words == "testpmd>" {
            self.order("show port summary all")?;
        }
        let deadline = Instant::now() + limit;
        let mut last = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(words) => return Ok(line),
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => last = line,
                Err(RecvTimeoutError::Timeout) => bail!("testpmd does not say {words:?}; last: {last}"),
                Err(RecvTimeoutError::Disconnected) => bail!("testpmd ended: {last}"),
            }
        }
    }

    /// Frames moved so far, and per second since the last look: received where it goes both ways.
    fn moved(&mut self, mode: Mode) -> Result<(u64, f64)> {
        self.order("show port stats 0")?;
        let (frames, rate) = match mode {
            Mode::Transmit => ("TX-packets:", "Tx-pps:"),
            Mode::BothWays => ("RX-packets:", "Rx-pps:"),
        };
        let moved = (self.figure(frames)?.parse()?, self.figure(rate)?.parse()?);
        if mode == Mode::BothWays {
            // The last line of what was asked.
            self.figure("Tx-pps:")?;
        }
        Ok(moved)
    }

    /// What stands behind these words in the next line that has them.
    fn figure(&mut self, words: &str) -> Result<String> {
        let line = self.wait_for(words, Duration::from_secs(10))?;
        let (_, figure) = line.split_once(words).context("a figure")?;
        Ok(figure.split_whitespace().next().context("a figure")?.to_owned())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.order("quit");
        end(&mut self.child);
    }
}
