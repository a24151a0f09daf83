//! Rows of any kind, as columns.
//!
//! Every value may be null. A name with a dot is a field of a structure (`net_header.flags`). Beside its plain columns a table has
//! one that is a list of structures, in a row as many as there are.

use parquet::errors::Result;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::TypePtr;

/// What a column's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number.
    Integer,
    /// An address: all 64 bits of it may be in use.
    Address,
    /// A number with a fraction.
    Real,
    /// Yes or no.
    Boolean,
    /// UTF-8.
    Text,
    /// A moment, microseconds since 1970 (UTC).
    Moment,
}

impl Kind {
    /// In Parquet's schema language, with the column's name between the two.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::Integer => ("int64", ""),
            Kind::Address => ("int64", " (INTEGER(64,false))"),
            Kind::Real => ("double", ""),
            Kind::Boolean => ("boolean", ""),
            Kind::Text => ("binary", " (STRING)"),
            Kind::Moment => ("int64", " (TIMESTAMP(MICROS,true))"),
        }
    }
}

/// A value of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'r> {
    Null,
    Integer(i64),
    Real(f64),
    Boolean(bool),
    Text(&'r str),
}

impl<'r, T: Into<Value<'r>>> From<Option<T>> for Value<'r> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

impl From<u64> for Value<'_> {
    /// As [`Kind::Address`] all 64 bits count; nothing else that is counted here comes near the 63rd.
    fn from(value: u64) -> Self {
        Value::Integer(value as i64)
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Value::Integer(value.into())
    }
}

impl From<u16> for Value<'_> {
    fn from(value: u16) -> Self {
        Value::Integer(value.into())
    }
}

impl From<u8> for Value<'_> {
    fn from(value: u8) -> Self {
        Value::Integer(value.into())
    }
}

impl From<f64> for Value<'_> {
    fn from(value: f64) -> Self {
        Value::Real(value)
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Value::Boolean(value)
    }
}

impl<'r> From<&'r str> for Value<'r> {
    fn from(value: &'r str) -> Self {
        Value::Text(value)
    }
}

/// A column.
#[derive(Debug)]
pub(crate) struct Column<R> {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What it has: in the files' metadata, and in docs/parquet.md.
    pub(crate) about: &'static str,
    /// Its value in a row.
    pub(crate) of: fn(&R) -> Value<'_>,
}

/// Rows `R`, each with items `I`.
#[derive(Debug)]
pub(crate) struct Table<R: 'static, I: 'static> {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [Column<R>],
    /// The list's name.
    pub(crate) list: &'static str,
    /// The list in a row.
    pub(crate) items: fn(&R) -> &[I],
    pub(crate) item_columns: &'static [Column<I>],
}

impl<R, I> Table<R, I> {
    /// Each column's full name, kind, and what it has.
    pub(super) fn columns(&self) -> impl Iterator<Item = (String, Kind, &'static str)> {
        let plain = self.columns.iter().map(|column| (column.name.to_owned(), column.kind, column.about));
        let name = |name| format!("{}.{name}", self.list);
        plain.chain(self.item_columns.iter().map(move |column| (name(column.name), column.kind, column.about)))
    }

    /// The schema, as Parquet has it.
    ///
    /// # Errors
    /// A column's name is none: a mistake of ours, which every test of the table finds.
    pub(super) fn schema(&self) -> Result<TypePtr> {
        let mut text = format!("message {} {{ ", self.name);
        let mut open: Option<&str> = None;
        for column in self.columns {
            let (group, name) = match column.name.split_once('.') {
                Some((group, name)) => (Some(group), name),
                None => (None, column.name),
            };
            if open != group {
                text += if open.is_some() { "} " } else { "" };
                text += &group.map(|group| format!("required group {group} {{ ")).unwrap_or_default();
                open = group;
            }
            text += &field(name, column.kind);
        }
        text += if open.is_some() { "} " } else { "" };
        text += &format!("required group {} (LIST) {{ repeated group list {{ required group element {{ ", self.list);
        text.extend(self.item_columns.iter().map(|column| field(column.name, column.kind)));
        parse_message_type(&(text + "} } } }")).map(TypePtr::new)
    }
}

fn field(name: &str, kind: Kind) -> String {
    let (physical, logical) = kind.words();
    format!("optional {physical} {name}{logical}; ")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::{chains::CHAINS, records::RECORDS};
    use super::*;

    /// As DuckDB calls the types.
    fn rows<R, I>(table: &Table<R, I>) -> String {
        let name = |kind| match kind {
            Kind::Integer => "BIGINT",
            Kind::Address => "UBIGINT",
            Kind::Real => "DOUBLE",
            Kind::Boolean => "BOOLEAN",
            Kind::Text => "VARCHAR",
            Kind::Moment => "TIMESTAMPTZ",
        };
        table.columns().map(|(column, kind, about)| format!("| `{column}` | {} | {about} |\n", name(kind))).collect()
    }

    #[test]
    fn the_documentation_has_every_column() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/parquet.md");
        let page = fs::read_to_string(page).unwrap();
        for (name, rows) in [("chains", rows(&CHAINS)), ("transfers", rows(&RECORDS))] {
            assert!(page.contains(&rows), "docs/parquet.md should have of {name}:\n{rows}");
        }
    }
}
