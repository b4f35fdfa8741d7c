"""Makes tests/golden/gguf_tokenizers: tokenizers as GGUF files carry them, and the ids that transformers makes of texts with
each, by its own reading of the same file.

    python tests/gguf_tokenizers.py TOKENIZER       (SmolLM2's tokenizer.json; gguf 0.19.0, transformers 5.24.0)
"""
import json, pathlib, sys
import gguf
from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping

ROOT = pathlib.Path(__file__).parent
OUT = ROOT / "golden" / "gguf_tokenizers"
TEXTS = ["Hello there, it's 2024 and we'LL see 1234567 things.", "Straße 漢字 🙂 café\n\n  indented\tword", "<|im_start|>user\nHow many?<|im_end|>",
         "a", "don't  stop   HTTPServer camelCase snake_case x/y\r\nend  "]
OUT.mkdir(parents=True, exist_ok=True)
# the special tokens, the bytes, and the first merges
known = json.loads(pathlib.Path(sys.argv[1]).read_text())
special = [token["content"] for token in known["added_tokens"]]
merges = [m if isinstance(m, str) else " ".join(m) for m in known["model"]["merges"]][:1500]
# and some across which the ways of cutting differ
merges += ["1 2", "12 3", "4 5", "45 6", "123 456", "2 0", "2 4", "20 24", "' L", "'L L", "e 'LL", "S e", "P Se", "c a", "el C", "x /", "x/ y", "d Ċ", "Ċ Ċ", "Ċ Ġ", "Ġ Ġ"]
single = [token for token, _ in sorted(known["model"]["vocab"].items(), key=lambda item: item[1]) if len(token) == 1]
tokens = list(dict.fromkeys(special + single + [merge.replace(" ", "") for merge in merges]))


def write(name, architecture, model, tokens, types, **more):
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", architecture)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if "pre" in more:
        writer.add_tokenizer_pre(more["pre"])
        writer.add_token_merges(merges)
    if "scores" in more:
        writer.add_token_scores(more["scores"])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    else:
        writer.add_eos_token_id(tokens.index("<|im_end|>"))
        writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    architecture, of, config = mapping.get_gguf_tokenizer(str(OUT / f"{name}.gguf"))
    backend, _ = mapping.convert_gguf_tokenizer(architecture, of)
    return {text: backend.encode(text, add_special_tokens=False).ids for text in TEXTS}


expected = {}
types = [3 if token in special else 1 for token in tokens]
for pre in ["llama-bpe", "qwen2", "tekken", "gpt-4o", "gpt-2"]:
    expected[pre] = write(pre, "llama", "gpt2", tokens, types, pre=pre)
# pieces of a few words, with bytes to fall back on
pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
words = "▁Hello ▁there ▁it ▁see ▁things ▁many ▁stop ▁word ▁indented ▁user ▁camel ▁we ▁and".split()
grown = sorted({word[:end] for word in words for end in range(2, len(word) + 1)} | {word[at:end] for word in words for at in range(1, len(word))
               for end in range(at + 2, len(word) + 1)}, key=lambda piece: (len(piece), piece))
letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "▁") if letter.isascii() or letter == "▁"})
pieces += grown + [letter for letter in letters if letter not in "\n\t\r"]
types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) - 259)]
expected["pieces"] = write("pieces", "llama", "llama", pieces, types, scores=scores)
spaces = pieces + ["  ", "   "]
expected["gemma"] = write("gemma", "gemma2", "llama", spaces, types + [1, 1], scores=scores + [-1000.0, -1001.0])
(OUT / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
print({name: [len(ids) for ids in of.values()] for name, of in expected.items()})
