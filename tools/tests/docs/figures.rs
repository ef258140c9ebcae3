//! Figures on the pages of README and book come from results that a named command has written (`cargo xtask results`), or from
//! the code; `tools/docs/figures.toml` says from where. The crates' reference pages name a test or a command in each section
//! that has figures.

use serde::Deserialize;
use serde_json::Value;

use crate::pages::{self, Page, Row, Section, root};

/// What a page quotes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sources {
    row: Vec<Measured>,
    fact: Vec<Fact>,
}

/// A row of a table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    page: String,
    /// Its first cell.
    row: String,
    /// `benches/results/NAME.json`.
    results: String,
    /// Where each of the row's numbers is in the report: a JSON pointer, of which `list?field.field=value` takes the median of all
    /// that match, and behind it `/ 1000`, `* 100` or `/ POINTER`.
    values: Vec<String>,
}

/// A number with a unit that is no measurement.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fact {
    page: String,
    /// As it stands on the page.
    text: String,
    /// The file that makes it so, and what stands there.
    file: String,
    code: String,
}

fn sources() -> Sources {
    let text = std::fs::read_to_string(root().join("tools/docs/figures.toml")).unwrap();
    toml::from_str(&text).unwrap_or_else(|cause| panic!("tools/docs/figures.toml: {cause}"))
}

fn results(name: &str) -> Value {
    let path = root().join(format!("benches/results/{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// All values that a pointer leads to.
fn find<'a>(value: &'a Value, steps: &[&str], found: &mut Vec<&'a Value>) {
    let Some((step, rest)) = steps.split_first() else {
        return found.push(value);
    };
    let (name, wanted) = step.split_once('?').map_or((*step, None), |(name, wanted)| (name, Some(wanted)));
    let Some(next) = value.pointer(&format!("/{name}")) else { return };
    match (wanted.and_then(|wanted| wanted.split_once('=')), next.as_array()) {
        (Some((field, wanted)), Some(all)) => {
            let is = |one: &&Value| {
                one.pointer(&format!("/{}", field.replace('.', "/"))).is_some_and(|found| found == wanted)
            };
            all.iter().filter(is).for_each(|one| find(one, rest, found));
        }
        _ => find(next, rest, found),
    }
}

fn number(report: &Value, pointer: &str) -> Option<f64> {
    let mut found = Vec::new();
    find(report, &pointer.split('/').skip(1).collect::<Vec<_>>(), &mut found);
    let mut numbers: Vec<f64> = found.iter().filter_map(|value| value.as_f64()).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

fn evaluate(report: &Value, expression: &str) -> Option<f64> {
    let mut words = expression.split_whitespace();
    let mut value = number(report, words.next()?)?;
    while let Some(sign) = words.next() {
        let word = words.next()?;
        let by = if word.starts_with('/') { number(report, word)? } else { word.parse().ok()? };
        value = match sign {
            "/" => value / by,
            "*" => value * by,
            _ => return None,
        };
    }
    Some(value)
}

/// The numbers of a text as they stand there: `1,234.5`, not those inside of a word.
fn numbers(text: &str) -> Vec<String> {
    let signs: Vec<char> = text.chars().collect();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < signs.len() {
        if !signs[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let start = at;
        let goes_on = |at: usize| {
            signs.get(at).is_some_and(|sign| {
                sign.is_ascii_digit()
                    || (matches!(sign, ',' | '.') && signs.get(at + 1).is_some_and(char::is_ascii_digit))
            })
        };
        while goes_on(at) {
            at += 1;
        }
        let in_word = start > 0 && (signs[start - 1].is_alphanumeric() || signs[start - 1] == '_');
        if !in_word {
            found.push(signs[start..at].iter().collect());
        }
    }
    found
}

/// Whether a number as it is written is the value, to the places that are written.
fn is(written: &str, value: f64) -> bool {
    let places = written.split_once('.').map_or(0, |(_, places)| places.len());
    let plain: String = written.chars().filter(|sign| *sign != ',').collect();
    plain.parse::<f64>().is_ok_and(|written| format!("{written:.places$}") == format!("{value:.places$}"))
}

/// Why a row is not what was measured, if it is not.
fn wrong(row: &Row, report: &Value, values: &[String]) -> Option<String> {
    let written = numbers(&row.figures[1..].join(" "));
    if written.len() != values.len() {
        return Some(format!("{} numbers, {} in figures.toml: {written:?}", written.len(), values.len()));
    }
    written.iter().zip(values).find_map(|(written, expression)| match evaluate(report, expression) {
        None => Some(format!("the report has no {expression}")),
        Some(value) if is(written, value) => None,
        Some(value) => Some(format!("{written} stands there, {value} was measured ({expression})")),
    })
}

#[test]
fn measured_figures_are_those_of_the_results() {
    let (sources, pages) = (sources(), pages::all());
    for measured in &sources.row {
        let place = format!("{}: '{}'", measured.page, measured.row);
        let page = pages.iter().find(|page| page.path == measured.page).unwrap_or_else(|| panic!("{place}: no page"));
        let mut tables = page.tables.iter().filter(|table| table.rows.iter().any(|row| row.cells[0] == measured.row));
        let table = tables.next_back().unwrap_or_else(|| panic!("{place}: there is no such row"));
        let row = table.rows.iter().find(|row| row.cells[0] == measured.row).unwrap();
        let all = results(&measured.results);
        if let Some(what) = wrong(row, &all["report"], &measured.values) {
            panic!("{place}: {what}; `{}` writes the file anew", all["made_by"].as_str().unwrap());
        }
        // Who reads it sees how it was made.
        let (command, file) = (all["command"].as_str().unwrap(), format!("benches/results/{}.json", measured.results));
        assert!(page.spans.iter().any(|(_, span)| span == command), "{place}: the page does not name `{command}`");
        let links = page.links.iter().any(|(_, link)| link.ends_with(&file));
        assert!(links, "{place}: the page does not link to {file}");
    }
    // A table with one measured row has no other.
    for page in pages.iter().filter(|page| page.is_own()) {
        let of_page: Vec<&Measured> = sources.row.iter().filter(|row| row.page == page.path).collect();
        let is_known = |row: &&Row| of_page.iter().any(|measured| measured.row == row.cells[0]);
        for table in page.tables.iter().filter(|table| table.rows.iter().any(|row| is_known(&row))) {
            for row in table.rows[1..].iter().filter(|row| !is_known(row)) {
                assert_eq!(
                    numbers(&row.figures[1..].join(" ")),
                    Vec::<String>::new(),
                    "{}:{}: from where?",
                    page.path,
                    row.line
                );
            }
        }
    }
}

const UNITS: [&str; 20] = [
    "%", "us", "ms", "s", "second", "seconds", "minute", "minutes", "hours", "KB", "MB", "GB", "KiB", "MiB", "GiB",
    "MB/s", "times", "requests", "keys", "x",
];

/// Numbers with a unit, as they stand there.
fn with_units(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    for number in numbers(text) {
        let Some(at) = rest.find(&number) else { break };
        rest = &rest[at + number.len()..];
        let behind = rest.strip_prefix(' ').unwrap_or(rest);
        let end = behind.find(|sign: char| !sign.is_alphabetic() && sign != '%' && sign != '/').unwrap_or(behind.len());
        let unit = behind[..end].trim_end_matches('/');
        if UNITS.contains(&unit) {
            let space = if rest.starts_with(' ') { " " } else { "" };
            found.push(format!("{number}{space}{unit}"));
        }
    }
    found
}

#[test]
fn no_figure_is_without_a_source() {
    let (sources, pages) = (sources(), pages::all());
    for fact in &sources.fact {
        let code =
            std::fs::read_to_string(root().join(&fact.file)).unwrap_or_else(|cause| panic!("{}: {cause}", fact.file));
        assert!(code.contains(&fact.code), "{}: '{}': {} does not have {}", fact.page, fact.text, fact.file, fact.code);
        let page = pages.iter().find(|page| page.path == fact.page).unwrap_or_else(|| panic!("no page {}", fact.page));
        assert!(
            page.prose.iter().any(|(_, text)| text.contains(&fact.text)),
            "{}: '{}' is not there",
            fact.page,
            fact.text
        );
    }
    let reference = "tools/docs/book/reference.md";
    for page in pages.iter().filter(|page| page.is_own() && page.path != reference) {
        let facts: Vec<&Fact> = sources.fact.iter().filter(|fact| fact.page == page.path).collect();
        let measured: Vec<&Row> = page
            .tables
            .iter()
            .flat_map(|table| &table.rows)
            .filter(|row| sources.row.iter().any(|known| known.page == page.path && known.row == row.cells[0]))
            .collect();
        for (line, text) in &page.prose {
            for figure in with_units(text) {
                let of_row = measured.iter().any(|row| row.figures.iter().any(|cell| cell == text));
                let of_code = facts.iter().any(|fact| fact.text.contains(&figure) && text.contains(&fact.text));
                assert!(of_row || of_code, "{}:{line}: {figure}: from where? (tools/docs/figures.toml)", page.path);
            }
        }
    }
}

/// Of what the crates' pages have figures of.
fn names_a_source(section: &Section) -> bool {
    let begins =
        ["cargo ", "antumbra ", "tools/tests/", "net/tests/", "net/src/", "engine/tests/", "engine/src/", "predictor/"];
    section.code.iter().any(|code| begins.iter().any(|begin| code.contains(begin)))
}

#[test]
fn sections_with_measurements_name_a_test_or_a_command() {
    for page in pages::all().iter().filter(|page| !page.is_own()) {
        for section in &page.sections {
            let words = ["measured", "one run", "runs)", "median", "p99", "a busy core", "in one run"];
            let has = |text: &String| words.iter().any(|word| text.contains(word)) && !with_units(text).is_empty();
            if let Some(text) = section.prose.iter().find(|text| has(text)) {
                assert!(names_a_source(section), "{}:{}: by what? {text}", page.path, section.line);
            }
        }
    }
}

#[test]
fn numbers_are_read_and_compared_as_they_are_written() {
    assert_eq!(numbers("p99 is 1,234.5 us, 3x; x86"), ["1,234.5", "3"]);
    assert_eq!(with_units("after 2.5 ms, 40 % of 7 hosts in 3s"), ["2.5 ms", "40 %", "3s"]);
    assert!(is("1,234", 1233.6) && is("0.7", 0.651) && !is("0.65", 0.66) && !is("1", 1.6));
    let report: Value =
        serde_json::from_str(r#"{"a":{"b":10},"l":[{"n":"x","v":3},{"n":"y","v":9},{"n":"x","v":4}]}"#).unwrap();
    assert_eq!(evaluate(&report, "/a/b / 4"), Some(2.5));
    assert_eq!(evaluate(&report, "/l?n=x/v"), Some(4.0));
    assert_eq!(evaluate(&report, "/a/b * 2 / /l?n=y/v"), Some(20.0 / 9.0));
    assert_eq!(evaluate(&report, "/gone"), None);
    let page = Page::parse("x.md", "| what | how much |\n|---|---|\n| b | 10 of `p50` 2.5 |\n");
    let values = ["/a/b".to_string(), "/a/b / 4".to_string()];
    assert_eq!(wrong(&page.tables[0].rows[1], &report, &values), None);
    assert!(wrong(&page.tables[0].rows[1], &report, &values[..1]).is_some(), "a number too many");
    let drifted = Page::parse("x.md", "| what | how much |\n|---|---|\n| b | 11 and 2.5 |\n");
    assert!(wrong(&drifted.tables[0].rows[1], &report, &values).is_some_and(|what| what.contains("10 was measured")));
}
