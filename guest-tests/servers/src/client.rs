//! The clients on the host, and whether they got the right bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use guest_launcher::children::{Signals, tail};
use guest_launcher::{Failure, in_path};

use crate::row::Client;

/// The file's name, wherever it is served.
const NAME: &str = "big.bin";

/// The longest that a client may take, seconds.
const DEADLINE: &str = "300";

/// A client's command, and where it leaves the file.
#[derive(Debug)]
pub(crate) struct Fetch {
    words: Vec<String>,
    output: PathBuf,
    log: PathBuf,
    /// Whether it keeps what it gets.
    keeps: bool,
}

impl Fetch {
    /// From this address and port, into this folder.
    pub(crate) fn new(client: Client, (host, port): (&str, u16), bytes: u64, folder: &Path) -> Self {
        let (output, log) = (folder.join("fetched"), folder.join("client.log"));
        let (into, at, count) = (output.display().to_string(), port.to_string(), bytes.to_string());
        let command: Vec<String> = match client {
            Client::Curl(scheme) => {
                let url = format!("{scheme}://{host}:{port}/{NAME}");
                ["curl", "--silent", "--show-error", "--fail", "--insecure", "--output", &into, &url]
                    .map(str::to_owned)
                    .into()
            }
            Client::Smb => {
                let get = format!("get {NAME} {into}");
                let share = format!("//{host}/html");
                ["smbclient", "--no-pass", "--port", &at, "--command", &get, &share].map(str::to_owned).into()
            }
            Client::Nfs => {
                // The export is the root of all exports, `/`.
                let url = format!("nfs://{host}//{NAME}?version=4&nfsport={port}");
                ["nfs-cp", &url, &into].map(str::to_owned).into()
            }
            Client::Rsync => {
                let url = format!("rsync://{host}:{port}/html/{NAME}");
                ["rsync", "--no-compress", &url, &into].map(str::to_owned).into()
            }
            Client::Iperf(options) => {
                let fixed = ["iperf3", "--client", host, "--port", &at, "--reverse", "--bytes", &count];
                fixed.iter().chain(options).map(|&word| word.to_owned()).collect()
            }
        };
        let words = ["timeout", DEADLINE].map(str::to_owned).into_iter().chain(command).collect();
        Fetch { words, output, log, keeps: !matches!(client, Client::Iperf(_)) }
    }

    /// The client's name.
    pub(crate) fn program(&self) -> &str {
        self.words.get(2).map_or("", String::as_str)
    }

    /// Runs it to its end. An error also where it is not installed, or got other bytes than the original's.
    pub(crate) fn run(&self, signals: &Signals, original: &Path) -> Result<(), Failure> {
        let _ = fs::remove_file(&self.output);
        let program = self.program();
        if in_path(program).is_none() {
            return Err(anyhow::anyhow!("{program} is not installed on this host").into());
        }
        let status = signals.run_into(&self.words, &self.log)?;
        let checked = || {
            if status.code() == Some(124) {
                bail!("{program} did not end within {DEADLINE} s");
            }
            ensure!(status.success(), "{program}: {}", tail(&self.log, 3));
            let read = |file: &Path| fs::read(file).with_context(|| file.display().to_string());
            if self.keeps {
                ensure!(read(&self.output)? == read(original)?, "{program} got other bytes than the file's");
            }
            Ok(())
        };
        Ok(checked()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_asks_the_published_port_for_the_file() {
        for (client, expected) in [
            (
                Client::Curl("https"),
                "curl --silent --show-error --fail --insecure --output /f/fetched https://127.0.0.1:81/big.bin",
            ),
            (Client::Nfs, "nfs-cp nfs://127.0.0.1//big.bin?version=4&nfsport=81 /f/fetched"),
            (Client::Iperf(&["--zerocopy"]), "iperf3 --client 127.0.0.1 --port 81 --reverse --bytes 9 --zerocopy"),
        ] {
            let fetch = Fetch::new(client, ("127.0.0.1", 81), 9, Path::new("/f"));
            assert_eq!(fetch.words.join(" "), format!("timeout 300 {expected}"));
            assert_eq!(Some(fetch.program()), expected.split(' ').next());
        }
    }
}
