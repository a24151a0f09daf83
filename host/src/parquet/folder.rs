//! A folder of Parquet files: a new one every now and then, and none is seen before it is whole.
//!
//! Operation: a file is written under a name with a dot in front, which DuckDB's `*.parquet` and Spark pass over, and gets its own when
//! it is finished. Rows stand in memory until there are [`GROUP`] bytes of them; then they are a row group of the file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

use super::columns::Columns;
use super::table::Table;

/// Bytes of rows in memory that become a row group.
const GROUP: usize = 32 << 20;
/// How much rows take in a file of what they take in memory, before any were written.
const PACKED: f64 = 0.05;

/// When a file is finished and another begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// After so long.
    pub(crate) time: Duration,
    /// At so many bytes, as they stand in the file.
    pub(crate) bytes: u64,
    /// At so many rows.
    pub(crate) rows: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { time: Duration::from_secs(60), bytes: 256 << 20, rows: u64::MAX }
    }
}

/// `10s`, `64M`, `100000rows`, with commas between.
impl FromStr for Limits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Limits::default();
        for word in text.split(',') {
            let digits = word.len() - word.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            let (number, unit) = word.split_at(digits);
            let scale = |shift: u32| number.parse::<u64>().ok().filter(|number| *number > 0)?.checked_mul(1 << shift);
            let taken = match unit {
                "s" => scale(0).filter(|seconds| *seconds <= 86_400).map(|s| limits.time = Duration::from_secs(s)),
                "K" => scale(10).map(|bytes| limits.bytes = bytes),
                "M" => scale(20).map(|bytes| limits.bytes = bytes),
                "G" => scale(30).map(|bytes| limits.bytes = bytes),
                "rows" => scale(0).map(|rows| limits.rows = rows),
                _ => None,
            };
            taken.ok_or_else(|| {
                format!("`{word}` is no limit: write 60s (at most a day), 64M or 100000rows, with commas between")
            })?;
        }
        Ok(limits)
    }
}

/// A file that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) path: PathBuf,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// The folder, and the file that is under way.
#[derive(Debug)]
pub(crate) struct Folder<R: 'static, I: 'static> {
    folder: PathBuf,
    names: Names,
    table: &'static Table<R, I>,
    limits: Limits,
    files: u64,
    waiting: Columns,
    /// How much rows take in a file of what they take in memory: as it was with the last ones.
    packed: f64,
    open: Option<Open>,
}

#[derive(Debug)]
enum Names {
    /// With a number behind this.
    Numbered(String),
    /// There is but one file, and it takes the place of the one before.
    One(String),
}

#[derive(Debug)]
struct Open {
    writer: SerializedFileWriter<File>,
    begun: Instant,
    path: PathBuf,
    unfinished: PathBuf,
}

impl<R, I> Folder<R, I> {
    /// Makes the folder if it is not there. The names of its files begin with `name`, and are no other file's.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn open(folder: &Path, name: &str, table: &'static Table<R, I>, limits: Limits) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("the folder {} cannot be made", folder.display()))?;
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let names = Names::Numbered(format!("{name}-{began}-{}", std::process::id()));
        Ok(Folder {
            folder: folder.to_owned(),
            names,
            table,
            limits,
            files: 0,
            waiting: Columns::of(table),
            packed: PACKED,
            open: None,
        })
    }

    /// One file, whatever it is called.
    pub(crate) fn one(path: &Path, table: &'static Table<R, I>, limits: Limits) -> Self {
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        let names = Names::One(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        Folder { folder, names, table, limits, files: 0, waiting: Columns::of(table), packed: PACKED, open: None }
    }

    /// Adds a row. Gives the file that is full with it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn push(&mut self, row: &R) -> Result<Option<Finished>> {
        self.begin()?;
        self.waiting.push(self.table, row);
        if self.waiting.size >= GROUP {
            self.write_group()?;
        }
        let full = self.open.as_ref().is_some_and(|open| {
            let bytes = open.writer.bytes_written() as u64 + (self.waiting.size as f64 * self.packed) as u64;
            bytes >= self.limits.bytes || open.rows() + self.waiting.rows >= self.limits.rows
        });
        if full || self.left().is_zero() { self.finish() } else { Ok(None) }
    }

    /// How long until the file under way is to be finished, whatever comes.
    pub(crate) fn left(&self) -> Duration {
        let begun = self.open.as_ref().map(|open| open.begun.elapsed());
        begun.map_or(Duration::MAX, |elapsed| self.limits.time.saturating_sub(elapsed))
    }

    /// Finishes the file under way, if there is one.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn finish(&mut self) -> Result<Option<Finished>> {
        if self.waiting.rows > 0 {
            self.write_group()?;
        }
        let Some(open) = self.open.take() else { return Ok(None) };
        let rows = open.rows();
        let written = || -> Result<u64> {
            let file = open.writer.into_inner()?;
            file.sync_all()?;
            fs::rename(&open.unfinished, &open.path)?;
            Ok(file.metadata()?.len())
        };
        let bytes = written().with_context(|| format!("cannot write {}", open.path.display()))?;
        Ok(Some(Finished { path: open.path, rows, bytes }))
    }

    fn begin(&mut self) -> Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        let name = match &self.names {
            Names::Numbered(prefix) => format!("{prefix}-{:06}.parquet", self.files),
            Names::One(name) => name.clone(),
        };
        self.files += 1;
        let (path, unfinished) = (self.folder.join(&name), self.folder.join(format!(".{name}.unfinished")));
        let file = File::create(&unfinished).with_context(|| format!("cannot write {}", unfinished.display()))?;
        let mut about = vec![KeyValue::new("vnic.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
        about.extend(self.table.columns().map(|(name, _, about)| KeyValue::new(name, about.to_owned())));
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_key_value_metadata(Some(about))
            .build();
        let writer = SerializedFileWriter::new(file, self.table.schema()?, Arc::new(properties))?;
        self.open = Some(Open { writer, begun: Instant::now(), path, unfinished });
        Ok(())
    }

    fn write_group(&mut self) -> Result<()> {
        self.begin()?;
        let rows = std::mem::replace(&mut self.waiting, Columns::of(self.table));
        if let Some(open) = &mut self.open {
            let before = open.writer.bytes_written();
            rows.write(&mut open.writer).with_context(|| format!("cannot write {}", open.unfinished.display()))?;
            self.packed = (open.writer.bytes_written() - before) as f64 / rows.size.max(1) as f64;
        }
        Ok(())
    }
}

impl Open {
    fn rows(&self) -> u64 {
        self.writer.flushed_row_groups().iter().map(|group| u64::try_from(group.num_rows()).unwrap_or_default()).sum()
    }
}

/// What is not whole goes away.
impl<R, I> Drop for Folder<R, I> {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            // Nothing more can be done about it.
            let _ = fs::remove_file(&open.unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_units() {
        let limits: Limits = "10s,64M,5rows".parse().unwrap();
        assert_eq!(limits, Limits { time: Duration::from_secs(10), bytes: 64 << 20, rows: 5 });
        assert_eq!("1G".parse(), Ok(Limits { bytes: 1 << 30, ..Limits::default() }));
        for wrong in ["", "10", "0s", "-1s", "1.5M", "99999s", "10s,", "18446744073709551615G", "s"] {
            assert!(wrong.parse::<Limits>().is_err(), "{wrong}");
        }
    }
}
