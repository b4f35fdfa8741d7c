//! Where special tokens go, and where a response begins, with a tokenizer of whole words.
use serde_json::json;
use std::path::Path;
use tanglescope_data::{
    Eos, Form, Preference, Recipe, RecipeName, Setting, TextTokens, Tokens, Truncate, Unusable, parse_row,
};

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
    TextTokens::open(&[folder]).unwrap()
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

const APART: Recipe = RecipeName::Apart.recipe();

/// Prompt and responses by a recipe.
fn made(recipe: &Recipe, row: &Preference, of: &TextTokens) -> (Vec<u32>, Vec<Vec<u32>>) {
    let Tokens { prompt, responses, .. } = recipe.tokens(row, &Setting::default(), of).unwrap();
    (prompt, responses)
}

fn text(prompt: &str, chosen: &str, rejected: &str) -> Preference {
    Preference::Text { prompt: prompt.to_owned(), responses: vec![chosen.to_owned(), rejected.to_owned()] }
}

#[test]
fn bos_comes_with_the_prompt_and_never_twice() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokenizer(folder.path(), &around(&["<s>"], &[]), None);
    let pair = made(&APART, &text("a b", "c", "d e"), &tokens);
    assert_eq!(pair, (vec![BOS, 2, 3], vec![vec![4], vec![5, 6]]));
    let pair = made(&APART, &text("<s> a b", "c", "d e"), &tokens);
    assert_eq!(pair.0, [BOS, 2, 3]);
}

#[test]
fn what_the_tokenizer_puts_after_a_text_comes_after_the_response() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokenizer(folder.path(), &around(&["<s>"], &["</s>"]), None);
    for append_eos in [false, true] {
        let recipe = Recipe { eos: if append_eos { Eos::Id } else { Eos::None }, ..APART };
        let pair = made(&recipe, &text("a b", "c", "d </s>"), &tokens);
        assert_eq!(pair, (vec![BOS, 2, 3], vec![vec![4, EOS], vec![5, EOS]]));
    }
}

#[test]
fn eos_is_appended_where_asked_for_and_never_twice() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokenizer(folder.path(), &serde_json::Value::Null, None);
    let pair = made(&Recipe { eos: Eos::Id, ..APART }, &text("a", "c", "d </s>"), &tokens);
    assert_eq!(pair, (vec![2], vec![vec![4, EOS], vec![5, EOS]]));
    let pair = made(&APART, &text("a", "c", "d"), &tokens);
    assert_eq!(pair.1[0], [4]);
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
    let pair = made(&APART, &pair, &tokens);
    // the template's BOS, not the tokenizer's as well; `u` is unknown
    assert_eq!(pair.0, [BOS, 12, 3, EOS, 2]);
    assert_eq!(pair.1, [vec![4, EOS], vec![5, 6, EOS]]);
}

/// TRL's rule: the response begins where the renderings of prompt and conversation part.
#[test]
fn a_prompt_that_is_no_prefix_ends_where_the_texts_part() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{{ bos_token }} {% for m in messages %}{% if m.role == 'user' %}a {{ m.content }} {% else %}b {{ m.content }} \
                    {% endif %}{% endfor %}{% if add_generation_prompt %}b i j {% endif %}";
    let tokens = tokenizer(folder.path(), &serde_json::Value::Null, Some(template));
    let row = br#"{"prompt": [{"role": "user", "content": "c"}], "chosen": "d", "rejected": "i e"}"#;
    let pair = parse_row(row, Form::default()).unwrap().preference;
    for recipe in [RecipeName::Trl, RecipeName::Apart] {
        // `<s> a c b`, and the `i` that only the generation prompt and one response have
        let want = (vec![BOS, 2, 4, 3], vec![vec![5], vec![10, 6]]);
        assert_eq!(made(&recipe.recipe(), &pair, &tokens), want);
    }
    // as many tokens as the prompt has by itself stay before the response
    let by_length = RecipeName::Trl029.recipe();
    assert_eq!(made(&by_length, &pair, &tokens).0, [BOS, 2, 4, 3, 10, 11]);
}

/// What each recipe makes of one row: EOS, special tokens, and lengths.
#[test]
fn recipes_end_responses_and_cut_rows_as_their_trainers_do() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = tokenizer(folder.path(), &around(&["<s>"], &[]), None);
    let row = text("a b c", " d e\n", " f");
    let of = |name: RecipeName| made(&name.recipe(), &row, &tokens);
    assert_eq!(of(RecipeName::Trl), (vec![BOS, 2, 3, 4], vec![vec![5, 6, EOS], vec![7, EOS]]));
    assert_eq!(of(RecipeName::Trl024), (vec![2, 3, 4], vec![vec![5, 6, EOS], vec![7, EOS]]));
    assert_eq!(of(RecipeName::OpenRlhf), (vec![2, 3, 4], vec![vec![5, 6, EOS], vec![7, EOS]]));
    assert_eq!(of(RecipeName::Apart), (vec![BOS, 2, 3, 4], vec![vec![5, 6], vec![7]]));
    // responses are cut at their ends, each by itself
    let trl = |most: usize| Recipe { max_length: Some(most), ..RecipeName::Trl.recipe() };
    let cut = trl(5).tokens(&row, &Setting::default(), &tokens).unwrap();
    assert_eq!((cut.prompt.len(), cut.responses, cut.cut.responses), (4, vec![vec![5], vec![7]], vec![2, 1]));
    let dropped = trl(4).tokens(&row, &Setting::default(), &tokens).unwrap_err();
    assert!(matches!(dropped, Unusable::Dropped(why) if why.contains("max_length")));
    // OpenRLHF puts EOS where it cuts
    let short = Recipe { max_length: Some(6), ..RecipeName::OpenRlhf.recipe() };
    let long = text("a b c", " d e f g", " f");
    assert_eq!(made(&short, &long, &tokens).1, [vec![5, 6, EOS], vec![7, EOS]]);
    // prompts lose their beginning, for the longest response
    let prompt = Recipe { max_length: Some(5), truncate: Truncate::Prompt, ..RecipeName::Trl024.recipe() };
    let cut = prompt.tokens(&row, &Setting::default(), &tokens).unwrap();
    assert_eq!((cut.prompt, cut.cut.prompt), (vec![3, 4], 1));
    // `infer_seqlen(3, 4, 4)`: int(4 · 4/7) = 2 of the response, 2 of the prompt
    let both = Recipe { max_length: Some(4), truncate: Truncate::Both, ..APART };
    let cut = both.tokens(&long, &Setting::default(), &tokens).unwrap();
    assert_eq!((cut.prompt, cut.responses), (vec![BOS, 2], vec![vec![5, 6], vec![7]]));
    let refused = Recipe { max_length: Some(4), ..APART }.tokens(&row, &Setting::default(), &tokens).unwrap_err();
    assert!(matches!(refused, Unusable::Bad(why) if why.contains("truncate")));
}
