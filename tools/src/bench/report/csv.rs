//! `report.csv`: a line a figure.

use super::model::Suite;

/// The figures of all parts, a header first.
pub fn table(suite: &Suite) -> String {
    let mut text = "part,group,name,unit,median,low,high,rounds,goal,verdict,note\n".to_string();
    for part in &suite.parts {
        for figure in &part.figures {
            let goal = figure.goal.map_or(String::new(), |goal| goal.to_string());
            let cells = [
                &part.name,
                &figure.group,
                &figure.name,
                &figure.unit,
                &figure.median.to_string(),
                &figure.low.to_string(),
                &figure.high.to_string(),
                &figure.rounds.to_string(),
                &goal,
                &figure.verdict(),
                &figure.note,
            ];
            text.push_str(&cells.map(|cell| quoted(cell)).join(","));
            text.push('\n');
        }
    }
    text
}

/// A cell by RFC 4180.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_string() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn cells_with_commas_and_quotes_are_quoted() {
        assert_eq!(super::quoted("get, \"hot\" row"), "\"get, \"\"hot\"\" row\"");
        assert_eq!(super::quoted("plain"), "plain");
    }
}
