//! Rows of data files, one after another, whatever format they are in: no file is held in memory whole.
use crate::error::{Error, Result};
use crate::files::Format;
use crate::guard;
use crate::layout::{Wanted, brief};
use flate2::read::MultiGzDecoder;
use polars_arrow::array::Array;
use polars_arrow::io::ipc::format::ipc::planus::ReadAsRoot;
use polars_arrow::io::ipc::format::ipc::{MessageHeaderRef, MessageRef, RecordBatchRef};
use polars_arrow::io::ipc::read::{FileReader, StreamReader, StreamState, read_file_metadata, read_stream_metadata};
use polars_arrow::record_batch::RecordBatchT;
use polars_buffer::Buffer;
use polars_core::prelude::{Column, DataFrame, DataType};
use polars_io::prelude::{JsonFormat, JsonWriter, ParquetReader, SerReader, SerWriter};
use polars_parquet::parquet::page::CompressedPage;
use polars_parquet::parquet::read::{PageReader, read_metadata};
use polars_parquet::read::RowGroupMetadata;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

/// A row as it stands in its file.
#[derive(Clone, Debug)]
pub(crate) enum Raw {
    /// A line, which should be a JSON object.
    Line(Vec<u8>),
    /// Columns and their values.
    Columns(Map<String, Value>),
    /// Something that is no row, and why.
    Bad(String),
}

/// Takes rows, and says when it has enough.
pub(crate) type Take<'a> = &'a mut dyn FnMut(Raw) -> Result<ControlFlow<()>>;

/// Rows of a parquet file that are read together.
const ROWS_AT_ONCE: usize = 8192;

/// Hands over every row of a file, until enough are taken.
///
/// # Errors
/// Where the file cannot be opened, read, or unpacked, or is not of its format.
pub(crate) fn each(path: &Path, format: Format, wanted: &Wanted, take: Take<'_>) -> Result<ControlFlow<()>> {
    match format {
        Format::JsonLines => lines(path, unmarked(path, open(path)?)?, take),
        Format::Json => json(path, wanted, take),
        Format::Csv(separator) => csv_rows(path, separator, wanted, take),
        Format::Parquet => parquet(path, wanted, take),
        Format::Arrow => arrow(path, wanted, take),
    }
}

/// A file's text without the mark of its byte order, which Windows programs begin UTF-8 with.
fn unmarked<R: BufRead>(path: &Path, mut reader: R) -> Result<R> {
    let start = reader.fill_buf().map_err(|e| Error::file(path, format!("cannot be read after 0 lines: {e}")))?;
    if start.starts_with(&[0xFF, 0xFE]) || start.starts_with(&[0xFE, 0xFF]) {
        return Err(Error::file(path, "is UTF-16; save it as UTF-8"));
    }
    let mark = if start.starts_with(&[0xEF, 0xBB, 0xBF]) { 3 } else { 0 };
    reader.consume(mark);
    Ok(reader)
}

/// The bytes of a file; `.gz` is unpacked.
fn open(path: &Path) -> Result<BufReader<Box<dyn Read>>> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    let packed = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    Ok(BufReader::with_capacity(1 << 16, if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) }))
}

/// Longest line, in bytes, and most lines in a row without anything in them: a packed file may claim any number of either.
const LONGEST_LINE: u64 = 1 << 28;
const MOST_BLANK: usize = 1 << 20;

fn lines(path: &Path, mut reader: impl BufRead, take: Take<'_>) -> Result<ControlFlow<()>> {
    let (mut number, mut blank) = (0usize, 0);
    loop {
        let mut line = Vec::new();
        let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        let read = read.map_err(|e| Error::file(path, format!("cannot be read after {number} lines: {e}")))?;
        if read == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        if read as u64 == LONGEST_LINE && line.last() != Some(&b'\n') {
            return Err(Error::file(path, format!("line {number} has more than {} MiB", LONGEST_LINE >> 20)));
        }
        number += 1;
        if line.trim_ascii().is_empty() {
            blank += 1;
            if blank > MOST_BLANK {
                return Err(Error::file(path, format!("has more than {MOST_BLANK} blank lines in a row")));
            }
            continue;
        }
        blank = 0;
        if take(Raw::Line(line))?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

/// Elements of a JSON list, of the list under `data`, or lines.
fn json(path: &Path, wanted: &Wanted, take: Take<'_>) -> Result<ControlFlow<()>> {
    let mut reader = unmarked(path, open(path)?)?;
    let first = loop {
        let bytes = reader.fill_buf().map_err(|e| Error::file(path, e))?;
        let Some(at) = bytes.iter().position(|b| !b.is_ascii_whitespace()) else {
            let n = bytes.len();
            if n == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            reader.consume(n);
            continue;
        };
        let first = bytes[at];
        reader.consume(at);
        break first;
    };
    if first != b'[' {
        return lines(path, reader, take);
    }
    let mut elements = Elements { take, wanted, failed: None, enough: false };
    let read = (&mut elements).deserialize(&mut serde_json::Deserializer::from_reader(reader));
    match (elements.failed, elements.enough, read) {
        (Some(error), ..) => Err(error),
        (None, true, _) => Ok(ControlFlow::Break(())),
        (None, false, Ok(())) => Ok(ControlFlow::Continue(())),
        (None, false, Err(error)) => Err(Error::file(path, format!("not a complete JSON list: {error}"))),
    }
}

/// Hands over the elements of a list one at a time.
struct Elements<'a> {
    take: Take<'a>,
    wanted: &'a Wanted,
    failed: Option<Error>,
    enough: bool,
}

impl<'de> DeserializeSeed<'de> for &mut Elements<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(value) = list.next_element_seed(self.wanted)? {
            let raw = match value {
                Value::Object(columns) => Raw::Columns(columns),
                other => Raw::Bad(format!("found {}, expected an object", brief(&other))),
            };
            match (self.take)(raw) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => {
                    self.enough = true;
                    return Err(serde::de::Error::custom("enough"));
                }
                Err(error) => {
                    self.failed = Some(error);
                    return Err(serde::de::Error::custom("stopped"));
                }
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, _map: A) -> Result<(), A::Error> {
        Err(serde::de::Error::custom("expected a list of objects"))
    }
}

fn csv_rows(path: &Path, separator: u8, wanted: &Wanted, take: Take<'_>) -> Result<ControlFlow<()>> {
    let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_reader(unmarked(path, open(path)?)?);
    let header = reader.byte_headers().map_err(|e| Error::file(path, format!("has no header: {e}")))?.clone();
    let names: Vec<String> = header.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let twice = names.iter().enumerate().find(|(at, name)| wanted.has(name) && names[..*at].contains(name));
    if let Some((_, name)) = twice {
        return Err(Error::file(path, format!("has two columns called `{name}`; rename or remove one")));
    }
    for row in reader.byte_records() {
        let raw = match row {
            Err(error) if error.is_io_error() => return Err(Error::file(path, error)),
            Err(error) => Raw::Bad(error.to_string()),
            Ok(row) => match row.iter().map(std::str::from_utf8).collect::<Result<Vec<_>, _>>() {
                Err(error) => Raw::Bad(format!("not UTF-8: {error}")),
                Ok(cells) => {
                    let value = |(name, text): (&String, &str)| {
                        (name.clone(), if wanted.has(name) { cell(text) } else { Value::Null })
                    };
                    Raw::Columns(names.iter().zip(cells).map(value).collect())
                }
            },
        };
        if take(raw)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// A cell of a CSV file: text, or a list where it is one in JSON. An empty cell is no value.
fn cell(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    match text.starts_with('[').then(|| serde_json::from_str(text)) {
        Some(Ok(Value::Array(list))) if list.iter().all(|v| v.is_object() || v.is_number() || v.is_array()) => {
            Value::Array(list)
        }
        _ => Value::String(text.to_owned()),
    }
}

/// Runs a reader on an untrusted file; its panic or error becomes an error of the file.
fn guarded<T>(path: &Path, read: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    let refuse = |problem: String| Error::file(path, format!("cannot be read; download or save it again ({problem})"));
    guard::guarded(read).map_err(refuse)
}

fn parquet(path: &Path, wanted: &Wanted, take: Take<'_>) -> Result<ControlFlow<()>> {
    let file = || File::open(path).map_err(|e| Error::file(path, e));
    let look = file()?;
    guarded(path, || pages(look))?;
    let count = file()?;
    let all = guarded(path, || ParquetReader::new(count).num_rows().map_err(|e| e.to_string()))?;
    for from in (0..all).step_by(ROWS_AT_ONCE) {
        let part = file()?;
        let read = || ParquetReader::new(part).with_slice(Some((from, ROWS_AT_ONCE))).finish();
        let rows = guarded(path, || read().map_err(|e| e.to_string()))?;
        if frame(path, &rows, wanted, take)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Most values of a page, and of a column of a row group: a reader takes memory for as many as a page's header claims.
const MOST_VALUES: [usize; 2] = [1 << 24, 1 << 28];

/// Looks through the pages of a parquet file for sizes that no writer would give them.
fn pages(mut file: File) -> std::result::Result<(), String> {
    let metadata = read_metadata(&mut file).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    for column in metadata.row_groups.iter().flat_map(RowGroupMetadata::parquet_columns) {
        let range = column.byte_range();
        if range.end > length || range.start > range.end {
            return Err("a column lies outside the file".to_owned());
        }
        let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(|e| e.to_string())?];
        file.seek(SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| e.to_string())?;
        let of_column = usize::try_from(column.num_values()).map_err(|e| e.to_string())?;
        let all = PageReader::new(Cursor::new(Buffer::from(bytes)), column, Vec::new(), usize::MAX);
        let mut seen = 0usize;
        for page in all {
            // a dictionary is as large as it unpacks to, which its header bounds at 2 GiB
            let CompressedPage::Data(page) = page.map_err(|e| e.to_string())? else { continue };
            let (values, unpacked) = (page.num_values(), page.uncompressed_size());
            seen = seen.saturating_add(values);
            if values > MOST_VALUES[0] || seen > of_column.max(values).min(MOST_VALUES[1]) || unpacked > 1 << 30 {
                return Err(format!("a page claims {values} values in {unpacked} bytes"));
            }
        }
    }
    Ok(())
}

/// The batches of an arrow file, which its footer lists, or of an arrow stream.
fn arrow(path: &Path, wanted: &Wanted, take: Take<'_>) -> Result<ControlFlow<()>> {
    let mut file = File::open(path).map_err(|e| Error::file(path, e))?;
    let length = file.metadata().map_err(|e| Error::file(path, e))?.len();
    let mut magic = [0; 6];
    let is_file = file.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
    let mut reader = BufReader::with_capacity(1 << 20, file);
    reader.rewind().map_err(|e| Error::file(path, e))?;
    if is_file {
        let metadata = guarded(path, || {
            let metadata = read_file_metadata(&mut reader).map_err(|e| e.to_string())?;
            for block in metadata.dictionaries.iter().flatten().chain(&metadata.blocks) {
                let at = u64::try_from(block.offset).map_err(|e| e.to_string())?;
                message(&mut reader, at, length)?.ok_or("a block is empty")?;
            }
            Ok(metadata)
        })?;
        let mut batches = FileReader::new(reader, metadata, None, None);
        return frames(path, wanted, take, || batches.next().transpose().map_err(|e| e.to_string()));
    }
    guarded(path, || {
        let mut at = 0;
        while let Some(next) = message(&mut reader, at, length)? {
            at = next;
        }
        Ok(())
    })?;
    reader.rewind().map_err(|e| Error::file(path, e))?;
    let metadata = guarded(path, || read_stream_metadata(&mut reader).map_err(|e| e.to_string()))?;
    let mut stream = StreamReader::new(reader, metadata, None);
    frames(path, wanted, take, || match stream.next() {
        // a stream may end without the mark of its end
        None | Some(Ok(StreamState::Waiting)) => Ok(None),
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(StreamState::Some(batch))) => Ok(Some(batch)),
    })
}

/// Hands over the rows of batches.
fn frames(
    path: &Path,
    wanted: &Wanted,
    take: Take<'_>,
    mut next: impl FnMut() -> std::result::Result<Option<RecordBatchT<Box<dyn Array>>>, String>,
) -> Result<ControlFlow<()>> {
    while let Some(rows) = guarded(path, || Ok(next()?.map(DataFrame::from)))? {
        if frame(path, &rows, wanted, take)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Most times that a packed buffer may grow: a reader takes memory for as much as it claims.
const GROWTH: u64 = 1024;

/// Looks at the arrow message at a place of a file for sizes that the file cannot hold; the place of the next one, `None` at the
/// end.
fn message(reader: &mut (impl Read + Seek), at: u64, length: u64) -> std::result::Result<Option<u64>, String> {
    let mut number = [0; 4];
    reader.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
    match reader.read_exact(&mut number) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other.map_err(|e| e.to_string())?,
    }
    if number == [0xFF; 4] {
        reader.read_exact(&mut number).map_err(|_| "it ends in the middle".to_owned())?;
    }
    let size = u64::from(u32::from_le_bytes(number));
    if size == 0 {
        return Ok(None);
    }
    let at = reader.stream_position().map_err(|e| e.to_string())?;
    if at + size > length {
        return Err("a message is longer than the file".to_owned());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|e| e.to_string())?];
    reader.read_exact(&mut bytes).map_err(|e| e.to_string())?;
    let message = MessageRef::read_as_root(&bytes).map_err(|e| e.to_string())?;
    let body = u64::try_from(message.body_length().map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    let start = at + size;
    if body > length - start {
        return Err("a batch is longer than the file: it ends in the middle".to_owned());
    }
    let batch = match message.header().map_err(|e| e.to_string())? {
        Some(MessageHeaderRef::RecordBatch(batch)) => Some(batch),
        Some(MessageHeaderRef::DictionaryBatch(batch)) => batch.data().map_err(|e| e.to_string())?,
        _ => None,
    };
    if let Some(batch) = batch {
        sizes(&batch, reader, start, body)?;
    }
    Ok(Some(start + body))
}

/// Checks that a batch's rows and buffers are no more than its body can hold.
fn sizes(
    batch: &RecordBatchRef<'_>,
    reader: &mut (impl Read + Seek),
    start: u64,
    body: u64,
) -> std::result::Result<(), String> {
    let packed = batch.compression().map_err(|e| e.to_string())?.is_some();
    let most = if packed { body.saturating_mul(GROWTH) } else { body }.saturating_mul(8) + 8;
    let rows = batch.length().map_err(|e| e.to_string())?;
    // a bit a row at the least; columns without any value take none
    if u64::try_from(rows).map_err(|e| e.to_string())? > most.max(1 << 20) {
        return Err(format!("a batch claims {rows} rows"));
    }
    let buffers = batch.buffers().map_err(|e| e.to_string())?;
    for buffer in buffers.into_iter().flatten() {
        let [offset, length] = [buffer.offset(), buffer.length()].map(|of| u64::try_from(of).unwrap_or(u64::MAX));
        if offset.checked_add(length).is_none_or(|end| end > body) {
            return Err("a buffer lies outside its batch".to_owned());
        }
        if packed && length >= 8 {
            let mut claimed = [0; 8];
            reader.seek(SeekFrom::Start(start + offset)).map_err(|e| e.to_string())?;
            reader.read_exact(&mut claimed).map_err(|e| e.to_string())?;
            let claimed = i64::from_le_bytes(claimed);
            // −1: as it is
            if claimed < -1 || u64::try_from(claimed).is_ok_and(|claimed| claimed > GROWTH * length) {
                return Err(format!("a buffer of {length} bytes claims to hold {claimed}"));
            }
        }
    }
    Ok(())
}

/// Hands over the rows of a frame, as JSON. Of a column that is not wanted only the name goes on; values in bytes are no text.
fn frame(path: &Path, rows: &DataFrame, wanted: &Wanted, take: Take<'_>) -> Result<ControlFlow<()>> {
    let text = guarded(path, || {
        let kept = |column: &&Column| wanted.has(column.name()) && *column.dtype() != DataType::Binary;
        let height = rows.height();
        let name = |column: &Column| match kept(&column) {
            true => column.clone(),
            false => Column::full_null(column.name().clone(), height, &DataType::Null),
        };
        let mut named = DataFrame::new(height, rows.columns().iter().map(name).collect()).map_err(|e| e.to_string())?;
        let mut text = Vec::new();
        let mut writer = JsonWriter::new(&mut text).with_json_format(JsonFormat::JsonLines);
        writer.finish(&mut named).map_err(|e| e.to_string())?;
        Ok(text)
    })?;
    lines(path, text.as_slice(), take)
}

/// Reads a row's wanted columns; the others are there by name, without their values.
impl<'de> DeserializeSeed<'de> for &Wanted {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(WantedColumns(self))
    }
}

struct WantedColumns<'a>(&'a Wanted);

impl<'de> Visitor<'de> for WantedColumns<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut columns = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = if self.0.has(&key) {
                map.next_value()?
            } else {
                map.next_value::<IgnoredAny>()?;
                Value::Null
            };
            columns.insert(key, value);
        }
        Ok(Value::Object(columns))
    }
}
