//! Which cells are asked for.

use std::convert::Infallible;
use std::str::FromStr;

use anyhow::{Result, ensure};
use vnic_experiment::filesystem::FILESYSTEMS;
use vnic_experiment::row::{Row, TABLE};

use crate::cell::{Cell, Size, State};
use crate::kernel::Kernel;

/// Names with commas between, `*` for any letters in them.
#[derive(Debug, Clone)]
pub(crate) struct Patterns(Vec<String>);

impl FromStr for Patterns {
    type Err = Infallible;

    fn from_str(list: &str) -> Result<Patterns, Infallible> {
        Ok(Patterns(list.split(',').map(|pattern| pattern.trim().to_owned()).collect()))
    }
}

impl Patterns {
    /// What is meant of these names, in their order; every pattern must mean something. What has no `*` may stand for itself,
    /// where `exact` knows it.
    fn choose(&self, what: &str, names: &[String], exact: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut chosen: Vec<String> =
            names.iter().filter(|name| self.0.iter().any(|pattern| is_like(name, pattern))).cloned().collect();
        for pattern in &self.0 {
            if chosen.iter().any(|name| is_like(name, pattern)) {
                continue;
            }
            ensure!(
                !pattern.contains('*') && exact(pattern),
                "no {what} is called {pattern}; there are {}",
                names.join(", ")
            );
            chosen.push(pattern.clone());
        }
        Ok(chosen)
    }
}

/// `*` stands for any letters.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|name| (0..=name.len()).any(|at| name.is_char_boundary(at) && is_like(&name[at..], rest))),
    }
}

/// The cells of these, in the order in which they are run: kernel by kernel.
pub(crate) fn cells(kernels: &[Kernel], filesystems: &Patterns, rows: &Patterns, size: Size) -> Result<Vec<Cell>> {
    let names: Vec<String> = FILESYSTEMS.iter().map(|filesystem| filesystem.name.to_owned()).collect();
    let filesystems = filesystems.choose("file system", &names, |_| false)?;
    let names: Vec<String> = Row::parse_list(TABLE)?.into_iter().map(|row| row.name).collect();
    let rows = rows.choose("row", &names, |name| Row::parse(name).is_ok_and(|row| row.expected(true).is_some()))?;
    let mut cells = Vec::new();
    for kernel in kernels {
        for filesystem in &filesystems {
            cells.extend(rows.iter().map(|row| Cell {
                kernel: kernel.clone(),
                filesystem: filesystem.clone(),
                row: row.clone(),
                size,
            }));
        }
    }
    Ok(cells)
}

/// How many there are of each kind, in words.
pub(crate) fn sums(states: &[State]) -> String {
    let count = |is: fn(&State) -> bool| states.iter().filter(|state| is(state)).count();
    let parts = [
        (count(|state| matches!(state, State::Measured { .. })), "measured"),
        (count(|state| matches!(state, State::Lacking(_))), "that this kernel or file system cannot do"),
        (count(|state| matches!(state, State::Failed(_))), "failed"),
        (count(|state| matches!(state, State::Open)), "not run"),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    format!("{} cells: {}", states.len(), parts.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(filesystems: &str, rows: &str) -> Result<Vec<String>> {
        let kernel = Kernel { name: "k".to_owned(), image: "i".into(), modules: "m".into() };
        let cells = cells(&[kernel], &filesystems.parse()?, &rows.parse()?, Size { bytes: 1 << 20, rounds: 1 })?;
        Ok(cells.iter().map(|cell| format!("{}:{}", cell.filesystem, cell.row)).collect())
    }

    #[test]
    fn patterns_choose_from_the_table_and_a_name_may_stand_for_itself() {
        assert_eq!(chosen("ext4", "sendfile,sendfile-no-*").unwrap(), ["ext4:sendfile", "ext4:sendfile-no-sg"]);
        assert_eq!(chosen("tmpfs", "sendfile-no-csum").unwrap(), ["tmpfs:sendfile-no-csum"]);
        assert!(chosen("*", "*").unwrap().len() >= 8 * 12 * 2);
        for (filesystems, rows, named) in
            [("ext5", "*", "ext5"), ("*", "carrier-pigeon", "carrier-pigeon"), ("*", "x*", "x*")]
        {
            let error = chosen(filesystems, rows).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_star_is_any_letters_and_nothing_too() {
        for (name, pattern, is) in [
            ("sendfile", "*", true),
            ("sendfile", "s*e", true),
            ("sendfile", "sendfile*", true),
            ("sendfile", "*x", false),
            ("", "", true),
        ] {
            assert_eq!(is_like(name, pattern), is, "{name} {pattern}");
        }
    }
}
