//! Parquet: rows that are put into columns, for DuckDB, Spark and whatever else reads it.
//!
//! | module | one sentence |
//! |---|---|
//! | [`table`] | rows of any kind, as columns: what a column is called and how its value is had of a row |
//! | [`columns`] | the values of each column, as Parquet keeps them |
//! | [`chains`] | the chains of a trace as rows |
//! | [`folder`] | files that are begun anew every now and then, none of which is seen before it is whole |
//! | [`trace`] | from a trace into files |
//! | [`records`] | the rows of runs' records |

mod chains;
mod columns;
mod folder;
mod records;
mod table;
mod trace;

pub(crate) use folder::{Finished, Limits};
pub(crate) use records::write as write_records;
pub(crate) use trace::Chains;
