//! Tap interfaces: the device file and the right to make one.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;

use super::Check;

const NAME: &str = "tap";
const DEVICE: &str = "/dev/net/tun";
const CAP_NET_ADMIN: u32 = 12;
const FOLLOWS: &str = "--link tap:NAME cannot make an interface; the default link, peer, needs none";

/// Can `--link tap:NAME` work?
pub(super) fn check() -> Check {
    if let Err(error) = OpenOptions::new().read(true).write(true).open(DEVICE) {
        let fix = match error.kind() {
            ErrorKind::PermissionDenied => format!(
                "as root: chmod 0666 {DEVICE}, and make the interface beforehand: ip tuntap add dev NAME mode tap vnet_hdr user USER"
            ),
            _ => format!("as root: modprobe tun; in a container: mknod {DEVICE} c 10 200"),
        };
        return Check::limited(NAME, format!("{DEVICE}: {error}"), FOLLOWS, fix);
    }
    match fs::read_to_string("/proc/self/status").ok().as_deref().and_then(effective) {
        Some(caps) if caps >> CAP_NET_ADMIN & 1 == 1 => Check::good(
            NAME,
            format!("{DEVICE} opens, CAP_NET_ADMIN is there"),
            "--link tap:NAME makes its own interface",
        ),
        _ => Check::limited(
            NAME,
            format!("{DEVICE} opens, CAP_NET_ADMIN is not there"),
            "--link tap:NAME can only use an interface that was made for this user",
            "as root: ip tuntap add dev NAME mode tap vnet_hdr user USER".to_owned(),
        ),
    }
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_capabilities_are_read_as_hex() {
        assert_eq!(effective("Name:\tvnic\nCapEff:\t0000000000001000\nCapBnd:\tff\n"), Some(1 << CAP_NET_ADMIN));
        assert_eq!(effective("Name:\tvnic\n"), None);
    }
}
