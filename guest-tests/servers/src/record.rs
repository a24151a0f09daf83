//! The rows that were measured, on disk after each: a run that is cut short loses none, and another goes on with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::result::Outcome;
use crate::row::ROWS;

/// A JSON array of rows, in the order of the table.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    outcomes: Vec<Outcome>,
}

impl Record {
    /// Without any row.
    pub(crate) fn fresh(path: PathBuf) -> Self {
        Record { path, outcomes: Vec::new() }
    }

    /// With the rows that an earlier run has measured. Those that it could not are asked again.
    pub(crate) fn resumed(path: PathBuf) -> Result<Self> {
        let mut record = Record::fresh(path);
        if record.path.exists() {
            let shown = || format!("{} (delete it, or leave out --resume)", record.path.display());
            let text = fs::read(&record.path).with_context(shown)?;
            record.outcomes = serde_json::from_slice(&text).with_context(shown)?;
            record.outcomes.retain(Outcome::is_measured);
        }
        Ok(record)
    }

    /// Are there bytes counted for this row?
    pub(crate) fn has(&self, row: &str) -> bool {
        self.outcomes.iter().any(|outcome| outcome.row == row)
    }

    /// Adds a row in its place, and leaves all there are on disk.
    pub(crate) fn put(&mut self, outcome: Outcome) -> Result<()> {
        self.outcomes.retain(|other| other.row != outcome.row);
        self.outcomes.push(outcome);
        self.outcomes.sort_by_key(|outcome| ROWS.iter().position(|row| row.name == outcome.row));
        let unfinished = self.path.with_extension("unfinished");
        let text = serde_json::to_vec_pretty(&self.outcomes)?;
        let folder = self.path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = folder.and_then(|()| fs::write(&unfinished, text));
        written.and_then(|()| fs::rename(&unfinished, &self.path)).with_context(|| self.path.display().to_string())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }
}

#[cfg(test)]
mod tests {
    use vnic::provenance::Report;

    use super::*;
    use crate::result::Measured;

    fn outcome(at: usize, measured: Measured) -> Outcome {
        Outcome::new(&ROWS[at], "", measured)
    }

    fn sent() -> Measured {
        Measured::Sent(Box::new(Report { bytes: 7, ..Report::default() }))
    }

    #[test]
    fn what_was_measured_is_there_for_the_next_run_in_the_tables_order() {
        let folder = std::env::temp_dir().join(format!("vnic-servers-{}", std::process::id()));
        let path = folder.join("servers.json");
        let mut first = Record::fresh(path.clone());
        for (at, measured) in [(2, sent()), (0, sent()), (1, Measured::Not("no such client".to_owned()))] {
            first.put(outcome(at, measured)).unwrap();
        }
        let names: Vec<&str> = first.outcomes().iter().map(|outcome| outcome.row.as_str()).collect();
        assert_eq!(names, [ROWS[0].name, ROWS[1].name, ROWS[2].name]);
        let next = Record::resumed(path.clone()).unwrap();
        assert_eq!(next.outcomes(), [&first.outcomes[0], &first.outcomes[2]].map(Clone::clone));
        assert!(next.has(ROWS[0].name) && !next.has(ROWS[1].name));
        fs::write(&path, "[{").unwrap();
        let error = format!("{:#}", Record::resumed(path).unwrap_err());
        assert!(error.contains("leave out --resume"), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }
}
