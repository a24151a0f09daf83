//! Virtio-serial ports by their names.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::waiting::until;

/// For a port to be there with its name, which comes in a message of its own after the port's.
const APPEARS: Duration = Duration::from_secs(10);

/// Opens the port that QEMU was told to call `name`, for reading and writing.
///
/// # Errors
/// There is no such port.
pub fn open(name: &str) -> Result<File> {
    let path = PathBuf::from("/dev").join(find(name, APPEARS, ports)?);
    OpenOptions::new().read(true).write(true).open(&path).with_context(|| format!("open {}", path.display()))
}

/// A port's device, and its name: empty before it has one.
type Port = (String, String);

fn find(name: &str, appears: Duration, mut look: impl FnMut() -> Result<Vec<Port>>) -> Result<String> {
    let mut seen = Vec::new();
    let found = until(appears, || {
        seen = look()?;
        Ok(seen.iter().find(|(_, called)| called == name).map(|(device, _)| device.clone()))
    })?;
    found.with_context(|| {
        let seen: Vec<_> = seen.iter().map(|(_, called)| called).collect();
        format!(
            "no virtio-serial port is called {name:?} (there are: {seen:?}): \
             QEMU needs -device virtserialport,name={name}"
        )
    })
}

fn ports() -> Result<Vec<Port>> {
    const PORTS: &str = "/sys/class/virtio-ports";
    let found = fs::read_dir(PORTS).with_context(|| format!("{PORTS}: was virtio_console loaded?"))?;
    let read = |port: std::io::Result<fs::DirEntry>| {
        let port = port.context(PORTS)?;
        let called = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        Ok((port.file_name().to_string_lossy().into_owned(), called.trim_end().to_owned()))
    };
    found.map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(called: &str) -> Result<Vec<Port>> {
        Ok(vec![("vport2p1".to_owned(), called.to_owned())])
    }

    #[test]
    fn a_port_whose_name_comes_late_is_waited_for() {
        let mut looks = [Ok(Vec::new()), port(""), port("vnic.record")].into_iter();
        let found = find("vnic.record", Duration::MAX, || looks.next().expect("no look after it is found"));
        assert_eq!(found.expect("the port"), "vport2p1");
    }

    #[test]
    fn a_port_that_is_not_there_is_missed_with_the_names_of_those_that_are() {
        let error = find("vnic.record", Duration::ZERO, || port("other")).expect_err("another port");
        assert!(error.to_string().contains(r#""vnic.record" (there are: ["other"])"#), "{error}");
    }
}
