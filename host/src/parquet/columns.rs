//! The values of each column, as Parquet keeps them: values in a row, and beside them levels that say which are null
//! and where a list begins (Apache Parquet, "Nested Encoding").
//!
//! A plain column's definition level is 1 where there is a value. A list's is 0 where it is empty, 1 for an item whose value is null
//! and 2 for a value; its repetition level is 0 where a row begins.

use std::io::Write;

use parquet::basic::Type as Physical;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result};
use parquet::file::writer::SerializedFileWriter;

use super::table::{Kind, Table, Value};

/// What a level and a value take, bytes: a little more than they do.
const PER_VALUE: usize = 16;

#[derive(Debug)]
enum Values {
    Integers(Vec<i64>),
    Reals(Vec<f64>),
    Booleans(Vec<bool>),
    Texts(Vec<ByteArray>),
}

/// One column.
#[derive(Debug)]
struct Filled {
    values: Values,
    definition: Vec<i16>,
    /// Empty for a plain column.
    repetition: Vec<i16>,
}

impl Filled {
    fn new(kind: Kind) -> Self {
        let values = match kind {
            Kind::Integer | Kind::Address | Kind::Moment => Values::Integers(Vec::new()),
            Kind::Real => Values::Reals(Vec::new()),
            Kind::Boolean => Values::Booleans(Vec::new()),
            Kind::Text => Values::Texts(Vec::new()),
        };
        Filled { values, definition: Vec::new(), repetition: Vec::new() }
    }

    /// Adds a value whose definition level is `defined`, and one less where it is null. Returns what it takes, bytes.
    fn push(&mut self, value: Value<'_>, defined: i16) -> usize {
        let mut size = PER_VALUE;
        match (&mut self.values, value) {
            (Values::Integers(values), Value::Integer(value)) => values.push(value),
            (Values::Reals(values), Value::Real(value)) => values.push(value),
            (Values::Booleans(values), Value::Boolean(value)) => values.push(value),
            (Values::Texts(values), Value::Text(value)) => {
                size += value.len();
                values.push(value.as_bytes().to_vec().into());
            }
            // A column gives values of its own kind, or none.
            _ => {
                self.definition.push(defined - 1);
                return size;
            }
        }
        self.definition.push(defined);
        size
    }

    fn write(&self, writer: &mut ColumnWriter<'_>) -> Result<()> {
        let definition = Some(&self.definition[..]);
        let repetition = (!self.repetition.is_empty()).then_some(&self.repetition[..]);
        match (&self.values, writer) {
            (Values::Integers(values), ColumnWriter::Int64ColumnWriter(writer)) => {
                writer.write_batch(values, definition, repetition)
            }
            (Values::Reals(values), ColumnWriter::DoubleColumnWriter(writer)) => {
                writer.write_batch(values, definition, repetition)
            }
            (Values::Booleans(values), ColumnWriter::BoolColumnWriter(writer)) => {
                writer.write_batch(values, definition, repetition)
            }
            (Values::Texts(values), ColumnWriter::ByteArrayColumnWriter(writer)) => {
                writer.write_batch(values, definition, repetition)
            }
            (values, _) => {
                Err(ParquetError::General(format!("a column is of another type than {:?}", physical(values))))
            }
        }
        .map(drop)
    }
}

fn physical(values: &Values) -> Physical {
    match values {
        Values::Integers(_) => Physical::INT64,
        Values::Reals(_) => Physical::DOUBLE,
        Values::Booleans(_) => Physical::BOOLEAN,
        Values::Texts(_) => Physical::BYTE_ARRAY,
    }
}

/// Rows that are not written yet, by columns.
#[derive(Debug)]
pub(super) struct Columns {
    plain: Vec<Filled>,
    items: Vec<Filled>,
    pub(super) rows: u64,
    /// What they take, bytes.
    pub(super) size: usize,
}

impl Columns {
    pub(super) fn of<R, I>(table: &Table<R, I>) -> Self {
        let plain = table.columns.iter().map(|column| Filled::new(column.kind)).collect();
        let items = table.item_columns.iter().map(|column| Filled::new(column.kind)).collect();
        Columns { plain, items, rows: 0, size: 0 }
    }

    /// Adds a row.
    pub(super) fn push<R, I>(&mut self, table: &Table<R, I>, row: &R) {
        for (filled, column) in self.plain.iter_mut().zip(table.columns) {
            self.size += filled.push((column.of)(row), 1);
        }
        let items = (table.items)(row);
        for (filled, column) in self.items.iter_mut().zip(table.item_columns) {
            if items.is_empty() {
                filled.definition.push(0);
                filled.repetition.push(0);
            }
            for (number, item) in items.iter().enumerate() {
                self.size += filled.push((column.of)(item), 2);
                filled.repetition.push(i16::from(number > 0));
            }
        }
        self.rows += 1;
    }

    /// Writes them as one row group.
    pub(super) fn write<W: Write + Send>(&self, file: &mut SerializedFileWriter<W>) -> Result<()> {
        let mut group = file.next_row_group()?;
        let mut columns = self.plain.iter().chain(&self.items);
        while let Some(mut writer) = group.next_column()? {
            let column = columns.next().ok_or_else(|| ParquetError::General("the schema has another column".into()))?;
            column.write(writer.untyped())?;
            writer.close()?;
        }
        group.close().map(drop)
    }
}
