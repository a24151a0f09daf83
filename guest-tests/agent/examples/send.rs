//! A program of one's own for `scripts/run-qemu.sh --program`: the file is its standard input, the connection its standard
//! output, and `sendfile` moves the one to the other.

use std::io::{self, stdin, stdout};

use nix::sys::sendfile::sendfile;

fn main() -> io::Result<()> {
    // Without an offset the kernel goes on where the file stands, as `read` does.
    while sendfile(stdout(), stdin(), None, 1 << 30)? > 0 {}
    Ok(())
}
