//! `report.md`: the report as tables, for pages that quote it as benches/README.md does.

use std::fmt::Write as _;

use super::html::digits;
use super::model::{Figure, Part, Suite, unit};

const RATES: [&str; 2] = [unit::OPERATIONS, unit::ROWS];

/// The header, and a table for each part that has figures.
pub fn page(suite: &Suite) -> String {
    let mut page = format!("# Antumbra: benchmarks ({})\n\n", suite.mode);
    for (name, value) in &suite.header {
        // writing to a string cannot fail
        let _ = writeln!(page, "- {name}: {value}");
    }
    for part in suite.parts.iter().filter(|part| !part.figures.is_empty()) {
        let has = |units: &[&str]| part.figures.iter().any(|figure| units.contains(&figure.unit.as_str()));
        let table = if has(&[unit::SHARE]) {
            crossed(part, "% of the oracle's", &[unit::SHARE], |share, _| digits(share.median))
        } else if has(&RATES) && has(&[unit::TAIL]) {
            crossed(part, "thousand a second (p99.9 in us)", &RATES, rate_and_tail)
        } else {
            list(part)
        };
        let _ = write!(page, "\n## {}\n\n`{}`\n\n{table}", part.title, part.command);
    }
    page
}

fn rate_and_tail(rate: &Figure, beside: &[&Figure]) -> String {
    let tail = beside.iter().find(|figure| figure.name == rate.name && figure.unit == unit::TAIL);
    digits(rate.median / 1e3) + &tail.map_or(String::new(), |tail| format!(" ({})", digits(tail.median)))
}

/// A line for each group. A column for each name with one of `units`, as `cell` shows it (the highest is bold), then one for
/// each name with a goal.
fn crossed(part: &Part, corner: &str, units: &[&str], cell: impl Fn(&Figure, &[&Figure]) -> String) -> String {
    let shown = |figure: &&Figure| units.contains(&figure.unit.as_str());
    let names = distinct(part.figures.iter().filter(shown).map(|figure| figure.name.as_str()));
    let judged =
        distinct(part.figures.iter().filter(|figure| figure.goal.is_some()).map(|figure| figure.name.as_str()));
    let mut table = head(std::iter::once(corner).chain(names.iter().copied()).chain(judged.iter().copied()));
    for group in distinct(part.figures.iter().map(|figure| figure.group.as_str())) {
        let beside: Vec<&Figure> = part.figures.iter().filter(|figure| figure.group == group).collect();
        let highest = beside.iter().copied().filter(shown).map(|figure| figure.median).reduce(f64::max);
        let of = |name: &&str| {
            let found = beside.iter().copied().filter(shown).find(|figure| figure.name == *name);
            found.map_or(String::new(), |figure| match cell(figure, &beside) {
                text if Some(figure.median) == highest => format!("**{text}**"),
                text => text,
            })
        };
        let judged_as = |name: &&str| {
            let found = beside.iter().find(|figure| figure.goal.is_some() && figure.name == *name);
            found.map_or(String::new(), |figure| format!("{}; {}", median_and_spread(figure), goal(figure)))
        };
        let cells: Vec<String> =
            std::iter::once(escape(group)).chain(names.iter().map(of)).chain(judged.iter().map(judged_as)).collect();
        line(&mut table, &cells);
    }
    table
}

/// A line a figure.
fn list(part: &Part) -> String {
    let mut table = head(["", "median (spread)", "unit", "goal"].into_iter());
    for figure in &part.figures {
        let what = format!("{}: {}", figure.group, figure.name);
        line(&mut table, &[escape(&what), median_and_spread(figure), escape(&figure.unit), goal(figure)]);
    }
    table
}

fn median_and_spread(figure: &Figure) -> String {
    let median = digits(figure.median);
    if figure.low == figure.high {
        return median;
    }
    format!("{median} ({} to {})", digits(figure.low), digits(figure.high))
}

fn goal(figure: &Figure) -> String {
    let missed = if figure.met() == Some(false) { ": **missed**" } else { "" };
    figure.goal.map_or(String::new(), |goal| format!("{goal}{missed}"))
}

/// In the order in which they come, each once.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}

fn head<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(escape).collect();
    let mut table = String::new();
    line(&mut table, &names);
    line(&mut table, &vec!["---".to_string(); names.len()]);
    table
}

fn line(table: &mut String, cells: &[String]) {
    let _ = writeln!(table, "| {} |", cells.join(" | "));
}

/// A text that is one cell.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
