//! What a report holds; `report.json` is this.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the JSON.
pub const FORMAT: u32 = 1;

/// Units by which pages tell what kind of figure it is.
pub mod unit {
    pub const OPERATIONS: &str = "op/s";
    pub const ROWS: &str = "rows/s";
    pub const TAIL: &str = "us p99.9";
    pub const SHARE: &str = "% of oracle";
}

/// The report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Suite {
    pub format: u32,
    /// `smoke`, `quick` or `full`.
    pub mode: String,
    /// Where, when, with what: names and values.
    pub header: Vec<(String, String)>,
    pub parts: Vec<Part>,
}

/// One part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Short and stable.
    pub name: String,
    pub title: String,
    /// What is measured, and how to read it.
    pub about: String,
    /// What was run.
    pub command: String,
    pub seconds: f64,
    pub outcome: Outcome,
    /// Configurations and the like: names and values.
    pub facts: Vec<(String, String)>,
    pub figures: Vec<Figure>,
    /// What the command printed.
    pub raw: Value,
}

/// How a part ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Outcome {
    Done,
    Failed { error: String },
    Skipped { reason: String },
}

/// One figure: median and spread of its rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub group: String,
    pub name: String,
    pub unit: String,
    pub median: f64,
    pub low: f64,
    pub high: f64,
    /// How often it was measured.
    pub rounds: usize,
    pub goal: Option<Goal>,
    /// Whatever has to be known to read it.
    pub note: String,
}

/// What a figure is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// Whether a value reaches it.
    pub fn met(self, value: f64) -> bool {
        match self {
            Goal::AtLeast(goal) => value >= goal,
            Goal::AtMost(goal) => value <= goal,
        }
    }

    /// How far a value lies beyond it, in percent of the goal; below 0 where it is missed. A goal of 0 or less has no percent.
    pub fn beyond_percent(self, value: f64) -> Option<f64> {
        let (goal, sign) = match self {
            Goal::AtLeast(goal) => (goal, 1.0),
            Goal::AtMost(goal) => (goal, -1.0),
        };
        (goal > 0.0).then(|| sign * (value - goal) / goal * 100.0)
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Goal::AtLeast(goal) => write!(f, ">= {goal}"),
            Goal::AtMost(goal) => write!(f, "<= {goal}"),
        }
    }
}

impl Figure {
    /// Of its rounds; 0 of none.
    pub fn of(group: &str, name: &str, unit: &str, rounds: &[f64]) -> Figure {
        let mut sorted = rounds.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        Figure {
            group: group.into(),
            name: name.into(),
            unit: unit.into(),
            median: at(sorted.len() / 2),
            low: at(0),
            high: at(sorted.len().saturating_sub(1)),
            rounds: sorted.len(),
            goal: None,
            note: String::new(),
        }
    }

    pub fn goal(self, goal: Goal) -> Figure {
        Figure { goal: Some(goal), ..self }
    }

    pub fn note(self, note: impl Into<String>) -> Figure {
        Figure { note: note.into(), ..self }
    }

    /// Whether its goal is met, where it has one.
    pub fn met(&self) -> Option<bool> {
        self.goal.map(|goal| goal.met(self.median))
    }

    /// The goal and what came of it, in words.
    pub fn verdict(&self) -> String {
        let Some(goal) = self.goal else { return String::new() };
        let by =
            goal.beyond_percent(self.median).map_or(String::new(), |percent| format!(" by {:.0} %", percent.abs()));
        format!("{}{by}", if goal.met(self.median) { "met" } else { "MISSED" })
    }
}

impl Suite {
    /// Figures with a goal: part, figure.
    pub fn judged(&self) -> impl Iterator<Item = (&Part, &Figure)> {
        self.parts.iter().flat_map(|part| {
            part.figures.iter().filter(|figure| figure.goal.is_some()).map(move |figure| (part, figure))
        })
    }

    /// Whether a part failed.
    pub fn failed(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.outcome, Outcome::Failed { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_median_and_say_by_how_much_a_goal_is_missed() {
        let figure = Figure::of("C", "ratio", "x", &[1.2, 0.9, 1.5]);
        assert_eq!((figure.median, figure.low, figure.high, figure.rounds), (1.2, 0.9, 1.5, 3));
        assert_eq!(figure.clone().goal(Goal::AtLeast(1.5)).verdict(), "MISSED by 20 %");
        assert_eq!(figure.clone().goal(Goal::AtMost(1.0)).verdict(), "MISSED by 20 %");
        assert_eq!(figure.clone().goal(Goal::AtLeast(1.0)).verdict(), "met by 20 %");
        assert_eq!(figure.clone().goal(Goal::AtMost(0.0)).verdict(), "MISSED");
        assert_eq!((figure.met(), figure.verdict().as_str()), (None, ""));
    }
}
