//! Where special tokens go, and where a response begins, with a tokenizer of whole words.
use serde_json::json;
use std::path::Path;
use tanglescope_data::{Form, Preference, TextTokens, parse_row};

const BOS: u32 = 0;
const EOS: u32 = 1;

/// Words a … j are 2 …; `added` is what the tokenizer puts around a text.
fn tokenizer(folder: &Path, added: &serde_json::Value, template: Option<&str>) -> TextTokens {
    let mut vocabulary: serde_json::Map<String, serde_json::Value> =
        ["<s>", "</s>"].into_iter().zip(0..).map(|(t, i)| (t.to_owned(), json!(i))).collect();
    ('a'..='j').zip(2..).for_each(|(c, i)| drop(vocabulary.insert(c.to_string(), json!(i))));
    vocabulary.insert("?".to_owned(), json!(12));
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(BOS, "<s>"), special(EOS, "</s>")],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": added,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    });
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    TextTokens::open(folder).unwrap()
}

/// A post-processor that puts tokens before and after a text, as llama's and T5's do.
fn around(before: &[&str], after: &[&str]) -> serde_json::Value {
    let token = |t: &&str| json!({"SpecialToken": {"id": t, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<_> = before.iter().map(token).chain([text]).chain(after.iter().map(token)).collect();
    let of = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
    json!({"type": "TemplateProcessing", "single": single, "pair": single,
           "special_tokens": {"<s>": of("<s>", BOS), "</s>": of("</s>", EOS)}})
}

fn text(prompt: &str, chosen: &str, rejected: &str) -> Preference {
    Preference::Text { prompt: prompt.to_owned(), responses: vec![chosen.to_owned(), rejected.to_owned()] }
}

#[test]
fn bos_comes_with_the_prompt_and_never_twice() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokenizer(folder.path(), &around(&["<s>"], &[]), None);
    let pair = tokens.tokens(&text("a b", "c", "d e"), false).unwrap();
    assert_eq!((pair.prompt, pair.responses), (vec![BOS, 2, 3], vec![vec![4], vec![5, 6]]));
    let pair = tokens.tokens(&text("<s> a b", "c", "d e"), false).unwrap();
    assert_eq!(pair.prompt, [BOS, 2, 3]);
}

#[test]
fn what_the_tokenizer_puts_after_a_text_comes_after_the_response() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokenizer(folder.path(), &around(&["<s>"], &["</s>"]), None);
    for append_eos in [false, true] {
        let pair = tokens.tokens(&text("a b", "c", "d </s>"), append_eos).unwrap();
        assert_eq!((pair.prompt, pair.responses), (vec![BOS, 2, 3], vec![vec![4, EOS], vec![5, EOS]]));
    }
}

#[test]
fn eos_is_appended_where_asked_for_and_never_twice() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokenizer(folder.path(), &serde_json::Value::Null, None);
    let pair = tokens.tokens(&text("a", "c", "d </s>"), true).unwrap();
    assert_eq!((pair.prompt, pair.responses), (vec![2], vec![vec![4, EOS], vec![5, EOS]]));
    let pair = tokens.tokens(&text("a", "c", "d"), false).unwrap();
    assert_eq!(pair.responses[0], [4]);
}

#[test]
fn a_chat_response_is_what_the_whole_rendering_adds() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{{ bos_token }} {% for m in messages %}{{ m.role[0] }} {{ m.content }} </s> {% endfor %}\
                    {% if add_generation_prompt %}a {% endif %}";
    let tokens = tokenizer(folder.path(), &around(&["<s>"], &[]), Some(template));
    let row = br#"{"prompt": [{"role": "user", "content": "b"}], "chosen": [{"role": "assistant", "content": "c"}],
        "rejected": [{"role": "assistant", "content": "d e"}]}"#;
    let pair = parse_row(row, Form::default()).unwrap().preference;
    let pair = tokens.tokens(&pair, false).unwrap();
    // the template's BOS, not the tokenizer's as well; `u` is unknown
    assert_eq!(pair.prompt, [BOS, 12, 3, EOS, 2]);
    assert_eq!(pair.responses, [vec![4, EOS], vec![5, 6, EOS]]);
}

#[test]
fn a_template_whose_prompt_is_no_prefix_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% if add_generation_prompt %}a{% else %}b{% endif %}";
    let tokens = tokenizer(folder.path(), &serde_json::Value::Null, Some(template));
    let row = br#"{"prompt": [{"role": "user", "content": "b"}], "chosen": "c", "rejected": "d"}"#;
    let pair = parse_row(row, Form::default()).unwrap().preference;
    assert!(tokens.tokens(&pair, false).unwrap_err().contains("no prefix"));
}
