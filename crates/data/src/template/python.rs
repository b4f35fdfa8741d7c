//! Values as Python writes them, and the filters, tests and methods that Jinja has otherwise than minijinja.
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use std::cell::Cell;

/// Most bytes of one text, and of all texts that a rendering makes on its way.
const MOST: [usize; 2] = [1 << 25, 1 << 28];

thread_local! {
    /// Bytes that this thread's rendering may still make.
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// Begins a rendering.
pub fn begin() {
    LEFT.set(MOST[1]);
}

/// Counts bytes that a rendering makes.
fn count(bytes: usize) -> Result<(), Error> {
    let left = LEFT.get().checked_sub(bytes).filter(|_| bytes <= MOST[0]);
    LEFT.set(left.unwrap_or(0));
    let message = || format!("makes texts of more than {} MiB, or {} in all", MOST[0] >> 20, MOST[1] >> 20);
    left.map(|_| ()).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, message()))
}

/// A value that may have grown.
fn bounded(value: Value) -> Result<Value, Error> {
    // an object's own list is made when it is gone over
    let size = value.as_str().map(str::len).or_else(|| value.len()).unwrap_or(1);
    count(size)?;
    Ok(value)
}

/// What a loop goes over.
fn iterated(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
            let message = format!("{} is not iterable", repr(&value));
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
        _ => Ok(value),
    }
}

/// `str(value)`; of an undefined one nothing.
pub fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::String => quoted(&value.to_string()),
        ValueKind::Seq | ValueKind::Iterable => {
            format!("[{}]", items().map(|item| repr(&item)).collect::<Vec<_>>().join(", "))
        }
        ValueKind::Map => {
            let entry = |key: Value| {
                let value = value.get_item(&key).map_or_else(|_| "None".to_owned(), |v| repr(&v));
                format!("{}: {value}", repr(&key))
            };
            format!("{{{}}}", items().map(entry).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

fn quoted(text: &str) -> String {
    let text = text.replace('\\', r"\\").replace('\n', r"\n").replace('\t', r"\t").replace('\r', r"\r");
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let text = if quote == '\'' { text.replace('\'', r"\'") } else { text };
    format!("{quote}{text}{quote}")
}

/// Writes a value as Python's `str` does.
pub fn write(out: &mut Output, value: &Value) -> Result<(), Error> {
    let text = text(value);
    count(text.len())?;
    out.write_str(&text).map_err(|e| Error::new(ErrorKind::WriteFailure, e.to_string()))
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which puts a space after `,` and `:`.
struct Separated<'a> {
    items: &'a [u8],
    keys: &'a [u8],
}

impl serde_json::ser::Formatter for Separated<'_> {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(self.items) }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(self.items) }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(self.keys)
    }
}

fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    use serde::Serialize;
    let failed = |e: String| Error::new(ErrorKind::BadSerialization, e);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ascii: bool = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted: bool = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut value = serde_json::to_value(value).map_err(|e| failed(e.to_string()))?;
    if sorted {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    let spaces = " ".repeat(indent.unwrap_or(0).min(64));
    let [items, keys] = match separators.as_deref() {
        Some([items, keys]) => [items.as_str(), keys.as_str()],
        _ => [", ", ": "],
    };
    let written = match indent {
        Some(_) => {
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format))
        }
        None => {
            let format = Separated { items: items.as_bytes(), keys: keys.as_bytes() };
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format))
        }
    };
    written.map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8(out).map_err(|e| failed(e.to_string()))?;
    Ok(Value::from_safe_string(if ascii { escaped(&text) } else { text }))
}

/// JSON with `\u` escapes for what is not ASCII.
fn escaped(json: &str) -> String {
    let mut units = [0; 2];
    let escape = |c: char| match c.is_ascii() {
        true => c.to_string(),
        false => c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
    };
    json.chars().map(escape).collect()
}

/// `str.strip(chars)`.
fn trim(value: &Value, chars: Option<String>) -> String {
    let text = text(value);
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim().to_owned(),
    }
}

/// `str.capitalize()`.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect())
}

/// `str.replace(old, new, count)`.
fn replace(value: &Value, old: &Value, new: &Value, most: Option<usize>) -> Result<String, Error> {
    let (value, old, new) = (text(value), text(old), text(new));
    let most = most.unwrap_or(usize::MAX);
    let found = value.matches(old.as_str()).take(most).count();
    count(value.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(value.replacen(&old, &new, most))
}

/// `sep.join(str(item) …)`.
fn join(items: &Value, separator: Option<&Value>, attribute: Option<&str>) -> Result<String, Error> {
    let separator = separator.map(text).unwrap_or_default();
    let mut out = String::new();
    for (n, item) in items.try_iter()?.enumerate() {
        let item = attribute.map_or_else(|| Ok(item.clone()), |name| item.get_attr(name))?;
        let item = text(&item);
        count(item.len() + separator.len())?;
        if n > 0 {
            out.push_str(&separator);
        }
        out.push_str(&item);
    }
    Ok(out)
}

/// Methods of Python's strings and dictionaries.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let of = |at: usize| args.get(at).map(text).unwrap_or_default();
    match (value.as_str(), name, args.len()) {
        (Some(_), "replace", 2 | 3) => {
            let most = args.get(2).and_then(Value::as_usize);
            replace(value, &args[0], &args[1], most).map(Value::from)
        }
        (Some(_), "join", 1) => join(&args[0], Some(value), None).map(Value::from),
        (Some(text), "removeprefix", 1) => Ok(text.strip_prefix(of(0).as_str()).unwrap_or(text).into()),
        (Some(text), "removesuffix", 1) => Ok(text.strip_suffix(of(0).as_str()).unwrap_or(text).into()),
        (Some(text), "partition", 1) => {
            let mark = of(0);
            let parts = text.split_once(mark.as_str()).map(|(before, after)| [before, &mark, after]);
            Ok(parts.unwrap_or([text, "", ""]).into_iter().map(Value::from).collect())
        }
        (Some(text), "rpartition", 1) => {
            let mark = of(0);
            let parts = text.rsplit_once(mark.as_str()).map(|(before, after)| [before, &mark, after]);
            Ok(parts.unwrap_or(["", "", text]).into_iter().map(Value::from).collect())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Adds what Jinja has otherwise.
pub fn add_to(environment: &mut Environment<'_>) {
    environment.set_formatter(|out, _, value| write(out, value));
    environment.set_unknown_method_callback(method);
    environment.add_filter(super::BOUNDED, bounded);
    environment.add_filter(super::ITERATED, iterated);
    environment.add_filter(super::TEXT, |value: &Value| text(value));
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("trim", trim);
    environment.add_filter("upper", |value: &Value| text(value).to_uppercase());
    environment.add_filter("lower", |value: &Value| text(value).to_lowercase());
    environment.add_filter("title", |value: &Value| minijinja::filters::title(text(value).into()));
    environment.add_filter("capitalize", |value: &Value| capitalized(&text(value)));
    environment.add_filter("replace", |value: &Value, old: &Value, new: &Value, most: Option<usize>| {
        replace(value, old, new, most)
    });
    environment.add_filter("join", |items: &Value, separator: Option<&Value>, options: Kwargs| {
        let attribute: Option<&str> = options.get("attribute")?;
        let named: Option<&Value> = options.get("d")?;
        join(items, separator.or(named), attribute)
    });
    // what `iter()` takes; an undefined value is an empty list
    environment.add_test("iterable", |value: &Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number) && value.try_iter().is_ok()
    });
    // what has a length and items
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    environment.add_function("dict", |parts: Rest<Value>, more: Kwargs| -> Result<Value, Error> {
        let mut all = Vec::new();
        for part in parts.iter() {
            for key in part.try_iter()? {
                all.push((key.clone(), part.get_item(&key)?));
            }
        }
        for key in more.args() {
            all.push((Value::from(key), more.get(key)?));
        }
        Ok(all.into_iter().collect())
    });
}
