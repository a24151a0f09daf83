//! Runs the real binary, each test in a folder of its own.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// No test waits longer for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A folder that goes away with the test. Short, because a socket's path is.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vnic-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// The command, in this folder, seeing no other device of this user.
    pub(crate) fn vnic(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vnic"));
        command
            .current_dir(&self.0)
            .env("XDG_RUNTIME_DIR", &self.0)
            .env_remove("COLUMNS")
            .env_remove("VNIC_CONTROL")
            .env_remove("VNIC_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs the command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        outcome(self.vnic().args(args))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Asserts bad input's way: exit 2, nothing on standard output, one sentence with these words on standard error.
    #[track_caller]
    pub(crate) fn is_refusal(&self, words: &[&str]) {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        assert!(self.stderr.starts_with("vnic: "), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs a command to its end; kills it, and fails, if it has none.
#[track_caller]
pub(crate) fn outcome(command: &mut Command) -> Outcome {
    fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
        thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            text
        })
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Ok(status);
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            break Err(child.wait().unwrap());
        }
        thread::sleep(Duration::from_millis(2));
    };
    let outcome = Outcome {
        code: status.as_ref().ok().and_then(|status| status.code()),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    };
    assert!(status.is_ok(), "killed after {LIMIT:?}: {command:?}: {outcome:?}");
    outcome
}

/// Polls until `condition` gives something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Says that a test was skipped, and why.
#[expect(clippy::print_stderr, reason = "how a test says that it was skipped")]
pub(crate) fn skip(why: &str) {
    eprintln!("SKIP: {why}");
}

/// A Python that has this package: that of `scripts/test.sh`.
pub(crate) fn python(package: &str) -> Option<PathBuf> {
    let python = root().join("target/python/bin/python");
    let has = Command::new(&python).args(["-c", &format!("import {package}")]).output();
    has.is_ok_and(|end| end.status.success()).then_some(python)
}
