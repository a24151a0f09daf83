//! Virtio-serial ports by their names.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Opens the port that QEMU was told to call `name`, for reading and writing.
///
/// # Errors
/// There is no such port.
pub fn open(name: &str) -> Result<File> {
    let path = find(name)?;
    OpenOptions::new().read(true).write(true).open(&path).with_context(|| format!("open {}", path.display()))
}

fn find(name: &str) -> Result<PathBuf> {
    const PORTS: &str = "/sys/class/virtio-ports";
    let ports = fs::read_dir(PORTS).with_context(|| format!("{PORTS}: was virtio_console loaded?"))?;
    let mut seen = Vec::new();
    for port in ports {
        let port = port.context(PORTS)?;
        let called = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if called.trim_end() == name {
            return Ok(PathBuf::from("/dev").join(port.file_name()));
        }
        seen.push(called.trim_end().to_owned());
    }
    bail!(
        "no virtio-serial port is called {name:?} (there are: {seen:?}): QEMU needs -device virtserialport,name={name}"
    )
}
