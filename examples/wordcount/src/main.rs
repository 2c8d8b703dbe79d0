//! Counts lines, words and bytes of the text files in a folder.
//!
//! A plain program: parameters as JSON on stdin, the folder as its argument, counts as JSON on stdout.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Parameters {
    /// Only files with this ending.
    ending: String,
    /// How many of the most frequent words are listed.
    top: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            ending: ".md".to_string(),
            top: 10,
        }
    }
}

#[derive(Default, Debug, PartialEq, Serialize)]
struct Counts {
    files: usize,
    lines: usize,
    words: usize,
    bytes: usize,
    top: Vec<Word>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Word {
    word: String,
    count: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args()
        .nth(1)
        .ok_or("the folder to count in is missing")?;
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let parameters: Parameters = if text.trim().is_empty() {
        Parameters::default()
    } else {
        serde_json::from_str(&text)?
    };
    let mut found = Vec::new();
    read(Path::new(&folder), &parameters.ending, &mut found)?;
    let counts = count(&found, parameters.top);
    eprintln!("counted {} files in {folder}", counts.files);
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &counts)?;
    Ok(writeln!(out)?)
}

/// Reads every text file below a folder; what is no UTF-8 is passed over.
fn read(folder: &Path, ending: &str, found: &mut Vec<String>) -> Result<(), Box<dyn Error>> {
    let entries =
        fs::read_dir(folder).map_err(|cause| format!("`{}`: {cause}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        paths.push((entry.path(), entry.file_type()?));
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, kind) in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if kind.is_dir() && !name.starts_with('.') && name != "target" {
            read(&path, ending, found)?;
        } else if kind.is_file() && name.ends_with(ending) {
            match String::from_utf8(fs::read(&path)?) {
                Ok(text) => found.push(text),
                Err(_) => eprintln!("passed over {}: not UTF-8", path.display()),
            }
        }
    }
    Ok(())
}

fn count(texts: &[String], top: usize) -> Counts {
    let mut counts = Counts {
        files: texts.len(),
        ..Counts::default()
    };
    let mut words: HashMap<String, usize> = HashMap::new();
    for text in texts {
        counts.bytes += text.len();
        counts.lines += text.lines().count();
        for word in text.split_whitespace() {
            counts.words += 1;
            let word = word.trim_matches(|letter: char| !letter.is_alphanumeric());
            if !word.is_empty() {
                *words.entry(word.to_lowercase()).or_default() += 1;
            }
        }
    }
    let mut frequent: Vec<Word> = words
        .into_iter()
        .map(|(word, count)| Word { word, count })
        .collect();
    frequent.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.word.cmp(&b.word)));
    frequent.truncate(top);
    counts.top = frequent;
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_without_case_and_punctuation() {
        let texts = [
            "One two, two.\nTWO!".to_string(),
            "one - four\n".to_string(),
        ];
        let counts = count(&texts, 2);
        assert_eq!(
            (counts.files, counts.lines, counts.words, counts.bytes),
            (2, 3, 7, 29)
        );
        let top: Vec<(&str, usize)> = counts
            .top
            .iter()
            .map(|word| (word.word.as_str(), word.count))
            .collect();
        assert_eq!(top, [("two", 3), ("one", 2)]);
    }

    #[test]
    fn files_are_found_by_their_ending() {
        let mut found = Vec::new();
        read(Path::new("src"), ".rs", &mut found).unwrap();
        assert!(found.len() == 1 && found[0].contains("fn main"));
        let gone = read(Path::new("gone"), ".rs", &mut found).unwrap_err();
        assert!(gone.to_string().starts_with("`gone`: "), "{gone}");
    }
}
