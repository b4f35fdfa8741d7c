//! Chat templates, rendered as Hugging Face renders them.
//!
//! Templates come with checkpoints and are not trusted: they run in minijinja, which can neither read files nor call
//! anything but what is defined here, and with bounds on the instructions they may take and the texts they may make.
mod instrument;
mod python;

use self::instrument::instrumented;
use crate::error::{Error, Result};
use crate::preference::{Message, Setting};
use crate::remark::Remark;
use chrono::{Local, NaiveDate, NaiveDateTime};
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value};
use regex::Regex;
use serde_json::Map;
use std::collections::BTreeMap;
use std::path::Path;

/// Instructions a rendering may take; the longest conversations need some ten thousand.
const FUEL: u64 = 20_000_000;

/// Most bytes that a rendering may write of texts that stand in a template.
const MOST_RAW: u64 = 1 << 30;

/// Longest source, in bytes; published ones have some ten thousand.
const LONGEST: usize = 1 << 20;

/// Filters that are put around expressions of a template: what may have grown, what becomes an attribute of a namespace, what a
/// loop goes over, what becomes text.
const BOUNDED: &str = "_bounded";
const ATTRIBUTE: &str = "_attribute";
const ITERATED: &str = "_iterated";
const TEXT: &str = "_text";

/// A compiled chat template and the special tokens that it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Map<String, serde_json::Value>,
    /// Whether it writes the day.
    reads_date: bool,
    /// What it takes a message's `content` to be.
    content: ContentForm,
}

/// What templates read of `content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentForm {
    /// Text.
    Text,
    /// A list of parts, each with `type` and `text`.
    Parts,
    /// Either.
    Either,
}

/// The names of the template for conversations, and of the one for those with tools.
const NAMES: [&str; 2] = ["default", "tool_use"];

/// Names under which the reasoning of a message is passed; templates read the first, and gpt-oss's the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

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
        python::add_to(&mut environment);
        let raise = |message: Option<String>, named: Kwargs| -> Result<String, minijinja::Error> {
            let message = message.map_or_else(|| named.get("message"), Ok)?;
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        };
        environment.add_function("raise_exception", raise);
        let mut template = Self { environment, tokens, reads_date: false, content: ContentForm::Text };
        template.set_now(|| Local::now().naive_local());
        template.add(NAMES[0], source, path)?;
        template.content = template.content_form();
        Ok(template)
    }

    /// Adds the template that conversations with tools are rendered by.
    ///
    /// # Errors
    /// Where the template is malformed.
    pub fn add_tool_use(&mut self, source: &str, path: &Path) -> Result<()> {
        self.add(NAMES[1], source, path)
    }

    /// Makes a day the one that `strftime_now` writes.
    pub fn pin_date(&mut self, date: NaiveDate) {
        self.set_now(move || date.into());
        self.reads_date = false;
    }

    /// Whether what it writes depends on the day.
    pub(crate) fn reads_date(&self) -> bool {
        self.reads_date
    }

    fn set_now(&mut self, now: impl Fn() -> NaiveDateTime + Send + Sync + 'static) {
        let strftime = move |format: Option<String>, named: Kwargs| -> Result<String, minijinja::Error> {
            let format = format.map_or_else(|| named.get("format"), Ok)?;
            let mut text = String::new();
            std::fmt::Write::write_fmt(&mut text, format_args!("{}", now().format(&format))).map_err(|_| {
                minijinja::Error::new(ErrorKind::InvalidOperation, format!("bad date format `{format}`"))
            })?;
            Ok(text)
        };
        self.environment.add_function("strftime_now", strftime);
    }

    fn add(&mut self, name: &'static str, source: &str, path: &Path) -> Result<()> {
        // Jinja reads all line ends as one
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        self.reads_date |= source.contains("strftime_now");
        // transformers marks what the assistant said with a tag of its own, which renders as its content
        let generation = Regex::new(r"\{%(-?)\s*(end)?generation\s*(-?)%\}").map_err(|e| Error::file(path, e))?;
        let source = generation.replace_all(&source, |tag: &regex::Captures<'_>| {
            let word = if tag.get(2).is_some() { "endif" } else { "if true" };
            format!("{{%{} {word} {}%}}", &tag[1], &tag[3])
        });
        let malformed = |e: minijinja::Error| Error::file(path, format!("malformed chat template: {}", one_line(&e)));
        if source.len() > LONGEST {
            let problem = format!("a chat template of {} bytes; at most {LONGEST} are taken", source.len());
            return Err(Error::file(path, problem));
        }
        let (source, longest_raw) = instrumented(&source).map_err(malformed)?;
        // every instruction may write the longest text that stands in the source
        let fuel = FUEL.min(MOST_RAW / (longest_raw as u64).max(1));
        self.environment.set_fuel(Some(self.environment.fuel().unwrap_or(FUEL).min(fuel)));
        self.environment.add_template_owned(name, source).map_err(malformed)
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// What the template complains about.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        setting: &Setting,
    ) -> Result<String, String> {
        let tool_use = setting.tools.as_ref().and_then(|_| self.environment.get_template(NAMES[1]).ok());
        let template = match tool_use {
            Some(template) => template,
            None => self.environment.get_template(NAMES[0]).map_err(|e| one_line(&e))?,
        };
        let messages: Vec<Message> = messages.iter().map(with_reasoning).collect();
        let mut variables: BTreeMap<&str, Value> = [("documents", Value::from(()))].into();
        for (name, value) in self.tokens.iter().chain(&setting.variables) {
            variables.insert(name, Value::from_serialize(value));
        }
        variables.insert("messages", Value::from_serialize(&messages));
        variables.insert("tools", Value::from_serialize(&setting.tools));
        variables.entry("add_generation_prompt").or_insert(add_generation_prompt.into());
        python::begin();
        template.render(variables).map_err(|e| format!("the chat template fails: {}", one_line(&e)))
    }

    /// The text of a conversation up to the end of its last message's content: the turn stays open.
    ///
    /// # Errors
    /// What the template complains about, or that the content is not text that the template writes.
    pub fn render_open(&self, messages: &[Message], setting: &Setting) -> Result<String, String> {
        const END: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
        let mut messages = messages.to_vec();
        let content = messages.last_mut().and_then(|message| message.get_mut("content"));
        let Some(serde_json::Value::String(content)) = content else {
            return Err("an assistant's turn that stays open has to be text".to_owned());
        };
        content.push_str(END);
        let text = self.render(&messages, false, setting)?;
        let Some(at) = text.rfind(END.trim_end()) else {
            return Err("the chat template does not write the end of the assistant's turn".to_owned());
        };
        // a template that trims contents trims what is before the mark of its end as well
        Ok(if text[at..].starts_with(END) { text[..at].to_owned() } else { text[..at].trim_end().to_owned() })
    }

    /// Messages as transformers hands them to a template: without keys that are null, and with contents of the form that the
    /// template reads.
    ///
    /// # Errors
    /// Where a part of a content is no text, and the template reads text.
    pub(crate) fn prepared(&self, messages: &[Message], remarks: &mut Vec<Remark>) -> Result<Vec<Message>, String> {
        let mut prepare = |message: &Message| {
            let mut message: Message =
                message.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
            let Some(content) = message.get_mut("content") else { return Ok(message) };
            let form = match (&*content, self.content) {
                (serde_json::Value::String(_), ContentForm::Parts) => ContentForm::Parts,
                (serde_json::Value::Array(_), ContentForm::Text) => ContentForm::Text,
                _ => return Ok(message),
            };
            *content = if form == ContentForm::Parts {
                remarks.push(Remark::TextInParts);
                serde_json::json!([{"type": "text", "text": content.take()}])
            } else {
                remarks.push(Remark::PartsJoined);
                joined(content)?.into()
            };
            Ok(message)
        };
        messages.iter().map(&mut prepare).collect()
    }

    /// What the template makes of contents: rendered once as text and once as a part, the one or the other may vanish.
    fn content_form(&self) -> ContentForm {
        const MARK: &str = "tanglescope-mark";
        let writes = |content: serde_json::Value| {
            let message: Message =
                [("role".to_owned(), "user".into()), ("content".to_owned(), content)].into_iter().collect();
            // what a list is written as, in Python, is no reading of its parts
            let text = self.render(&[message], false, &Setting::default());
            text.is_ok_and(|text| text.contains(MARK) && !text.contains("'type'") && !text.contains("\"type\""))
        };
        let parts = writes(serde_json::json!([{"type": "text", "text": MARK}]));
        match (writes(MARK.into()), parts) {
            (true, true) => ContentForm::Either,
            (false, true) => ContentForm::Parts,
            _ => ContentForm::Text,
        }
    }
}

/// The text of a list of parts.
fn joined(parts: &serde_json::Value) -> Result<String, String> {
    let text = |part: &serde_json::Value| match part {
        serde_json::Value::String(text) => Ok(text.clone()),
        part => part.get("text").and_then(|text| text.as_str()).map(str::to_owned).ok_or_else(|| {
            let kind = part.get("type").and_then(|kind| kind.as_str()).unwrap_or("unknown");
            format!("`content` has a part of type {kind}, and only text is measured")
        }),
    };
    parts.as_array().map_or(&[][..], Vec::as_slice).iter().map(text).collect()
}

/// A message with its reasoning under every name that templates read, as transformers passes it.
fn with_reasoning(message: &Message) -> Message {
    let found = REASONING.iter().find_map(|key| message.get(*key).filter(|value| !value.is_null()));
    let Some(reasoning) = found else { return message.clone() };
    let mut out = message.clone();
    out.entry(REASONING[1]).or_insert_with(|| reasoning.clone());
    out.insert(REASONING[0].to_owned(), reasoning.clone());
    out
}

fn one_line(error: &minijinja::Error) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &str) -> Result<String, String> {
        let tokens = serde_json::from_str(r#"{"bos_token": "<s>", "eos_token": "</s>"}"#).unwrap();
        let template =
            ChatTemplate::new(source, tokens, Path::new("chat_template.jinja")).map_err(|e| e.to_string())?;
        let messages: Vec<Message> = serde_json::from_str(messages).unwrap();
        template.render(&messages, true, &Setting::default())
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
    fn lists_in_lists_end_before_the_stack() {
        for grow in ["[ns.x]", "{'a': ns.x}", "(ns.x, 1)", "dict(a=ns.x)", "[1, [ns.x]]"] {
            let source =
                "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = GROW %}{% endfor %}{{ ns.x }}";
            let error = render(&source.replace("GROW", grow), HELLO).unwrap_err();
            assert!(error.contains("nest"), "{error}");
        }
    }

    /// What is made when it is gone over is made once, and a namespace does not come to lie in itself.
    #[test]
    fn values_that_go_over_others_end() {
        for grow in ["ns.x[0:]", "ns.x | reverse", "ns.x | list", "ns.x | map('int')", "ns.x | select"] {
            let source =
                "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = GROW %}{% endfor %}{{ ns.x }}";
            assert_eq!(render(&source.replace("GROW", grow), HELLO).unwrap(), "[1]", "{grow}");
        }
        for cycle in ["ns", "[ns]", "{'a': ns}", "dict(a=ns)", "namespace(y=ns)", "[1] + [ns]"] {
            let error =
                render(&format!("{{% set ns = namespace(x=1) %}}{{% set ns.x = {cycle} %}}{{{{ ns }}}}"), HELLO);
            assert!(error.unwrap_err().contains("namespace"), "{cycle}");
        }
        let twice = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x }}";
        assert!(render(twice, HELLO).unwrap_err().contains("MiB"));
    }

    /// The stack holds what the parser makes of them.
    #[test]
    fn long_expressions_are_refused() {
        for (head, part, tail) in [
            ("{{ 'a'", "~'a'", " }}"),
            ("{{ 'a'", "|upper", " }}"),
            ("{{ a", ".b", " }}"),
            ("{{ a", "[0]", " }}"),
            ("{{ a", "()", " }}"),
            ("{{ ", "not ", "a }}"),
            ("{{ ", "-", "1 }}"),
            ("{{ 1", " if a else 1", " }}"),
            ("{% if a %}", "{% elif b %}", "{% endif %}"),
        ] {
            let error = render(&format!("{head}{}{tail}", part.repeat(60_000)), HELLO).unwrap_err();
            assert!(error.contains("at most"), "{part}: {error}");
            // what is allowed fits
            let fits = format!("{head}{}{tail}", part.repeat(300));
            drop(render(&fits, HELLO));
        }
    }

    #[test]
    fn an_endless_template_ends() {
        let error =
            render("{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}", HELLO);
        assert!(error.unwrap_err().contains("fuel"));
    }

    /// What doubles, is put in front of every character, or is written again and again, ends before it fills the memory.
    #[test]
    fn a_template_that_grows_ends() {
        for source in [
            "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
            "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('a', ns.x) %}{% endfor %}",
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x.join(ns.x) %}{% endfor %}",
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}",
            "{{ 'a' | indent(9223372036854775807) }}",
            "{{ 'a\n' * 999 | indent(width=99999999, first=true) }}",
            "{{ '%099999999999d' | format(1) }}{{ '%*d' | format(1, 1) }}",
            "{{ '%*d' | format(99999999999, 1) }}",
            "{{ '{:>99999999999}'.format('a') }}",
            "{{ messages | batch(9223372036854775807) | list }}",
            "{{ messages | slice(9223372036854775) | list }}",
            "{% set x = 'ab' * 20000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
        ] {
            assert!(render(source, HELLO).unwrap_err().contains("MiB"), "{source}");
        }
    }

    /// As Jinja 3.1 writes them.
    #[test]
    fn indented_lines_are_as_in_jinja() {
        for (source, want) in [
            ("{{ 'a\nb\n\nc\n' | indent }}", "a\n    b\n\n    c\n"),
            ("{{ 'a\nb' | indent(2, true) }}", "  a\n  b"),
            ("{{ 'a\n\nb' | indent('> ', blank=true) }}", "a\n> \n> b"),
            ("{{ 'a\r\nb' | indent(width=1, first=true) }}", " a\n b"),
        ] {
            assert_eq!(render(source, HELLO).unwrap(), want, "{source}");
        }
    }

    /// As Jinja: line ends of the source are one, and what is no list cannot be gone over.
    #[test]
    fn line_ends_and_nothing_are_as_in_jinja() {
        let source = "{% for m in messages %}\r\n<{{ m.role }}>\r\n{% endfor %}";
        assert_eq!(render(source, HELLO).unwrap(), "<user>\n");
        assert!(render("{% for x in none %}{{ x }}{% endfor %}", HELLO).unwrap_err().contains("not iterable"));
        assert_eq!(render("{% for x in undefined_name %}{{ x }}{% endfor %}", HELLO).unwrap(), "");
        assert_eq!(
            render("{{ none is iterable }} {{ 'a' is sequence }} {{ {'b': true} | string | trim }}", HELLO).unwrap(),
            "False True {'b': True}"
        );
        assert_eq!(
            render("{{ 'a' ~ none ~ [1.0, 'x'] }}{{ raise_exception is defined }}", HELLO).unwrap(),
            "aNone[1.0, 'x']True"
        );
        assert_eq!(
            render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", HELLO).unwrap(),
            r#"{"a":2,"b":1}"#
        );
    }

    #[test]
    fn a_pinned_day_is_the_one_that_is_written() {
        let source = "{{ strftime_now('%d %b %Y') }}";
        let mut template = ChatTemplate::new(source, Map::new(), Path::new("chat_template.jinja")).unwrap();
        assert!(template.reads_date());
        template.pin_date(NaiveDate::from_ymd_opt(2024, 7, 26).unwrap());
        assert!(!template.reads_date());
        assert_eq!(template.render(&[], false, &Setting::default()).unwrap(), "26 Jul 2024");
    }

    #[test]
    fn contents_have_the_form_that_the_template_reads() {
        let new = |source: &str| ChatTemplate::new(source, Map::new(), Path::new("chat_template.jinja")).unwrap();
        let of = |content: serde_json::Value| -> Vec<Message> {
            vec![serde_json::from_value(serde_json::json!({"role": "user", "content": content, "name": null})).unwrap()]
        };
        let mut remarks = Vec::new();
        let parts = new("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}");
        let made = parts.prepared(&of("Hi".into()), &mut remarks).unwrap();
        assert_eq!(made[0]["content"][0]["text"], "Hi");
        assert!(!made[0].contains_key("name"), "keys that are null are left out");
        let text = new("{% for m in messages %}{{ m.content }}{% endfor %}");
        let typed = serde_json::json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        assert_eq!(text.prepared(&of(typed.clone()), &mut remarks).unwrap()[0]["content"], "ab");
        assert_eq!(remarks, [Remark::TextInParts, Remark::PartsJoined]);
        let image = serde_json::json!([{"type": "image", "url": "x"}]);
        assert!(text.prepared(&of(image), &mut remarks).unwrap_err().contains("type image"));
        let either = new(
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}",
        );
        assert_eq!(either.prepared(&of(typed.clone()), &mut remarks).unwrap()[0]["content"], typed);
    }

    #[test]
    fn a_malformed_template_names_its_file() {
        assert!(render("{% for %}", HELLO).unwrap_err().contains("chat_template.jinja"));
    }
}
