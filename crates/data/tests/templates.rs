//! Chat templates as Hugging Face renders them: stored renderings, made with transformers by templates/make.py.
use std::path::Path;
use tanglescope_data::{ChatTemplate, Message};

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
        let got = template.render(&case.messages, case.add_generation_prompt);
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
    assert_eq!(template.render(&[], false).unwrap().to_lowercase(), "true 11");
}
