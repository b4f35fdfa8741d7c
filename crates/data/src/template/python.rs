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

/// How deeply lists and dictionaries may lie in one another: what goes over them uses the stack.
const DEEPEST: usize = 200;

/// What a value costs of the bytes that a rendering may make, beside its text.
const NODE: usize = 16;

/// A value that may have grown: wider, or deeper.
fn bounded(value: Value) -> Result<Value, Error> {
    // a part or a sum of lists is otherwise made anew each time that it is gone over, and so is what it is a part of
    let value = match value.kind() {
        ValueKind::Iterable => value.try_iter()?.map(|item| count(NODE).map(|()| item)).collect::<Result<_, _>>()?,
        _ => value,
    };
    let size = value.as_str().map(str::len).or_else(|| value.len()).unwrap_or(1);
    count(size)?;
    checked(&value, false, 0)?;
    Ok(value)
}

/// What becomes an attribute of a namespace.
fn attribute(value: Value) -> Result<Value, Error> {
    match is_namespace(&value) {
        true => Err(namespace_inside()),
        false => bounded(value),
    }
}

/// Whether it is what `namespace()` made, which alone can be changed, and so come to lie in itself.
fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn namespace_inside() -> Error {
    Error::new(ErrorKind::InvalidOperation, "a namespace in another value is not supported")
}

/// Goes over a value and all in it before something without bounds does, and counts it, with its texts where they are written.
fn checked(value: &Value, texts: bool, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        let message = format!("lists and dictionaries nest more than {DEEPEST} deep");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    count(NODE + value.as_str().filter(|_| texts).map_or(0, str::len))?;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    if depth > 0 && is_namespace(value) {
        return Err(namespace_inside());
    }
    for item in value.try_iter()? {
        checked(&item, texts, depth + 1)?;
        if value.kind() == ValueKind::Map {
            checked(&value.get_item(&item)?, texts, depth + 1)?;
        }
    }
    Ok(())
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
fn text(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => {
            checked(value, true, 0)?;
            repr(value)
        }
    })
}

/// `repr(value)` of one that is [`checked`].
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
    let text = text(value)?;
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
    checked(value, true, 0)?;
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
fn trim(value: &Value, chars: Option<String>) -> Result<String, Error> {
    let text = text(value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim().to_owned(),
    })
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
    let (value, old, new) = (text(value)?, text(old)?, text(new)?);
    let most = most.unwrap_or(usize::MAX);
    let found = value.matches(old.as_str()).take(most).count();
    count(value.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(value.replacen(&old, &new, most))
}

/// `sep.join(str(item) …)`.
fn join(items: &Value, separator: Option<&Value>, attribute: Option<&str>) -> Result<String, Error> {
    let separator = separator.map(text).transpose()?.unwrap_or_default();
    let mut out = String::new();
    for (n, item) in items.try_iter()?.enumerate() {
        let item = attribute.map_or_else(|| Ok(item.clone()), |name| item.get_attr(name))?;
        let item = text(&item)?;
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
    let of = |at: usize| args.get(at).map_or_else(|| Ok(String::new()), text);
    match (value.as_str(), name, args.len()) {
        (Some(_), "replace", 2 | 3) => {
            let most = args.get(2).and_then(Value::as_usize);
            replace(value, &args[0], &args[1], most).map(Value::from)
        }
        (Some(_), "join", 1) => join(&args[0], Some(value), None).map(Value::from),
        (Some(_), "format", _) => {
            check_widths(value, args)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
        }
        (Some(text), "removeprefix", 1) => Ok(text.strip_prefix(of(0)?.as_str()).unwrap_or(text).into()),
        (Some(text), "removesuffix", 1) => Ok(text.strip_suffix(of(0)?.as_str()).unwrap_or(text).into()),
        (Some(text), "partition", 1) => {
            let mark = of(0)?;
            let parts = text.split_once(mark.as_str()).map(|(before, after)| [before, &mark, after]);
            Ok(parts.unwrap_or([text, "", ""]).into_iter().map(Value::from).collect())
        }
        (Some(text), "rpartition", 1) => {
            let mark = of(0)?;
            let parts = text.rsplit_once(mark.as_str()).map(|(before, after)| [before, &mark, after]);
            Ok(parts.unwrap_or(["", "", text]).into_iter().map(Value::from).collect())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// `str.splitlines()`.
fn lines(text: &str) -> Vec<String> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let text = text.replace("\r\n", "\n");
    let text = text.strip_suffix(ENDS).unwrap_or(&text);
    text.split(ENDS).map(str::to_owned).collect()
}

/// `indent(width=4, first=False, blank=False)`; the width is a number of blanks or a text.
fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width: Option<Value> = width.map_or_else(|| options.get("width"), |width| Ok(Some(width)))?;
    let first = first.map_or_else(|| options.get("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = blank.map_or_else(|| options.get("blank"), |blank| Ok(Some(blank)))?.unwrap_or(false);
    options.assert_all_used()?;
    let lines = lines(&format!("{}\n", text(value)?));
    let before = match &width {
        Some(width) if width.as_str().is_some() => width.to_string(),
        width => {
            let width = width.as_ref().map_or(Some(4), Value::as_i64).unwrap_or(4);
            let width = usize::try_from(width).unwrap_or(0);
            count(width.saturating_mul(lines.len()))?;
            " ".repeat(width)
        }
    };
    count(before.len().saturating_mul(lines.len()))?;
    let line = |(n, line): (usize, &String)| match (n, blank || !line.is_empty()) {
        (0, _) if !first => line.clone(),
        (0, _) | (_, true) => format!("{before}{line}"),
        (_, false) => String::new(),
    };
    Ok(lines.iter().enumerate().map(line).collect::<Vec<_>>().join("\n"))
}

/// Refuses a format whose widths, or whose arguments where widths are arguments, are more than a text may have.
fn check_widths(format: &Value, args: &[Value]) -> Result<(), Error> {
    let format = text(format)?;
    for number in format.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty()) {
        count(number.parse().unwrap_or(usize::MAX))?;
    }
    for width in args.iter().filter(|_| format.contains('*')).filter_map(Value::as_i64) {
        count(usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX))?;
    }
    Ok(())
}

/// Adds what Jinja has otherwise.
pub fn add_to(environment: &mut Environment<'_>) {
    // what Jinja has not, and what writes values without a bound
    for filter in ["bool", "chain", "lines", "split", "zip", "pprint"] {
        environment.remove_filter(filter);
    }
    environment.remove_global("debug");
    environment.set_formatter(|out, _, value| write(out, value));
    environment.set_unknown_method_callback(method);
    environment.add_filter(super::BOUNDED, bounded);
    environment.add_filter(super::ATTRIBUTE, attribute);
    environment.add_filter(super::ITERATED, iterated);
    environment.add_filter(super::TEXT, |value: &Value| text(value));
    environment.add_filter("tojson", to_json);
    environment.add_filter("indent", indent);
    environment.add_filter("format", |state: &State, format: &Value, args: Rest<Value>| {
        check_widths(format, &args)?;
        minijinja::filters::format(state, format, args)
    });
    // these reserve what they are asked for
    environment.add_filter("batch", |state: &State, items: Value, size: usize, fill: Option<Value>| {
        count(size.saturating_mul(size_of::<Value>()))?;
        minijinja::filters::batch(state, items, size, fill)
    });
    environment.add_filter("slice", |state: &State, items: Value, parts: usize, fill: Option<Value>| {
        count(parts.saturating_mul(size_of::<Value>()))?;
        minijinja::filters::slice(state, items, parts, fill)
    });
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("trim", trim);
    environment.add_filter("upper", |value: &Value| text(value).map(|text| text.to_uppercase()));
    environment.add_filter("lower", |value: &Value| text(value).map(|text| text.to_lowercase()));
    environment.add_filter("title", |value: &Value| text(value).map(|text| minijinja::filters::title(text.into())));
    environment.add_filter("capitalize", |value: &Value| text(value).map(|text| capitalized(&text)));
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
