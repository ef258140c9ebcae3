//! The README and the book as the checks see them: blocks, spans, links, tables, headings, each with its line.

use std::path::{Path, PathBuf};

#[path = "link.rs"]
mod link;

pub use link::resolve;
use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// The list of the book's pages.
pub const SUMMARY: &str = "tools/docs/book/SUMMARY.md";

/// A fenced block.
pub struct Block {
    /// What stands behind the fence: a language, and words behind commas.
    pub info: String,
    pub line: usize,
    pub text: String,
}

/// A table.
#[derive(Default)]
pub struct Table {
    /// The nearest heading above it.
    pub heading: String,
    /// Cells as plain text; code spans are left out of `figures` and are in `cells`.
    pub rows: Vec<Row>,
}

/// A row of a table.
#[derive(Default)]
pub struct Row {
    pub line: usize,
    pub cells: Vec<String>,
    /// The same cells without their code spans.
    pub figures: Vec<String>,
}

/// One page.
pub struct Page {
    /// From the repository's root.
    pub path: String,
    pub blocks: Vec<Block>,
    /// Code spans with their lines.
    pub spans: Vec<(usize, String)>,
    /// Text outside of code, by paragraph, heading or cell, with its line.
    pub prose: Vec<(usize, String)>,
    pub links: Vec<(usize, String)>,
    pub tables: Vec<Table>,
    /// Anchors of the headings, as GitHub and mdBook make them.
    pub anchors: Vec<String>,
    /// Each heading with the code spans and the prose below it, up to the next heading.
    pub sections: Vec<Section>,
}

/// What stands below a heading.
#[derive(Default)]
pub struct Section {
    pub line: usize,
    pub code: Vec<String>,
    pub prose: Vec<String>,
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The README and every page that the book's summary names.
pub fn all() -> Vec<Page> {
    let mut pages = vec![Page::read("README.md")];
    let summary = Page::read(SUMMARY);
    for (_, link) in &summary.links {
        pages.push(Page::read(&resolve(SUMMARY, link)));
    }
    pages
}

impl Page {
    /// Whether it belongs to README and book alone. The other pages of the book are the crates' references.
    pub fn is_own(&self) -> bool {
        self.path == "README.md" || self.path.starts_with("tools/docs/book/")
    }

    pub fn read(path: &str) -> Page {
        let full = root().join(path);
        let text = std::fs::read_to_string(&full).unwrap_or_else(|cause| panic!("{}: {cause}", full.display()));
        Page::parse(path, &text)
    }

    pub fn parse(path: &str, text: &str) -> Page {
        let mut page = Page {
            path: path.to_string(),
            blocks: Vec::new(),
            spans: Vec::new(),
            prose: Vec::new(),
            links: Vec::new(),
            tables: Vec::new(),
            anchors: Vec::new(),
            sections: vec![Section::default()],
        };
        let line_of = |offset: usize| text[..offset].matches('\n').count() + 1;
        let (mut heading, mut words, mut title) = (String::new(), String::new(), String::new());
        let (mut in_block, mut in_heading, mut in_cell) = (false, false, false);
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = line_of(range.start);
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match kind {
                        CodeBlockKind::Fenced(info) => info.to_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    page.blocks.push(Block { info, line, text: String::new() });
                    in_block = true;
                }
                Event::End(TagEnd::CodeBlock) => in_block = false,
                Event::Text(more) if in_block => {
                    if let Some(block) = page.blocks.last_mut() {
                        block.text += &more;
                    }
                    page.section().code.push(more.to_string());
                }
                Event::Start(Tag::Heading { level, .. }) => {
                    (in_heading, title) = (true, String::new());
                    if level != HeadingLevel::H1 || page.sections.len() == 1 {
                        page.sections.push(Section { line, ..Section::default() });
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    in_heading = false;
                    page.anchors.push(anchor(&title));
                    heading.clone_from(&title);
                    page.take(line, &mut words);
                }
                Event::Start(Tag::Table(_)) => {
                    page.tables.push(Table { heading: heading.clone(), rows: Vec::new() });
                }
                Event::Start(Tag::TableRow | Tag::TableHead) => {
                    if let Some(table) = page.tables.last_mut() {
                        table.rows.push(Row { line, ..Row::default() });
                    }
                }
                Event::Start(Tag::TableCell) => {
                    in_cell = true;
                    if let Some(row) = page.row() {
                        row.cells.push(String::new());
                        row.figures.push(String::new());
                    }
                }
                Event::End(TagEnd::TableCell) => {
                    in_cell = false;
                    page.take(line, &mut words);
                }
                Event::Text(more) => {
                    words += &more;
                    title += if in_heading { &more } else { "" };
                    if in_cell && let Some(row) = page.row() {
                        append(&mut row.cells, &more);
                        append(&mut row.figures, &more);
                    }
                }
                Event::Code(code) => {
                    title += if in_heading { &code } else { "" };
                    if in_cell && let Some(row) = page.row() {
                        append(&mut row.cells, &code);
                    }
                    page.section().code.push(code.to_string());
                    page.spans.push((line, code.to_string()));
                    words.push(' ');
                }
                Event::SoftBreak | Event::HardBreak => words.push(' '),
                Event::Start(Tag::Link { dest_url, .. }) => page.links.push((line, dest_url.to_string())),
                Event::End(TagEnd::Paragraph | TagEnd::Item) => page.take(line, &mut words),
                _ => {}
            }
        }
        page
    }

    fn section(&mut self) -> &mut Section {
        let last = self.sections.len() - 1;
        &mut self.sections[last]
    }

    fn row(&mut self) -> Option<&mut Row> {
        self.tables.last_mut()?.rows.last_mut()
    }

    fn take(&mut self, line: usize, words: &mut String) {
        let words = std::mem::take(words);
        if !words.trim().is_empty() {
            self.section().prose.push(words.clone());
            self.prose.push((line, words));
        }
    }
}

fn append(cells: &mut [String], more: &str) {
    if let Some(cell) = cells.last_mut() {
        cell.push_str(more);
    }
}

fn anchor(title: &str) -> String {
    let kept = |sign: char| match sign {
        ' ' => Some('-'),
        sign if sign.is_alphanumeric() || sign == '-' || sign == '_' => Some(sign.to_ascii_lowercase()),
        _ => None,
    };
    title.chars().filter_map(kept).collect()
}

/// A command line of a `sh` block: its words, and whether it is complete (no `..` for what is left out).
pub struct CommandLine {
    pub line: usize,
    pub words: Vec<String>,
    pub is_whole: bool,
}

/// The commands of a block: comments, settings of the environment and redirections are gone, continued lines are joined,
/// pipelines and lists are taken apart.
pub fn commands(block: &Block) -> Vec<CommandLine> {
    let mut found = Vec::new();
    let mut joined = String::new();
    for (number, text) in block.text.lines().enumerate() {
        joined += text.strip_suffix('\\').unwrap_or(text);
        if text.ends_with('\\') {
            continue;
        }
        for words in split(&std::mem::take(&mut joined)) {
            let is_whole = !words.iter().any(|word| word == "..");
            let words = words.into_iter().filter(|word| word != "..").collect();
            found.push(CommandLine { line: block.line + 1 + number, words, is_whole });
        }
    }
    found
}

/// Takes one line apart, as a shell would.
pub fn split(line: &str) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = vec![Vec::new()];
    let (mut word, mut quote) = (None::<String>, None);
    let push = |all: &mut Vec<Vec<String>>, word: &mut Option<String>| {
        if let (Some(word), Some(last)) = (word.take(), all.last_mut()) {
            last.push(word);
        }
    };
    for sign in line.chars() {
        match (sign, quote) {
            (sign, Some(open)) if sign == open => quote = None,
            (sign, Some(_)) => word.get_or_insert_default().push(sign),
            ('\'' | '"', None) => {
                quote = Some(sign);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (' ', None) => push(&mut all, &mut word),
            ('|' | ';' | '&', None) => {
                push(&mut all, &mut word);
                all.push(Vec::new());
            }
            (sign, None) => word.get_or_insert_default().push(sign),
        }
    }
    push(&mut all, &mut word);
    for words in &mut all {
        if let Some(place) = words.iter().position(|word| word.starts_with('>') || word.starts_with('<')) {
            words.truncate(place);
        }
        let is_setting = |word: &String| {
            word.split_once('=')
                .is_some_and(|(name, _)| name.chars().all(|sign| sign.is_ascii_uppercase() || sign == '_'))
        };
        while words.first().is_some_and(is_setting) {
            words.remove(0);
        }
    }
    all.retain(|words| !words.is_empty());
    all
}
