//! What a disk is told: `PATH,file=IMAGE[,readonly][,serial=TEXT][,queues=N][,cache=direct|host]`.

use std::path::PathBuf;
use std::str::FromStr;

use crate::spec::blk::ID_LEN;

/// As many queues as a disk may have.
pub const MAX_QUEUES: u16 = 64;

/// A disk to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// The file or block device behind it.
    pub file: PathBuf,
    /// Nothing may be written.
    pub read_only: bool,
    /// Its serial number.
    pub serial: Serial,
    /// Request queues.
    pub queues: u16,
    /// What of it the host keeps in memory; none: as the file system has it.
    pub cache: Option<Cache>,
}

/// What of an image the host keeps in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Nothing: the disk's DMA goes to the guest's pages (`O_DIRECT`). QEMU calls it `none`.
    Direct,
    /// Its page cache: fast where the guest has little memory, and everything is there twice. QEMU calls it `writeback`.
    Host,
}

impl FromStr for Cache {
    type Err = BadDisk;

    fn from_str(text: &str) -> Result<Self, BadDisk> {
        match text {
            "direct" | "none" => Ok(Cache::Direct),
            "host" | "writeback" => Ok(Cache::Host),
            _ => Err(BadDisk::Cache(text.to_owned())),
        }
    }
}

/// A serial number: at most 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial(pub [u8; ID_LEN]);

/// Not a disk: one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDisk {
    /// It does not begin with a socket's path.
    #[error(
        "a disk begins with the path of its socket: PATH,file=IMAGE[,readonly][,serial=TEXT][,queues=N][,cache=direct|host]"
    )]
    NoSocket,
    /// There is no image.
    #[error("a disk needs an image: {0},file=IMAGE")]
    NoFile(String),
    /// There is no such key.
    #[error(
        "`{0}` is nothing that a disk can be told: there is file=IMAGE, readonly, serial=TEXT, queues=N and cache=direct|host"
    )]
    Unknown(String),
    /// A key stands twice.
    #[error("{0} stands twice")]
    Twice(&'static str),
    /// A serial number that is too long.
    #[error("the serial number `{0}` is too long: a disk's has at most {ID_LEN} bytes")]
    Serial(String),
    /// Not a way to keep it.
    #[error("`{0}` is no cache: there is direct (nothing is kept) and host (in the host's page cache)")]
    Cache(String),
    /// Not a number of queues.
    #[error("`{0}` is no number of queues: a disk has 1 to {MAX_QUEUES}")]
    Queues(String),
}

impl FromStr for DiskOptions {
    type Err = BadDisk;

    fn from_str(text: &str) -> Result<Self, BadDisk> {
        let mut words = split(text).into_iter();
        let socket =
            words.next().filter(|path| !path.is_empty() && !path.starts_with("file=")).ok_or(BadDisk::NoSocket)?;
        let (mut file, mut serial, mut queues, mut read_only, mut cache) = (None, None, None, None, None);
        for word in words {
            let (key, value) = word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value)));
            match (key, value) {
                ("file", Some(path)) if !path.is_empty() => once("file", &mut file, PathBuf::from(path))?,
                ("readonly", None) => once("readonly", &mut read_only, true)?,
                ("serial", Some(text)) => once("serial", &mut serial, text.parse()?)?,
                ("cache", Some(text)) => once("cache", &mut cache, text.parse()?)?,
                ("queues", Some(number)) => {
                    let count = number.parse().ok().filter(|count| (1..=MAX_QUEUES).contains(count));
                    once("queues", &mut queues, count.ok_or_else(|| BadDisk::Queues(number.to_owned()))?)?;
                }
                _ => return Err(BadDisk::Unknown(word)),
            }
        }
        Ok(DiskOptions {
            file: file.ok_or_else(|| BadDisk::NoFile(socket.clone()))?,
            socket: socket.into(),
            read_only: read_only.unwrap_or(false),
            serial: serial.unwrap_or(Serial::NONE),
            queues: queues.unwrap_or(1),
            cache,
        })
    }
}

fn once<T>(key: &'static str, place: &mut Option<T>, value: T) -> Result<(), BadDisk> {
    if place.replace(value).is_some() { Err(BadDisk::Twice(key)) } else { Ok(()) }
}

/// The words between commas; two commas are one of a word, as QEMU has it.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match words.last_mut() {
            Some(word) if letter != ',' => word.push(letter),
            Some(word) if letters.next_if_eq(&',').is_some() => word.push(','),
            _ => words.push(String::new()),
        }
    }
    words
}

impl Serial {
    /// None was given.
    pub const NONE: Serial = Serial(*b"vnic\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

impl FromStr for Serial {
    type Err = BadDisk;

    fn from_str(text: &str) -> Result<Self, BadDisk> {
        let mut bytes = [0; ID_LEN];
        let room = bytes.get_mut(..text.len()).ok_or_else(|| BadDisk::Serial(text.to_owned()))?;
        room.copy_from_slice(text.as_bytes());
        Ok(Serial(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_with_all_that_it_can_be_told() {
        let disk: DiskOptions = "/run/d.sock,file=/a,,b.img,readonly,serial=S-1,queues=2,cache=none".parse().unwrap();
        let mut serial = [0; ID_LEN];
        serial[..3].copy_from_slice(b"S-1");
        let expected = DiskOptions {
            socket: "/run/d.sock".into(),
            file: "/a,b.img".into(),
            read_only: true,
            serial: Serial(serial),
            queues: 2,
            cache: Some(Cache::Direct),
        };
        assert_eq!(disk, expected);
        let plain: DiskOptions = "d,file=i".parse().unwrap();
        assert_eq!((plain.read_only, plain.serial, plain.queues, plain.cache), (false, Serial::NONE, 1, None));
    }

    #[test]
    fn what_is_no_disk_is_refused_in_a_sentence_that_names_it() {
        for (text, named) in [
            ("", "the path of its socket"),
            ("file=x", "the path of its socket"),
            ("s", "s,file=IMAGE"),
            ("s,file=", "`file=`"),
            ("s,file=x,file=y", "file stands twice"),
            ("s,file=x,readonly=on", "`readonly=on`"),
            ("s,file=x,colour=red", "`colour=red`"),
            ("s,file=x,serial=123456789012345678901", "at most 20 bytes"),
            ("s,file=x,cache=all", "`all` is no cache"),
            ("s,file=x,queues=0", "`0` is no number of queues"),
            ("s,file=x,queues=many", "`many` is no number of queues"),
        ] {
            let error = text.parse::<DiskOptions>().unwrap_err().to_string();
            assert!(error.contains(named) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
