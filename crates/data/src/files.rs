//! Which files a data set is: one file, or a folder as `datasets` saves it, as the hub lays it out, or of a user's own.
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// One JSON object a line.
    JsonLines,
    /// One JSON list of objects, or one object a line.
    Json,
    /// Comma- or tab-separated values under a header.
    Csv(u8),
    /// Parquet.
    Parquet,
    /// Arrow, as a stream or a file.
    Arrow,
}

/// Formats by the end of a file's name.
const ENDINGS: [(&str, Format); 9] = [
    ("jsonl", Format::JsonLines),
    ("ndjson", Format::JsonLines),
    ("json", Format::Json),
    ("csv", Format::Csv(b',')),
    ("tsv", Format::Csv(b'\t')),
    ("parquet", Format::Parquet),
    ("arrow", Format::Arrow),
    ("feather", Format::Arrow),
    ("ipc", Format::Arrow),
];

/// Files beside data that are no data.
const NOT_DATA: [&str; 6] = [
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "tokenizer_config.json",
];

/// Words that name a part of a data set.
const SPLITS: [&str; 7] = ["train", "test", "validation", "valid", "val", "dev", "eval"];

/// The files of a data set, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// Each with its format.
    pub files: Vec<(PathBuf, Format)>,
    /// Which of several parts was taken, where there are several and none was asked for.
    pub note: Option<String>,
}

/// The format that a file's name says; `.gz` may follow.
fn format(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    ENDINGS.iter().find(|(ending, _)| name.ends_with(&format!(".{ending}"))).map(|(_, format)| *format)
}

fn known() -> String {
    ENDINGS.map(|(ending, _)| format!(".{ending}")).join(", ")
}

impl Files {
    /// The files of a data set; `split` is the part that is asked for.
    ///
    /// # Errors
    /// Where there is no data, or the part is not there or not said.
    pub(crate) fn find(path: &Path, split: Option<&str>) -> Result<Self> {
        if path.is_dir() {
            return Self::in_folder(path, split);
        }
        if let Some(split) = split {
            return Err(Error::file(
                path,
                format!("is one file, which has no part `{split}`; leave option `split` out"),
            ));
        }
        // a name that says nothing is taken for lines of JSON
        let format = format(path).unwrap_or(Format::JsonLines);
        Ok(Self { files: vec![(path.to_owned(), format)], note: None })
    }

    fn in_folder(folder: &Path, split: Option<&str>) -> Result<Self> {
        let saved = |name: &str| -> Result<Option<Value>> {
            let path = folder.join(name);
            if !path.is_file() {
                return Ok(None);
            }
            let text = std::fs::read(&path).map_err(|e| Error::file(&path, e))?;
            serde_json::from_slice(&text).map(Some).map_err(|e| Error::file(&path, format!("not JSON: {e}")))
        };
        // `DatasetDict.save_to_disk`
        if let Some(parts) = saved("dataset_dict.json")? {
            let names = parts.get("splits").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let names = names.iter().filter_map(Value::as_str).map(str::to_owned);
            let (name, note) = choose(folder, names.collect(), split)?;
            let inside = folder.join(name.as_deref().unwrap_or_default());
            return Ok(Self { note, ..Self::in_folder(&inside, None)? });
        }
        // `Dataset.save_to_disk`
        if let Some(state) = saved("state.json")? {
            let listed = state.get("_data_files").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let names = listed.iter().filter_map(|file| file.get("filename").and_then(Value::as_str));
            let files: Vec<_> = names.map(|name| (folder.join(name), Format::Arrow)).collect();
            if let Some((missing, _)) = files.iter().find(|(path, _)| !path.is_file()) {
                return Err(Error::file(missing, "state.json names it, and it is not there"));
            }
            if let (Some(split), Some(own)) = (split, state.get("_split").and_then(Value::as_str))
                && split != own
            {
                return Err(Error::file(folder, format!("is the part `{own}`, and option `split` asks for `{split}`")));
            }
            return some(folder, Self { files, note: None });
        }
        let mut parts: BTreeMap<Option<String>, Vec<(PathBuf, Format)>> = BTreeMap::new();
        walk(folder, folder, 0, &mut parts)?;
        let names = parts.keys().flatten().cloned().collect();
        let (name, note) = choose(folder, names, split)?;
        let files = parts.remove(&name).or_else(|| parts.remove(&None)).unwrap_or_default();
        let mut formats: Vec<Format> = files.iter().map(|(_, format)| *format).collect();
        formats.dedup();
        if formats.len() > 1 {
            let found: Vec<String> =
                files.iter().map(|(path, _)| path.file_name().unwrap_or_default().display().to_string()).collect();
            let problem = format!("has files of several formats: {}; pass one of them", found.join(", "));
            return Err(Error::file(folder, problem));
        }
        some(folder, Self { files, note })
    }
}

fn some(folder: &Path, files: Files) -> Result<Files> {
    if files.files.is_empty() {
        return Err(Error::file(folder, format!("has no data files; expected files that end in {}", known())));
    }
    Ok(files)
}

/// The part that is asked for, or the one that is meant where none is.
fn choose(folder: &Path, names: Vec<String>, split: Option<&str>) -> Result<(Option<String>, Option<String>)> {
    let listed = || names.join(", ");
    match split {
        Some(split) if names.iter().any(|name| name == split) => Ok((Some(split.to_owned()), None)),
        Some(split) if names.is_empty() => {
            Err(Error::file(folder, format!("has no parts, and option `split` asks for `{split}`; leave it out")))
        }
        Some(split) => Err(Error::file(folder, format!("has no part `{split}`; it has {}", listed()))),
        None => match names.as_slice() {
            [] => Ok((None, None)),
            [one] => Ok((Some(one.clone()), None)),
            _ if names.iter().any(|name| name == "train") => Ok((
                Some("train".to_owned()),
                Some(format!("of {} the part train is taken (option `split`)", listed())),
            )),
            _ => Err(Error::file(folder, format!("has several parts: {}; choose one with option `split`", listed()))),
        },
    }
}

/// The part that a file's path inside the data set names: by the name before `-00000-of-00001`, or by a word in it.
fn split_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = name.split('.').next()?;
    let mut pieces = stem.rsplitn(4, '-');
    if let (Some(of), Some("of"), Some(number), Some(split)) =
        (pieces.next(), pieces.next(), pieces.next(), pieces.next())
        && [of, number].iter().all(|digits| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()))
    {
        return (split != "data").then(|| split.to_owned());
    }
    let words = path.components().rev().filter_map(|part| part.as_os_str().to_str());
    words.flat_map(|part| part.split(['.', '-', '_'])).find(|word| SPLITS.contains(&word.to_lowercase().as_str())).map(
        |word| match word.to_lowercase().as_str() {
            "valid" | "val" | "dev" => "validation".to_owned(),
            "eval" => "test".to_owned(),
            word => word.to_owned(),
        },
    )
}

/// Which of the files of a repository belong to a part of its data: all data files where none is asked for and none is named
/// train.
#[must_use]
pub fn wanted(names: &[String], split: Option<&str>) -> Vec<String> {
    let is_data = |name: &&String| {
        let path = Path::new(name.as_str());
        let last = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        format(path).is_some() && !NOT_DATA.contains(&last) && !name.starts_with('.')
    };
    let data: Vec<&String> = names.iter().filter(is_data).collect();
    let of = |split: &str| -> Vec<String> {
        data.iter()
            .filter(|name| split_of(Path::new(name)).as_deref() == Some(split))
            .map(|name| (*name).clone())
            .collect()
    };
    match split {
        Some(split) => of(split),
        None if !of("train").is_empty() => of("train"),
        None => data.into_iter().cloned().collect(),
    }
}

fn walk(
    folder: &Path,
    root: &Path,
    depth: usize,
    parts: &mut BTreeMap<Option<String>, Vec<(PathBuf, Format)>>,
) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::file(folder, e))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with('.') || NOT_DATA.contains(&name) {
            continue;
        }
        if path.is_dir() {
            if depth < 3 {
                walk(&path, root, depth + 1, parts)?;
            }
        } else if let Some(format) = format(&path) {
            let inside = path.strip_prefix(root).unwrap_or(&path);
            parts.entry(split_of(inside)).or_default().push((path.clone(), format));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Files, split_of};
    use std::path::Path;

    #[test]
    fn parts_are_known_by_the_hubs_names_and_by_words() {
        let of = |path: &str| split_of(Path::new(path));
        assert_eq!(of("data/train-00000-of-00002.parquet").as_deref(), Some("train"));
        assert_eq!(of("data/test_prefs-00000-of-00001.parquet").as_deref(), Some("test_prefs"));
        assert_eq!(of("data-00000-of-00001.arrow"), None);
        assert_eq!(of("harmless-base/test.jsonl.gz").as_deref(), Some("test"));
        assert_eq!(of("dev/rows.csv").as_deref(), Some("validation"));
        assert_eq!(of("pairs.jsonl"), None);
    }

    #[test]
    fn a_folder_of_parts_takes_train_and_says_so_or_asks() {
        let folder = tempfile::tempdir().unwrap();
        let add = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        let find = |split: Option<&str>| Files::find(folder.path(), split);
        assert!(find(None).unwrap_err().to_string().contains("no data files"));
        add("README.md");
        add("data/train-00001-of-00002.parquet");
        add("data/train-00000-of-00002.parquet");
        let train = find(None).unwrap();
        assert_eq!((train.files.len(), train.note), (2, None));
        assert!(train.files[0].0.ends_with("train-00000-of-00002.parquet"));
        add("data/test-00000-of-00001.parquet");
        assert!(find(None).unwrap().note.unwrap().contains("train"));
        assert_eq!(find(Some("test")).unwrap().files.len(), 1);
        assert!(find(Some("dev")).unwrap_err().to_string().contains("test, train"));
        add("data/test-00000-of-00001.csv");
        assert!(find(Some("test")).unwrap_err().to_string().contains("several formats"));
    }
}
