//! `antumbra ctl top`: the cluster on the terminal.

use std::collections::VecDeque;
use std::time::Duration;

use antumbra_net::events::{Event, Topic};
use antumbra_net::status::Status;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, List, Paragraph, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame};

use crate::CliError;
use crate::show::size;

use super::{Cluster, show, typed};

const PERIOD: Duration = Duration::from_secs(1);
/// States that the sparklines show.
const KEPT: usize = 300;
/// Events that are shown.
const EVENTS: usize = 100;

/// What is shown.
#[derive(Default)]
struct View {
    status: Option<Status>,
    requests: VecDeque<u64>,
    /// Highest load of this host's shards, in per cent.
    load: VecDeque<u64>,
    events: VecDeque<Event>,
    last_event: u64,
    failure: Option<String>,
}

/// Shows the cluster until `q`.
pub async fn run(cluster: &Cluster) -> Result<(), CliError> {
    let mut view = View::default();
    view.update(cluster).await?;
    let terminal = ratatui::try_init()?;
    let result = follow(cluster, terminal, view).await;
    ratatui::restore();
    result
}

async fn follow(cluster: &Cluster, mut terminal: DefaultTerminal, mut view: View) -> Result<(), CliError> {
    let (keys, mut pressed) = tokio::sync::mpsc::channel(16);
    // Ends with the process: reading the terminal cannot be given up.
    std::thread::spawn(move || {
        while let Ok(input) = event::read() {
            if keys.blocking_send(input).is_err() {
                return;
            }
        }
    });
    let mut ticker = tokio::time::interval(PERIOD);
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        tokio::select! {
            input = pressed.recv() => match input {
                Some(Input::Key(key)) if key.code == KeyCode::Char('q') || key.code == KeyCode::Esc => return Ok(()),
                Some(Input::Key(key)) if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                None => return Err("the terminal is gone".into()),
                Some(_) => {}
            },
            _ = ticker.tick() => {
                view.failure = view.update(cluster).await.err().map(|cause| cause.to_string());
            }
        }
    }
}

fn push(kept: &mut VecDeque<u64>, value: u64) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(value);
}

impl View {
    async fn update(&mut self, cluster: &Cluster) -> Result<(), CliError> {
        let status = cluster.status().await?;
        let words = format!("ANTUMBRA EVENTS {} {EVENTS}", self.last_event);
        let events: Vec<Event> = typed(cluster.node.json(&words).await?)?;
        self.take(status, events);
        Ok(())
    }

    fn take(&mut self, status: Status, events: Vec<Event>) {
        for event in events {
            self.last_event = event.number;
            self.events.push_front(event);
        }
        self.events.truncate(EVENTS);
        push(&mut self.requests, (status.requests.reads_s + status.requests.writes_s) as u64);
        let here = status.hosts.iter().find(|host| host.host == status.host);
        let shards = here.and_then(|host| host.trend.as_ref()).map_or(&[][..], |trend| &trend.shards);
        let load = shards.iter().map(|shard| shard.level).fold(0.0, f64::max);
        push(&mut self.load, (load * 100.0) as u64);
        self.status = Some(status);
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let Some(status) = &self.status else {
            return;
        };
        let shards: usize =
            status.hosts.iter().map(|host| host.trend.as_ref().map_or(1, |trend| trend.shards.len().max(1))).sum();
        let areas = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(shards as u16 + 2),
            Constraint::Length(5),
            Constraint::Length(status.partitions.len().min(12) as u16 + 3),
            Constraint::Length(2 * status.moves.len().min(4) as u16 + 2),
            Constraint::Min(3),
        ])
        .split(frame.area());
        frame.render_widget(self.head(status), areas[0]);
        hosts(frame, areas[1], status);
        self.history(frame, areas[2]);
        partitions(frame, areas[3], status);
        moves(frame, areas[4], status);
        let lines = self.events.iter().map(|event| {
            let colour = match event.topic {
                Topic::Alarm => Color::Red,
                Topic::Decision | Topic::Signal => Color::Yellow,
                Topic::Move | Topic::Leader | Topic::Operator => Color::Reset,
            };
            Line::styled(show::event(event), Style::new().fg(colour))
        });
        frame.render_widget(List::new(lines).block(Block::bordered().title("Events, newest first")), areas[5]);
    }

    fn head(&self, status: &Status) -> Paragraph<'static> {
        let leader = status.leader.map_or("nobody leads".into(), |leader| format!("host {leader} leads"));
        let trouble = self.failure.as_ref().or(status.coordinator_error.as_ref());
        match trouble {
            Some(cause) => Paragraph::new(format!("host {}: {cause}", status.host)).style(Style::new().fg(Color::Red)),
            None => Paragraph::new(format!(
                "Antumbra, host {} ({}), policy {:?}, {leader}; q ends",
                status.host, status.version, status.automation
            ))
            .style(Style::new().add_modifier(Modifier::BOLD)),
        }
    }

    fn history(&self, frame: &mut Frame<'_>, area: Rect) {
        let halves = Layout::horizontal([Constraint::Ratio(1, 2); 2]).split(area);
        let lines =
            [(&self.requests, "Requests per second of this host", ""), (&self.load, "Highest load of this host", " %")];
        for ((kept, title, unit), area) in lines.into_iter().zip(halves.iter()) {
            let width = usize::from(area.width.saturating_sub(2));
            let shown: Vec<u64> = kept.iter().skip(kept.len().saturating_sub(width)).copied().collect();
            let title = format!("{title}: {}{unit}", kept.back().copied().unwrap_or(0));
            frame.render_widget(Sparkline::default().data(shown).block(Block::bordered().title(title)), *area);
        }
    }
}

fn hosts(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let block = Block::bordered().title("Load of the shards, and what is expected");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let mut lines = (inner.y..inner.bottom()).map(|y| Rect { y, height: 1, ..inner });
    for host in &status.hosts {
        let shards = host.trend.as_ref().map_or(&[][..], |trend| &trend.shards);
        if shards.is_empty() {
            let Some(line) = lines.next() else { return };
            frame.render_widget(Paragraph::new(format!("host {}: {}", host.host, host.silence())), line);
        }
        for (index, shard) in shards.iter().enumerate() {
            let Some(line) = lines.next() else { return };
            let parts = Layout::horizontal([Constraint::Length(18), Constraint::Min(10)]).split(line);
            frame.render_widget(Paragraph::new(format!("host {} shard {index}", host.host)), parts[0]);
            let colour = if shard.raised { Color::Red } else { Color::Green };
            let label = format!("{:.0} %, expected {:.0} %", shard.level * 100.0, shard.expected * 100.0);
            let gauge = Gauge::default().ratio(shard.level.clamp(0.0, 1.0)).label(label).gauge_style(colour);
            frame.render_widget(gauge, parts[1]);
        }
    }
}

fn partitions(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let rows = status.partitions.iter().map(|partition| {
        let record = &partition.record;
        let here = partition.here.as_ref();
        Row::new([
            record.partition.to_string(),
            format!("{}-{}", record.slots.0, record.slots.1),
            format!("host {}", record.owner),
            show::state(partition),
            here.map_or("-".into(), |here| size(here.table_bytes + here.memtable_bytes as u64)),
            here.map_or("-".into(), |here| here.reads.to_string()),
            here.map_or("-".into(), |here| here.writes.to_string()),
        ])
    });
    let widths = [Constraint::Length(9), Constraint::Length(12), Constraint::Length(9), Constraint::Min(20)];
    let widths = widths.into_iter().chain([Constraint::Length(10); 3]);
    let head = Row::new(["Id", "Slots", "Owner", "State", "Data here", "Reads", "Writes"]);
    let table = Table::new(rows, widths).header(head.style(Style::new().add_modifier(Modifier::DIM)));
    frame.render_widget(table.block(Block::bordered().title("Partitions")), area);
}

fn moves(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let block = Block::bordered().title("Moves that began here");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let mut lines = (inner.y..inner.bottom()).map(|y| Rect { y, height: 1, ..inner });
    for known in &status.moves {
        let (Some(text), Some(bar)) = (lines.next(), lines.next()) else { return };
        frame.render_widget(Paragraph::new(show::moving(known)), text);
        let ratio = known.progress.held as f64 / known.progress.segments.max(1) as f64;
        let colour = if known.progress.failed.is_some() { Color::Red } else { Color::Blue };
        frame.render_widget(Gauge::default().ratio(ratio.clamp(0.0, 1.0)).gauge_style(colour), bar);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn shown(status: &serde_json::Value, width: u16, height: u16) -> String {
        let mut view = View::default();
        let event =
            json!({ "number": 7, "at_ms": 3_661_000, "topic": "decision", "partition": 1, "text": "a shadow is cast" });
        view.take(typed(status.clone()).unwrap(), vec![typed(event).unwrap()]);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn status() -> serde_json::Value {
        let shard = json!({
            "metrics": [0.42, 0.1, 0.0, 0.0], "level": 0.42, "expected": 0.93, "probability": 0.6, "raised": true, "worth": true,
            "crossing_windows": 9.0, "lead_windows": 27.0,
        });
        let trend =
            json!({ "host": 1, "window_ms": 1000, "windows": 9, "shards": [shard], "partitions": [], "moves": [] });
        let record = json!({
            "partition": 1, "keyspace": "default", "slots": [0, 8191], "owner": 1, "epoch": 3,
            "state": { "Moving": { "attempt": 5, "source": 1, "destination": 2 } }, "revision": 4, "history": [], "diverged": null,
            "here": { "serving": "owner", "shard": 0, "segments": 12, "missing_segments": 0, "table_bytes": 52_428_800,
                      "memtable_bytes": 0, "resident_bytes": 0, "reads": 1200, "writes": 340 },
        });
        let moving = json!({
            "partition": 1, "destination": 2, "automatic": true, "under_way": true, "done": null,
            "progress": { "state": "Copying", "segments": 12, "held": 6, "bytes_on_wire": 1000, "failed": null,
                          "foreground": { "set_point_us": [0, 0], "p99_us": [0, 0], "limited_by_foreground_s": 0.0,
                                          "limited_by_cap_s": 0.0, "limited_by_supply_s": 0.0, "rate_mb_s": 0.0 } },
        });
        json!({
            "host": 1, "version": "0.1.0", "now_ms": 0, "automation": "auto", "leader": 2, "coordinator_error": null,
            "coordinator": { "kind": "etcd", "reachable": true, "since": 0, "last_error": null }, "sinks": [], "stalls": [],
            "metrics": ["core", "requests", "log", "space"],
            "hosts": [{ "host": 1, "lapsed": false, "resp": "127.0.0.1:1", "trend": trend },
                      { "host": 2, "lapsed": false, "resp": "127.0.0.1:2", "trend": null },
                      { "host": 3, "lapsed": true, "resp": "127.0.0.1:3", "trend": null }],
            "partitions": [record], "moves": [moving],
            "requests": { "reads_s": 1200.0, "writes_s": 340.0, "read_p99_us": 12.0, "write_p99_us": null },
        })
    }

    #[test]
    fn everything_of_a_state_is_on_the_screen() {
        let screen = shown(&status(), 110, 40);
        for text in [
            "policy Auto, host 2 leads",
            "42 %, expected 93 %",
            "host 2: does not answer",
            "host 3: LEASE LAPSED",
            "Requests per second of this host: 1540",
            "0-8191",
            "moving to host 2",
            "52.4 MB",
            "copying, 6 of 12 segments held",
            "01:01:01.000  decision  partition 1: a shadow is cast",
        ] {
            assert!(screen.contains(text), "no '{text}' in\n{screen}");
        }
    }

    #[test]
    fn small_terminal_breaks_nothing() {
        for (width, height) in [(1, 1), (20, 5), (40, 12), (200, 8)] {
            shown(&status(), width, height);
        }
    }

    #[test]
    fn answer_of_another_release_is_named() {
        let cause = typed::<Status>(json!({ "host": 1 })).unwrap_err().to_string();
        assert!(cause.contains("another release"), "{cause}");
    }
}
