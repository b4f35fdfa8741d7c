//! Tokenizers that GGUF files carry, against what transformers makes of the same files (tests/gguf_tokenizers.py).
use serde_json::Value;
use std::path::Path;
use tanglescope_data::{TextTokens, has_tokenizer};

#[test]
fn a_gguf_file_is_a_tokenizer_where_there_is_no_other() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf_tokenizers");
    let expected: Value = serde_json::from_slice(&std::fs::read(golden.join("expected.json")).unwrap()).unwrap();
    for (name, texts) in expected.as_object().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_tokenizer(&[folder.path()]));
        std::fs::copy(golden.join(format!("{name}.gguf")), folder.path().join("model.gguf")).unwrap();
        assert!(has_tokenizer(&[folder.path()]));
        let tokens = TextTokens::open(&[folder.path()]).unwrap();
        for (text, ids) in texts.as_object().unwrap() {
            let wanted: Vec<u32> =
                ids.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect();
            assert_eq!(tokens.encode(text, false).unwrap(), wanted, "{name}: {text}");
        }
    }
}
