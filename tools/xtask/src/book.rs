//! The book: the pages of `tools/docs/book/SUMMARY.md`, which lie with the crates that they are about, laid out for mdbook.
//!
//! Links between pages are right where the pages lie; here they are turned into those of the book. What a page links to
//! that is no page of the book goes along as a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::{Result, release, root, run_command, setup, target_dir};

#[path = "../../tests/docs/link.rs"]
mod link;

use link::resolve;

const SUMMARY: &str = "tools/docs/book/SUMMARY.md";
/// What goes along, although the tests of the book leave it out: it changes with each measurement, and names other programs.
const FURTHER: &str = "\n---\n\n- [Benchmarks](../../../benches/README.md)\n";

/// Builds the book.
pub fn run() -> Result<()> {
    let mdbook = release::tool("mdbook")?;
    let book = target_dir().join("book");
    let _ = std::fs::remove_dir_all(&book);
    setup::create(&book.join("src"))?;
    lay_out(&root(), &book.join("src"))?;
    for file in ["book.toml", "book.css"] {
        copy(&root().join("tools/docs/book").join(file), &book.join(file))?;
    }
    run_command(Command::new(mdbook).arg("build").arg(&book))?;
    println!("the book is {}", book.join("book/index.html").display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        setup::create(dir)?;
    }
    std::fs::copy(from, to).map(drop).map_err(|cause| format!("{}: {cause}", from.display()))
}

/// Writes summary, pages and files below `out`.
fn lay_out(root: &Path, out: &Path) -> Result<()> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).map_err(|cause| format!("{path}: {cause}"));
    let summary = read(SUMMARY)? + FURTHER;
    // Path in the repository -> name in the book.
    let mut pages = BTreeMap::new();
    links(&summary, |link| {
        let path = resolve(SUMMARY, link);
        let folder = path.rsplit('/').nth(1).unwrap_or_default();
        let stem = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".md").to_lowercase();
        // One that begins a folder has the folder's name, the first one the book's.
        let name = match (stem.as_str(), folder) {
            ("readme", "") => "index.md".to_string(),
            ("readme", folder) => format!("{folder}.md"),
            (stem, _) => format!("{stem}.md"),
        };
        pages.insert(path, name.clone());
        name
    });
    let write = |name: &str, text: String| {
        std::fs::write(out.join(name), text).map_err(|cause| format!("{}: {cause}", out.join(name).display()))
    };
    write("SUMMARY.md", links(&summary, |link| pages[&resolve(SUMMARY, link)].clone()))?;
    let (mut files, mut lost) = (Vec::new(), Vec::new());
    for (path, name) in &pages {
        let text = links(&read(path)?, |link| {
            let (file, anchor) =
                link.split_once('#').map_or((link, String::new()), |(file, anchor)| (file, format!("#{anchor}")));
            if file.is_empty() || file.starts_with("https://") {
                return link.to_string();
            }
            let target = resolve(path, file);
            match pages.get(&target) {
                Some(page) => format!("{page}{anchor}"),
                None if target == SUMMARY => "index.md".into(),
                None => {
                    // mdbook would make its address that of a page, which is not there.
                    if file.ends_with(".md") {
                        lost.push(format!("{path} links to {target}, which {SUMMARY} does not name"));
                    }
                    files.push(target.clone());
                    format!("files/{target}")
                }
            }
        });
        write(name, text)?;
    }
    for file in files {
        copy(&root.join(&file), &out.join("files").join(&file))?;
    }
    if lost.is_empty() { Ok(()) } else { Err(lost.join("; ")) }
}

/// The text with each link's target replaced; blocks of code are left alone.
fn links(text: &str, mut replace: impl FnMut(&str) -> String) -> String {
    let mut out = String::new();
    let mut in_code = false;
    for line in text.split_inclusive('\n') {
        in_code ^= line.trim_start().starts_with("```");
        let mut rest = line;
        while let Some(at) = rest.find("](").filter(|_| !in_code) {
            let (before, behind) = rest.split_at(at + 2);
            let Some(end) = behind.find(')') else { break };
            out += before;
            out += &replace(&behind[..end]);
            rest = &behind[end..];
        }
        out += rest;
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn links_are_replaced_outside_of_code() {
        let text = "see [a](b.md) and [c](d#e)\n```\n[x](y)\n```\n";
        let seen = links(text, |link| format!("<{link}>"));
        assert_eq!(seen, "see [a](<b.md>) and [c](<d#e>)\n```\n[x](y)\n```\n");
    }

    #[test]
    fn book_of_this_repository_is_laid_out() {
        let out = std::env::temp_dir().join(format!("antumbra-book-{}", std::process::id()));
        setup::create(&out).unwrap();
        lay_out(&root(), &out).unwrap();
        let index = std::fs::read_to_string(out.join("index.md")).unwrap();
        assert!(index.contains("](operating.md)") && index.contains("](predictor.md)"), "{index}");
        let operating = std::fs::read_to_string(out.join("operating.md")).unwrap();
        assert!(operating.contains("](files/tools/dist/node.toml)"), "{operating}");
        assert!(out.join("files/tools/dist/node.toml").is_file());
        std::fs::remove_dir_all(&out).unwrap();
    }
}
