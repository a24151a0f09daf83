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

/// Runs the driver with `pairs` queue pairs against the back-end on `socket` for `seconds`, after a second to warm up.
/// `idle_ns` is what the back-end says of its idle time so far.
pub(crate) fn run(
    socket: &Path,
    pairs: u16,
    shape: Shape,
    features: Features,
    mode: Mode,
    seconds: f64,
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
    driver.rates()?;
    std::thread::sleep(Duration::from_secs(1));
    // Asking disturbs the driver's CPU for a moment: outside of the span that its rate is of.
    let (before, start) = (idle_ns(), Instant::now());
    driver.rates()?;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let [received, sent] = driver.rates()?;
    let took = start.elapsed().as_nanos() as f64;
    let idle = before.zip(idle_ns()).map(|(before, after)| after.saturating_sub(before) as f64 / took);
    let rate = if mode == Mode::Transmit { sent } else { received };
    if rate == 0.0 {
        bail!("DPDK's driver moved no frame");
    }
    Ok(Drove { frames_per_second: rate, idle })
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

    /// Frames received and sent per second since the last look.
    fn rates(&mut self) -> Result<[f64; 2]> {
        self.order("show port stats 0")?;
        let mut rate = |words: &str| -> Result<f64> {
            let line = self.wait_for(words, Duration::from_secs(10))?;
            let (_, figure) = line.split_once(words).context("a figure")?;
            Ok(figure.split_whitespace().next().context("a figure")?.parse()?)
        };
        Ok([rate("Rx-pps:")?, rate("Tx-pps:")?])
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.order("quit");
        end(&mut self.child);
    }
}
