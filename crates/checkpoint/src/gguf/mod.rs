//! GGUF, llama.cpp's files: a header of keys and values, a list of tensors, and their blocks
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Tensors are given the names, and rows the order, that transformers has.
mod config;
mod header;
mod names;
mod tensors;
mod tokenizer;

pub(crate) use config::config;
pub(crate) use header::header;
pub(crate) use tensors::tensors;
pub use tokenizer::GgufTokenizer;
pub(crate) use tokenizer::of as tokenizer;
