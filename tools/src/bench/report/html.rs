//! `report.html`: the report as one page.

use std::fmt::Write as _;

use serde::Deserialize;

use super::model::{Figure, Outcome, Part, Suite, unit};
use super::plots;
use crate::CliError;
use crate::moving::plot;
use crate::moving::report::Bin;
use crate::page::{document, escape, figure};

const STYLE: &str = "\
th[scope=rowgroup] { text-align: left; padding-top: .8rem; } td.name { padding-left: 1.2rem; }
.met { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
@media (prefers-color-scheme: dark) { .met { color: #4ade80; } .missed { color: #f87171; } }
code { font-size: .85rem; overflow-wrap: anywhere; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.facts td { text-align: left; vertical-align: top; } small { opacity: .8; }
";

/// The page.
pub fn page(suite: &Suite) -> Result<String, CliError> {
    let mut body = format!("<h1>Antumbra: benchmarks ({})</h1>", escape(&suite.mode));
    // writing to a string cannot fail
    let _ = write!(body, "<table class=facts>{}</table>", facts(&suite.header));
    if suite.mode == "smoke" {
        body.push_str("<p>A trial of whether every part works: its figures mean nothing.</p>");
    }
    body.push_str("<h2>Parts</h2><ul>");
    for part in &suite.parts {
        let _ = write!(
            body,
            "<li><a href=\"#{}\">{}</a>: {}",
            escape(&part.name),
            escape(&part.title),
            escape(&state(part))
        );
    }
    body.push_str("</ul>");
    body.push_str(&goals(suite));
    for part in &suite.parts {
        body.push_str(&section(part)?);
    }
    Ok(document("Antumbra: benchmarks", STYLE, &body))
}

fn state(part: &Part) -> String {
    match &part.outcome {
        Outcome::Done => format!("done in {:.0} s", part.seconds),
        Outcome::Failed { error } => format!("FAILED: {}", error.lines().next().unwrap_or_default()),
        Outcome::Skipped { reason } => format!("left out: {reason}"),
    }
}

fn facts(facts: &[(String, String)]) -> String {
    facts.iter().map(|(name, value)| format!("<tr><td>{}<td>{}", escape(name), escape(value))).collect()
}

/// What was to be reached: what is missed first, by how much.
fn goals(suite: &Suite) -> String {
    let mut judged: Vec<(&Part, &Figure)> = suite.judged().collect();
    if judged.is_empty() {
        return String::new();
    }
    let beyond = |figure: &Figure| figure.goal.and_then(|goal| goal.beyond_percent(figure.median));
    judged.sort_by(|(_, a), (_, b)| {
        let worst = |figure| beyond(figure).unwrap_or(if figure.met() == Some(true) { 0.0 } else { f64::NEG_INFINITY });
        worst(a).total_cmp(&worst(b))
    });
    let met = judged.iter().filter(|(_, figure)| figure.met() == Some(true)).count();
    let rows: String = judged
        .iter()
        .map(|(part, figure)| {
            let place = format!("{}: {}, {}", part.title, figure.group, figure.name);
            format!("<tr><td><a href=\"#{}\">{}</a>{}", escape(&part.name), escape(&place), cells(figure))
        })
        .collect();
    format!(
        "<h2>Goals</h2><p>{met} met, {} missed, of those that could be measured here; what is missed stands first.</p>\
         <div class=scroll><table><tr><th>what<th>median<th>unit<th>spread<th>goal<th>verdict{rows}</table></div>",
        judged.len() - met
    )
}

fn section(part: &Part) -> Result<String, CliError> {
    let mut text =
        format!("<h2 id=\"{}\">{}</h2><p>{}</p>", escape(&part.name), escape(&part.title), escape(&part.about));
    let _ = write!(text, "<p>{}<br><code>{}</code></p>", escape(&state(part)), escape(&part.command));
    if let Outcome::Failed { error } = &part.outcome {
        let _ = write!(text, "<p class=\"verdict bad\">This part failed</p><pre>{}</pre>", escape(error));
    }
    text.push_str(&plots(part)?);
    if !part.figures.is_empty() {
        text.push_str("<div class=scroll><table><tr><th><th>median<th>unit<th>spread<th>goal<th>verdict");
        for (at, figure) in part.figures.iter().enumerate() {
            if at == 0 || part.figures[at - 1].group != figure.group {
                let _ = write!(text, "<tr><th scope=rowgroup colspan=6>{}", escape(&figure.group));
            }
            let note = if figure.note.is_empty() {
                String::new()
            } else {
                format!(" <small>({})</small>", escape(&figure.note))
            };
            let _ = write!(text, "<tr><td class=name>{}{note}{}", escape(&figure.name), cells(figure));
        }
        text.push_str("</table></div>");
    }
    if !part.facts.is_empty() {
        let _ = write!(
            text,
            "<details><summary>Configuration</summary><table class=facts>{}</table></details>",
            facts(&part.facts)
        );
    }
    Ok(text)
}

/// Median, unit, spread, goal, verdict.
fn cells(figure: &Figure) -> String {
    let rounds = if figure.rounds > 1 { format!(" <small>({})</small>", figure.rounds) } else { String::new() };
    let spread = if figure.low == figure.high {
        String::new()
    } else {
        format!("{} to {}{rounds}", digits(figure.low), digits(figure.high))
    };
    let goal = figure.goal.map_or(String::new(), |goal| goal.to_string());
    let class = match figure.met() {
        Some(true) => " class=met",
        Some(false) => " class=missed",
        None => "",
    };
    format!(
        "<td>{}<td>{}<td>{spread}<td>{}<td{class}>{}",
        digits(figure.median),
        escape(&figure.unit),
        escape(&goal),
        escape(&figure.verdict())
    )
}

/// Three digits that count, thousands apart.
pub fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let groups: Vec<&str> =
        whole.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    format!("{sign}{}{rest}", groups.join(","))
}

/// The plots of a part.
fn plots(part: &Part) -> Result<String, CliError> {
    let mut text = String::new();
    for (unit, label) in [
        (unit::OPERATIONS, "Operations a second, by the best of the phase"),
        (unit::TAIL, "99.9th percentile, microseconds, logarithmic"),
        (unit::SHARE, "Percent of the oracle's share"),
    ] {
        let figures: Vec<&Figure> = part.figures.iter().filter(|figure| figure.unit == unit).collect();
        if figures.len() > 1 && plots::worth(&figures) {
            let (scale, label) = match unit {
                unit::OPERATIONS if plots::alone(&figures) => {
                    (plots::Scale::Logarithmic, "Operations a second, logarithmic")
                }
                unit::OPERATIONS => (plots::Scale::OfTheBest, label),
                unit::TAIL => (plots::Scale::Logarithmic, label),
                _ => (plots::Scale::Percent, label),
            };
            text.push_str(&figure(label, &plots::bars(&figures, scale, label)?));
        }
    }
    let run = part.raw.get("runs").and_then(|runs| runs.get(0)).unwrap_or(&part.raw);
    if let Some(series) = run.get("series") {
        let series = Vec::<Bin>::deserialize(series)?;
        let marks = Vec::<(String, f64)>::deserialize(&run["marks"])?;
        let label = "99th percentile of read and write latency over time in the first run, with the phases of the move";
        text.push_str(&figure(label, &plot::latency(&series, &marks)?));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn digits_are_three_that_count() {
        let shown: Vec<String> = [0.0, 0.1234, 1.234, 12.34, 1_234_567.8, -2_500.0].map(digits).to_vec();
        assert_eq!(shown, ["0", "0.123", "1.23", "12.3", "1,234,568", "-2,500"]);
    }
}
