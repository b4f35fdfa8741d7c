//! Stored tensors against the values that torch and bitsandbytes make of them, to the bit (`tests/checkpoint_values.py`); and pickles that are
//! refused by name.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::{Codes, Layout, Tensors};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoints").join(name)
}

/// The bits of every value, by name, in the order of rows and in that of columns.
fn bits(tensors: &Tensors, name: &str, layout: Layout) -> Vec<u32> {
    tensors.read::<f32>(name, layout).unwrap().into_iter().map(f32::to_bits).collect()
}

/// Ways of quantising that have codes.
const CODED: [&str; 11] = [
    "nf4",
    "nf4 with quantised factors",
    "fp4",
    "fp4 with quantised factors",
    "int8",
    "fp8",
    "Q4_0",
    "Q8_0",
    "Q4_K",
    "Q5_K",
    "Q6_K",
];

/// Words that codes take: their bits, a number a block, twice where something is taken off, and the table.
fn words(codes: &Codes) -> usize {
    let numbers = codes.factors.len() + codes.least.len() + (1 << codes.bits());
    codes.codes.len() * codes.bits() / 32 + numbers
}

fn same(name: &str) {
    let tensors = Tensors::open(&folder(name), "model").unwrap().put_together(Some([128, 128])).unwrap();
    let values = Tensors::open(&folder(name), "values").unwrap();
    let names = |of: &Tensors| of.names().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(names(&tensors), names(&values));
    for tensor in values.names() {
        let (of, want) = (tensors.get(tensor).unwrap(), values.get(tensor).unwrap());
        assert_eq!(of.shape(), want.shape(), "{name} {tensor}");
        let layouts = if want.shape().len() == 2 { &[Layout::Same, Layout::Transposed][..] } else { &[Layout::Same] };
        for &layout in layouts {
            let (got, want) = (bits(&tensors, tensor, layout), bits(&values, tensor, layout));
            let apart = got.iter().zip(&want).position(|(got, want)| got != want);
            let found = apart.map(|at| (at, f32::from_bits(got[at]), f32::from_bits(want[at])));
            assert!(found.is_none() && got.len() == want.len(), "{name} {tensor} {layout:?}: {found:?}");
        }
        // the same as codes, where there are some: rows of them are outputs, as they are stored
        let codes = tensors.codes(tensor, Layout::Transposed, f32::MAX).unwrap();
        let fill_words = want.shape().len() == 2 && want.shape()[1].is_multiple_of(8);
        assert_eq!(codes.is_some(), CODED.contains(&of.kind()) && fill_words, "{name} {tensor}");
        if let Some(codes) = codes {
            let got: Vec<u32> = codes.values().into_iter().map(f32::to_bits).collect();
            assert!(got == bits(&values, tensor, Layout::Same), "{name} {tensor}");
            assert_eq!(codes.words().len(), words(&codes), "{name} {tensor}");
        }
        // one matrix, or row, of a stack by itself
        if let [first, rest @ ..] = want.shape()
            && !rest.is_empty()
        {
            let all = bits(&values, tensor, Layout::Same);
            let one = Layout::Part { index: first - 1, first: 0, every: 1 };
            assert!(bits(&tensors, tensor, one) == all[all.len() / first * (first - 1)..], "{name} {tensor}");
        }
    }
}

#[test]
fn what_torch_saves() {
    ["zip", "legacy", "nested"].into_iter().for_each(same);
}

#[test]
fn what_bitsandbytes_quantises() {
    ["four_bits", "eight_bits"].into_iter().for_each(same);
}

#[test]
fn eight_bits_of_floating_point() {
    same("fp8");
}

#[test]
fn what_llama_cpp_writes() {
    ["gguf", "gguf_gemma"].into_iter().for_each(same);
}

/// What a GGUF file says of its model, as a config.
#[test]
fn a_gguf_file_has_a_config() {
    let (_, config) = tanglescope_checkpoint::gguf_config(&folder("gguf")).unwrap().unwrap();
    for (key, want) in [
        ("model_type", serde_json::json!("llama")),
        ("hidden_size", 256.into()),
        ("num_key_value_heads", 2.into()),
        ("vocab_size", 9.into()),
        ("rms_norm_eps", 1e-5.into()),
        ("tie_word_embeddings", true.into()),
    ] {
        assert_eq!(config[key], want, "{key}");
    }
}

/// A folder whose `pytorch_model.bin` is some pickle behind what torch wrote before 1.6, with one storage of four values behind it where
/// their bytes are given.
fn legacy(pickle: &[u8], storage: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.";
    let keys: &[u8] = match storage {
        [] => b"\x80\x02]q\x00.",
        _ => b"\x80\x02]X\x01\0\0\x000a.\x04\0\0\0\0\0\0\0",
    };
    std::fs::write(folder.path().join("pytorch_model.bin"), [magic, pickle, keys, storage].concat()).unwrap();
    folder
}

/// The same for one tensor `a` of the storage, of a type, by pickles of its offset, its size and its stride.
fn one_tensor(kind: &str, [offset, size, stride]: [&str; 3], storage: &[u8]) -> tempfile::TempDir {
    let of = format!("((X\x07\0\0\0storagectorch\n{kind}\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04NtQ");
    let text =
        format!("\u{80}\x02}}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n{of}{offset}{size}{stride}\u{89}}}tRs.");
    // each character below 256 is a byte
    let pickle: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    legacy(&pickle, storage)
}

fn refusal(pickle: &[u8]) -> String {
    Tensors::open(legacy(pickle, &[]).path(), "model").unwrap_err().to_string()
}

/// What a pickle would call is named and not called, whatever the protocol and wherever the call stands.
#[test]
fn pickles_that_call_are_refused_by_name() {
    for (pickle, name) in [
        (&b"cos\nsystem\n(S'touch /tmp/pickled'\ntR."[..], "`os.system`"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x0c__import__()\x85R.", "`builtins.eval`"),
        (b"\x80\x02c__builtin__\nexec\nX\x01\x00\x00\x00a\x85R.", "`builtins.exec`"),
        (b"\x80\x02}X\x01\x00\x00\x00acsubprocess\nPopen\n]\x85Rs.", "`subprocess.Popen`"),
        (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81}b.", "`torch.nn.modules.linear.Linear`"),
        (b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n)Rs.", "`torch._utils._rebuild_tensor_v2`"),
        (
            b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(NK\x00K\x01K\x01\x89NtRs.",
            "`torch._utils._rebuild_tensor_v2`",
        ),
        (b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_parameter\n)Rs.", "`torch._utils._rebuild_parameter`"),
        (b"(S'a'\nios\nsystem\n.", "0x69"),
        (b"\x80\x02\x82\x01.", "0x82"),
    ] {
        let problem = refusal(pickle);
        assert!(problem.contains(name), "{name}: {problem}");
    }
    assert!(!Path::new("/tmp/pickled").exists());
}

/// A tensor does not reach beyond its storage, whatever its sizes and strides say.
#[test]
fn a_tensor_ends_with_its_storage() {
    for (offset, size, stride) in [
        ("K\x01", "K\x04\u{85}", "K\x01\u{85}"),
        ("K\0", "K\x02\u{85}", "J\u{ff}\u{ff}\u{ff}\x7f\u{85}"),
        ("J\u{ff}\u{ff}\u{ff}\u{ff}", "K\x01\u{85}", "K\x01\u{85}"),
        (
            "K\0",
            "\u{8a}\x08\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\x7f\u{85}",
            "\u{8a}\x08\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\x7f\u{85}",
        ),
    ] {
        let folder = one_tensor("FloatStorage", [offset, size, stride], &[0; 16]);
        let problem = Tensors::open(folder.path(), "model").unwrap_err().to_string();
        assert!(problem.contains("beyond its storage") || problem.contains("with arguments that"), "{problem}");
    }
}

/// States that a trainer has to convert are named with its command.
#[test]
fn states_of_ranks_are_named_with_their_converter() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str| {
        let file = folder.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "").unwrap();
    };
    let refusal = |path: &str| Tensors::open(&folder.path().join(path), "model").unwrap_err().to_string();
    write("actor/model_world_size_2_rank_0.pt");
    write("actor/model_world_size_2_rank_1.pt");
    write("actor/huggingface/config.json");
    for at in ["actor", "actor/huggingface"] {
        assert!(refusal(at).contains("python -m verl.model_merger merge"), "{}", refusal(at));
    }
    write("checkpoint-5/global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt");
    write("checkpoint-5/zero_to_fp32.py");
    assert!(refusal("checkpoint-5").contains("python zero_to_fp32.py"), "{}", refusal("checkpoint-5"));
    write("iter_0000100/mp_rank_00/model_optim_rng.pt");
    assert!(refusal("iter_0000100").contains("export_ckpt"), "{}", refusal("iter_0000100"));
}

/// Whole numbers are no weights, whether they lie side by side or apart.
#[test]
fn whole_numbers_are_no_weights() {
    for stride in ["K\x01\u{85}", "K\x02\u{85}"] {
        let folder = one_tensor("CharStorage", ["K\0", "K\x02\u{85}", stride], &[1; 4]);
        let tensors = Tensors::open(folder.path(), "model").unwrap();
        let problem = tensors.read::<f32>("a", Layout::Same).unwrap_err().to_string();
        assert!(problem.contains("stored as I8"), "{problem}");
    }
}
