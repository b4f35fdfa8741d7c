//! The tensors of a GGUF file, under transformers' names.
use super::config::{DIVISORS, DIVISORS_BY_LENGTH};
use super::header::{TRUNCATED, header};
use super::names::{ARCHITECTURES, Architecture, EXPERT, SHARED_GATE};
use crate::quantised::Quantised;
use crate::quantised::ggml::{Ggml, Kind};
use crate::stored::{Encoding, Place, Stored};
use std::collections::BTreeSet;

/// Most tensors of a file, each matrix of an expert one: a few bytes of a header are thousands of them.
const MOST_TENSORS: usize = 1 << 18;

/// The tensors of a file, under transformers' names.
pub(crate) fn tensors(bytes: &[u8], file: usize) -> Result<Vec<(String, Stored)>, String> {
    let header = header(bytes)?;
    let architecture = header.architecture()?;
    let Some(of) = Architecture::of(&header)? else {
        let mut known: Vec<&str> = ARCHITECTURES.iter().map(|of| of.name).collect();
        known.dedup();
        let found = crate::error::brief(architecture);
        return Err(format!("is of architecture `{found}`, which is not read from GGUF; read: {}", known.join(", ")));
    };
    let gemma = architecture.starts_with("gemma");
    let mut found = Vec::new();
    for (name, shape, kind, offset) in &header.tensors {
        // a part of the config
        if *name == DIVISORS || DIVISORS_BY_LENGTH.contains(name) {
            continue;
        }
        let named = of
            .name_of(name)
            .ok_or_else(|| format!("has a tensor `{}`, which is not known", crate::error::brief(name)))?;
        let start = header.data.checked_add(*offset).ok_or(TRUNCATED)?;
        let kind = Kind::of(*kind).ok_or_else(|| format!("`{name}` is of type {kind}; read: {}", Kind::names()))?;
        let length = shape.last().and_then(|columns| kind.bytes_of_row(*columns));
        let rows = shape.iter().rev().skip(1).try_fold(1usize, |rows, size| rows.checked_mul(*size));
        let length = length.zip(rows).and_then(|(row, rows)| row.checked_mul(rows));
        let length = length.ok_or_else(|| format!("`{name}` has rows that are no whole blocks: {shape:?}"))?;
        if start.checked_add(length as u64).is_none_or(|end| end > bytes.len() as u64) {
            return Err(format!("`{name}` ends beyond the file; copy or download it again"));
        }
        // llama.cpp rotates neighbours, and has rows of queries and keys in that order
        let heads = match name.rsplit('.').nth(1) {
            Some("attn_q") if of.neighbours => header.size("attention.head_count"),
            Some("attn_k") if of.neighbours => {
                header.size("attention.head_count_kv").or(header.size("attention.head_count"))
            }
            _ => None,
        };
        let rows = shape.first().copied().unwrap_or(0);
        let whole = |heads: usize| heads.checked_mul(2).is_some_and(|halves| halves > 0 && rows.is_multiple_of(halves));
        let apart = heads.filter(|heads| whole(*heads)).map(|heads| rows / heads);
        if heads.is_some() && apart.is_none_or(|head| head == 0) {
            return Err(format!("`{name}` has {rows} rows, which are not those of {heads:?} heads"));
        }
        // it has one more than Gemma's gains
        let minus_one = gemma && name.ends_with("norm.weight");
        // of a bias in that order every value is a row
        let columns = if shape.len() == 1 && apart.is_some() { 1 } else { shape.last().copied().unwrap_or(1) };
        let encoding = |start: u64| {
            let place = Place { file, start };
            match kind.plain().filter(|_| apart.is_none() && !minus_one) {
                Some(number) => Encoding::Plain { number, place },
                None => Encoding::Quantised(Quantised::Ggml(Ggml { kind, place, columns, head: apart, minus_one })),
            }
        };
        match (named.split_once(EXPERT), shape.as_slice()) {
            // experts lie one behind the other
            (Some((before, after)), &[experts, rows, columns])
                if length > 0 && found.len() + experts <= MOST_TENSORS =>
            {
                for expert in 0..experts {
                    let encoding = encoding(start + (length / experts * expert) as u64);
                    let stored = Stored { shape: vec![rows, columns], encoding };
                    found.push((format!("{before}{expert}{after}"), stored));
                }
            }
            (Some(_), _) => {
                return Err(format!(
                    "`{name}` is of shape {shape:?}; expected a matrix for each expert, of {MOST_TENSORS} tensors at the most"
                ));
            }
            (None, &[columns]) if name.contains(SHARED_GATE) => {
                found.push((named, Stored { shape: vec![1, columns], encoding: encoding(start) }));
            }
            (None, _) => found.push((named, Stored { shape: shape.clone(), encoding: encoding(start) })),
        }
    }
    let mut names = BTreeSet::new();
    if let Some((name, _)) = found.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(format!("has two tensors that are `{name}`"));
    }
    Ok(found)
}
