//! Chat templates as Hugging Face renders them: stored renderings, made with transformers by templates/make.py.
use chrono::NaiveDate;
use std::collections::BTreeMap;
use std::path::Path;
use tanglescope_data::{ChatTemplate, Message, Setting};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    source: String,
    tokens: serde_json::Map<String, serde_json::Value>,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    rendered: Option<String>,
    error: Option<String>,
}

#[test]
fn renderings_are_those_of_transformers() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("templates/renderings.json")).unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let template = ChatTemplate::new(&case.source, case.tokens, Path::new("chat_template.jinja")).unwrap();
        let got = template.render(&case.messages, case.add_generation_prompt, &Setting::default());
        match (case.rendered, case.error) {
            (Some(want), _) => assert_eq!(got.as_ref(), Ok(&want), "{}", case.name),
            (None, want) => {
                let (got, want) = (got.unwrap_err(), want.unwrap());
                assert!(got.contains(&want), "{}: {got} instead of {want}", case.name);
            }
        }
    }
}

/// The day of the rendering, in the format that the template asks for.
#[test]
fn strftime_now_is_today() {
    let source = "{{ strftime_now('%Y') | int > 2000 }} {{ strftime_now('%d %b %Y') | length }}";
    let template = ChatTemplate::new(source, serde_json::Map::new(), Path::new("chat_template.jinja")).unwrap();
    assert_eq!(template.render(&[], false, &Setting::default()).unwrap().to_lowercase(), "true 11");
}

/// Rendered text, or what transformers raised.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Rendered {
    Text(String),
    Error { error: String },
}

#[derive(serde::Deserialize)]
struct OfTrl {
    source: String,
    rendered: BTreeMap<String, BTreeMap<String, Rendered>>,
}

/// The templates that TRL ships, made by templates/ships.py.
#[derive(serde::Deserialize)]
struct Trl {
    tools: serde_json::Value,
    tokens: serde_json::Map<String, serde_json::Value>,
    cases: BTreeMap<String, BTreeMap<String, Vec<Message>>>,
    templates: BTreeMap<String, OfTrl>,
}

#[test]
fn trls_templates_render_byte_for_byte_and_are_refused_where_they_raise() {
    let packed = include_bytes!("templates/trl.json.gz").as_slice();
    let trl: Trl = serde_json::from_reader(flate2::read::GzDecoder::new(packed)).unwrap();
    assert_eq!(trl.templates.len(), 72);
    let mut wrong = Vec::new();
    for (name, of) in &trl.templates {
        let template = match ChatTemplate::new(&of.source, trl.tokens.clone(), Path::new(name)) {
            Ok(mut template) => {
                // the day on which templates/ships.py was run, which some write
                template.pin_date(NaiveDate::from_ymd_opt(2026, 11, 26).unwrap());
                template
            }
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (case, turns) in &trl.cases {
            let tools = (case == "tools").then(|| trl.tools.clone());
            let setting = Setting { tools, ..Setting::default() };
            for (part, want) in &of.rendered[case] {
                let mut messages = turns["prompt"].clone();
                if part != "prompt" {
                    messages.extend(turns[part].clone());
                }
                let got = template.render(&messages, part == "prompt", &setting);
                match (want, got) {
                    (Rendered::Text(want), Ok(got)) if *want == got => {}
                    (Rendered::Error { .. }, Err(_)) => {}
                    (Rendered::Text(want), got) => {
                        let got = got.unwrap_or_else(|error| error);
                        let at = want.bytes().zip(got.bytes()).take_while(|(a, b)| a == b).count();
                        wrong.push(format!("{name}/{case}/{part} at {at}: {got:?} instead of {want:?}"));
                    }
                    (Rendered::Error { error }, Ok(got)) => {
                        wrong.push(format!("{name}/{case}/{part}: {got:?} instead of {error}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} renderings differ:\n{}", wrong.len(), wrong.join("\n"));
}
