//! How a command without `--control` finds the device: every `serve` leaves a link to its control socket in one
//! directory per user.
//!
//! Place: `serve` calls [`publish`] once its control socket listens, and keeps the [`Publication`]; the commands call
//! [`find`].
//!
//! Operation: the directory is `$XDG_RUNTIME_DIR/vnic`, or `/tmp/vnic-UID`; it must be a directory of this user that
//! nobody else can write, or it is refused. A link is named by the process id (`4711`, `4711-2` for a second device of
//! the same process) and removed when the publication is dropped. What a killed `serve` left behind is recognised by
//! its socket: nobody accepts there.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

use nix::unistd::getuid;

/// The link of one running device; dropping it removes the link.
#[derive(Debug)]
pub struct Publication {
    link: PathBuf,
}

impl Publication {
    /// The link.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.link
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        // A link that is gone already needs no removing.
        let _ = fs::remove_file(&self.link);
    }
}

/// The directory of this user's links; it need not exist.
#[must_use]
pub fn directory() -> PathBuf {
    match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(runtime) if runtime.is_absolute() => runtime.join("vnic"),
        _ => PathBuf::from(format!("/tmp/vnic-{}", getuid())),
    }
}

/// Publishes a control socket that listens, under this process's id.
///
/// # Errors
/// The directory cannot be made, or is not this user's alone.
pub fn publish(control: &Path) -> io::Result<Publication> {
    publish_in(&directory(), control)
}

/// The same; where it cannot be, that is said of this (`device`), and `None` returned.
#[must_use]
pub fn publish_or_say(control: &Path, what: &str) -> Option<Publication> {
    publish(control)
        .inspect_err(|error| tracing::warn!(%error, "commands without --control will not find this {what}"))
        .ok()
}

/// The control sockets of this user on which a device listens, oldest first.
///
/// # Errors
/// The directory is there but cannot be trusted or read.
pub fn find() -> io::Result<Vec<PathBuf>> {
    find_in(&directory())
}

fn publish_in(directory: &Path, control: &Path) -> io::Result<Publication> {
    match fs::DirBuilder::new().mode(0o700).recursive(true).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => check_ours(directory)?,
    }
    let control = std::path::absolute(control)?;
    let pid = process::id();
    let mut name = pid.to_string();
    for next in 2u32.. {
        let link = directory.join(&name);
        match symlink(&control, &link) {
            Ok(()) => return Ok(Publication { link }),
            // Taken: by another device of this process, or by a dead process that had this id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_served(&link) {
                    name = format!("{pid}-{next}");
                } else {
                    fs::remove_file(&link)?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("no free name in {}", directory.display())))
}

fn find_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(_) => check_ours(directory)?,
    }
    let mut served = Vec::new();
    for entry in fs::read_dir(directory)? {
        let link = entry?.path();
        // A link may vanish while we look: its `serve` ended.
        let Ok(control) = fs::read_link(&link) else { continue };
        if is_served(&control) {
            let age = fs::symlink_metadata(&link).map(|meta| (meta.mtime(), meta.mtime_nsec())).unwrap_or_default();
            served.push((age, control));
        }
    }
    served.sort();
    served.dedup_by(|a, b| a.1 == b.1);
    Ok(served.into_iter().map(|(_, control)| control).collect())
}

/// Refuses a directory through which another user could point us at a socket of theirs.
fn check_ours(directory: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(directory)?;
    if meta.is_dir() && meta.uid() == getuid().as_raw() && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("{} is not a directory that this user alone can write", directory.display()),
    ))
}

fn is_served(control: &Path) -> bool {
    UnixStream::connect(control).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("vnic-discovery-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }

        fn links(&self) -> PathBuf {
            self.0.join("links")
        }

        fn listen(&self, name: &str) -> (UnixListener, PathBuf) {
            let path = self.0.join(name);
            (UnixListener::bind(&path).unwrap(), path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn nothing_published_is_nothing_found() {
        let scratch = Scratch::new();
        assert_eq!(find_in(&scratch.links()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn published_sockets_are_found_until_dropped() {
        let scratch = Scratch::new();
        let (_first, first_path) = scratch.listen("first");
        let (_second, second_path) = scratch.listen("second");
        let first = publish_in(&scratch.links(), &first_path).unwrap();
        let second = publish_in(&scratch.links(), &second_path).unwrap();
        assert_ne!(first.link, second.link);
        let mut found = find_in(&scratch.links()).unwrap();
        found.sort();
        assert_eq!(found, [first_path.clone(), second_path]);
        drop(second);
        assert_eq!(find_in(&scratch.links()).unwrap(), [first_path]);
    }

    #[test]
    fn a_socket_nobody_listens_on_is_not_found_and_gives_up_its_name() {
        let scratch = Scratch::new();
        let (listener, path) = scratch.listen("dead");
        // A killed process removes nothing.
        std::mem::forget(publish_in(&scratch.links(), &path).unwrap());
        drop(listener);
        assert_eq!(find_in(&scratch.links()).unwrap(), Vec::<PathBuf>::new());
        let (_listener, path) = scratch.listen("alive");
        let publication = publish_in(&scratch.links(), &path).unwrap();
        assert_eq!(publication.link, scratch.links().join(process::id().to_string()));
        assert_eq!(find_in(&scratch.links()).unwrap(), [path]);
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let scratch = Scratch::new();
        fs::create_dir(scratch.links()).unwrap();
        fs::set_permissions(scratch.links(), fs::Permissions::from_mode(0o777)).unwrap();
        let (_listener, path) = scratch.listen("socket");
        assert_eq!(publish_in(&scratch.links(), &path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(find_in(&scratch.links()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_link_in_the_directorys_place_is_refused() {
        let scratch = Scratch::new();
        let real = scratch.0.join("real");
        fs::create_dir(&real).unwrap();
        symlink(&real, scratch.links()).unwrap();
        assert_eq!(find_in(&scratch.links()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
