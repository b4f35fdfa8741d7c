//! The recipe `trl` against ids that TRL made (tests/trl_values.py), row by row.
use crate::support::repository;
use serde_json::Value;
use tanglescope_data::{Dataset, Limits, Reading, Recipe};

const LIMITS: Limits = Limits { vocabulary: 1 << 20, positions: 1 << 20 };

#[test]
fn ids_are_those_of_trls_prepared_data_sets() {
    let folder = repository("tests/golden/trl");
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let (mut made, mut dropped) = (0, 0);
    for name in names {
        // NAME-ids-MOST.jsonl was made of NAME.jsonl
        let Some((set, most)) = name.strip_suffix(".jsonl").and_then(|name| name.split_once("-ids-")) else { continue };
        let recipe = Recipe { max_length: Some(most.parse().unwrap()), ..Recipe::default() };
        let reading = Reading { recipe, ..Reading::default() };
        let found = Dataset::read(&folder.join(format!("{set}.jsonl")), &[&folder], &reading, LIMITS).unwrap();
        let text = std::fs::read_to_string(folder.join(&name)).unwrap();
        let want: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let got: Vec<Value> = found
            .pairs
            .iter()
            .map(|pair| pair.unwrap().tokens)
            .map(
                |of| serde_json::json!({"prompt_ids": of.prompt, "chosen_ids": of.chosen, "rejected_ids": of.rejected}),
            )
            .collect();
        assert_eq!(got, want, "{name}");
        made += 1;
        dropped += found.skipped.iter().filter(|skipped| skipped.dropped).count();
    }
    // some of the limits leave some prompts no room
    assert!(made >= 11 && dropped > 0, "{made} sets, {dropped} rows dropped");
}
