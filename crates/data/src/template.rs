//! Chat templates, rendered as Hugging Face renders them.
//!
//! Templates come with checkpoints and are not trusted: they run in minijinja, which can neither read files nor call
//! anything but what is defined here, and with a bound on the instructions they may take.
use crate::error::{Error, Result};
use crate::preference::Message;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Output, Value, context};
use regex::Regex;
use serde_json::Map;
use std::path::Path;

/// Instructions a rendering may take; the longest conversations need some ten thousand.
const FUEL: u64 = 20_000_000;

/// A compiled chat template and the special tokens that it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Compiles a template; `tokens` are `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// Where the template is malformed.
    pub fn new(source: &str, tokens: Map<String, serde_json::Value>, path: &Path) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, minijinja::Error> {
            let mut text = String::new();
            std::fmt::Write::write_fmt(&mut text, format_args!("{}", chrono::Local::now().format(&format))).map_err(
                |_| minijinja::Error::new(ErrorKind::InvalidOperation, format!("bad date format `{format}`")),
            )?;
            Ok(text)
        });
        environment.add_filter("tojson", to_json);
        environment.set_formatter(|out, _, value| write_value(out, value));
        // transformers marks what the assistant said with a tag of its own, which renders as its content
        let generation = Regex::new(r"\{%(-?)\s*(end)?generation\s*(-?)%\}").map_err(|e| Error::file(path, e))?;
        let source = generation.replace_all(source, |tag: &regex::Captures<'_>| {
            let word = if tag.get(2).is_some() { "endif" } else { "if true" };
            format!("{{%{} {word} {}%}}", &tag[1], &tag[3])
        });
        environment
            .add_template_owned("chat", source.into_owned())
            .map_err(|e| Error::file(path, format!("malformed chat template: {}", one_line(&e))))?;
        Ok(Self { environment, tokens })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// What the template complains about.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let template = self.environment.get_template("chat").map_err(|e| one_line(&e))?;
        let tokens = Value::from_serialize(&self.tokens);
        let messages = Value::from_serialize(messages);
        let variables = context! { messages, add_generation_prompt, tools => (), documents => (), ..tokens };
        template.render(variables).map_err(|e| format!("the chat template fails: {}", one_line(&e)))
    }
}

fn one_line(error: &minijinja::Error) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}

/// Writes a value as Python's `str` does; an undefined one as nothing.
fn write_value(out: &mut Output, value: &Value) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::Undefined => return Ok(()),
        ValueKind::None | ValueKind::Seq | ValueKind::Map => write!(out, "{}", python_repr(value)),
        _ => write!(out, "{value}"),
    }
    .map_err(|e| minijinja::Error::new(ErrorKind::WriteFailure, e.to_string()))
}

/// Python's `repr` of a value.
fn python_repr(value: &Value) -> String {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => "None".to_owned(),
        ValueKind::String => {
            let text =
                value.to_string().replace('\\', r"\\").replace('\n', r"\n").replace('\t', r"\t").replace('\r', r"\r");
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            let text = if quote == '\'' { text.replace('\'', r"\'") } else { text };
            format!("{quote}{text}{quote}")
        }
        ValueKind::Seq => format!("[{}]", items().map(|item| python_repr(&item)).collect::<Vec<_>>().join(", ")),
        ValueKind::Map => {
            let entry = |key: Value| {
                format!(
                    "{}: {}",
                    python_repr(&key),
                    value.get_item(&key).map_or_else(|_| "None".to_owned(), |v| python_repr(&v))
                )
            };
            format!("{{{}}}", items().map(entry).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which puts a space after `,` and `:`.
struct PythonFormat;

impl serde_json::ser::Formatter for PythonFormat {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    use serde::Serialize;
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let spaces = " ".repeat(indent.unwrap_or(0).min(64));
    let written = match indent {
        Some(_) => {
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormat)),
    };
    let failed = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    written.map_err(|e| failed(e.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8(out).map_err(|e| failed(e.to_string()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &str) -> Result<String, String> {
        let tokens = serde_json::from_str(r#"{"bos_token": "<s>", "eos_token": "</s>"}"#).unwrap();
        let template =
            ChatTemplate::new(source, tokens, Path::new("chat_template.jinja")).map_err(|e| e.to_string())?;
        let messages: Vec<Message> = serde_json::from_str(messages).unwrap();
        template.render(&messages, true)
    }

    const HELLO: &str = r#"[{"role": "user", "content": " Hi é <&> "}]"#;

    #[test]
    fn python_string_methods_and_special_tokens_render() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'].startswith('u') %}\n\
                      [{{ m.content.strip() }}]{% endif %}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}";
        assert_eq!(render(source, HELLO).unwrap(), "<s>[Hi é <&>]A:");
    }

    /// `json.dumps({"a": [1, "é<"], "b": None}, ensure_ascii=False)` of Python 3.
    #[test]
    fn tojson_writes_what_python_writes() {
        let source = "{{ {'a': [1, 'é<'], 'b': none} | tojson }}";
        assert_eq!(render(source, HELLO).unwrap(), r#"{"a": [1, "é<"], "b": null}"#);
    }

    #[test]
    fn generation_tags_render_as_their_content() {
        let source = "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}";
        assert_eq!(render(source, HELLO).unwrap(), "user");
    }

    #[test]
    fn an_exception_of_the_template_is_its_message() {
        let error = render("{{ raise_exception('roles must alternate') }}", HELLO).unwrap_err();
        assert!(error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn an_endless_template_ends() {
        let error =
            render("{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}", HELLO);
        assert!(error.unwrap_err().contains("fuel"));
    }

    #[test]
    fn a_malformed_template_names_its_file() {
        assert!(render("{% for %}", HELLO).unwrap_err().contains("chat_template.jinja"));
    }
}
