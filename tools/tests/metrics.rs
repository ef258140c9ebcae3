//! What a node tells over HTTP: metrics as they are documented, read by a real Prometheus; bad requests harm nobody.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Node, ask, create_partitions, free_tcp, start_each, wait_for, write_private};

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../net/docs").join(name)
}

/// Sends a request as it stands and returns all that comes back.
fn send(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The node may answer, and close, before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(address: SocketAddr, path: &str) -> String {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").as_bytes())
}

fn post(address: SocketAddr, path: &str, token: Option<&str>, body: &str) -> String {
    let token = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    send(address, format!("{head}{token}\r\n{body}").as_bytes())
}

fn nodes(dir: &Path, token: Option<&str>) -> (Vec<Node>, Vec<SocketAddr>) {
    let http = [free_tcp(), free_tcp()];
    let mut more: Vec<String> = Vec::new();
    if let Some(token) = token {
        let path = dir.join("token");
        write_private(&path, token);
        more = vec!["--http-token-file".into(), path.display().to_string()];
    }
    let nodes = start_each(dir, 2, |host| {
        let own = ["--http".to_string(), http[host as usize - 1].to_string()];
        own.into_iter().chain(more.clone()).collect()
    });
    create_partitions(&nodes);
    (nodes, http.to_vec())
}

/// Names of the metrics of a scrape, as they are queried.
fn families(scrape: &str) -> BTreeSet<String> {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_string(),
        })
        .collect()
}

/// Words that begin as our metrics do.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_');
    words.filter(|word| word.starts_with("antumbra_")).map(str::to_string).collect()
}

#[test]
fn metrics_are_those_of_the_documentation_the_rules_and_the_dashboard() {
    let dir = tempfile::tempdir().unwrap();
    let (nodes, http) = nodes(dir.path(), None);
    ask(nodes[0].resp, "SET key value");
    let answer = get(http[0], "/metrics");
    assert!(answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
    let page = std::fs::read_to_string(docs("metrics.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `antumbra_")).collect();
    let documented: BTreeSet<String> = rows.iter().map(|row| row.split('`').nth(1).unwrap().to_string()).collect();
    assert_eq!(families(&answer), documented);
    for row in rows {
        let (name, help) = (row.split('`').nth(1).unwrap(), row.trim_end_matches(" |").rsplit("| ").next().unwrap());
        let base = name.trim_end_matches("_total").trim_end_matches("_info");
        assert!(answer.contains(&format!("# HELP {base} {help}\n")), "{name}: its help is not '{help}'");
    }
    for file in ["alerts.yml", "alerts_test.yml", "dashboard.json"] {
        for name in named(&std::fs::read_to_string(docs(file)).unwrap()) {
            let base = name.trim_end_matches("_bucket").trim_end_matches("_count");
            assert!(documented.contains(base), "{file}: {name} is no metric");
        }
    }
    for (alert, file) in [("alert: ", "alerts.yml"), ("alertname: ", "alerts_test.yml")] {
        let text = std::fs::read_to_string(docs(file)).unwrap();
        let names: BTreeSet<&str> = text.lines().filter_map(|line| line.split(alert).nth(1)).collect();
        let rows = page.lines().filter(|line| line.starts_with("| Antumbra"));
        assert_eq!(names, rows.map(|row| row.split("| ").nth(1).unwrap().trim()).collect(), "{file}");
    }
    for (name, value) in [("connections_accepted_total ", 1), ("commands_total{command=\"set\"} ", 1)] {
        let line = answer.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {answer}"));
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= f64::from(value), "{line}");
    }
}

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn prometheus_reads_both_nodes_and_its_rules_hold() {
    let version = Command::new("promtool").arg("--version").output();
    if !version.is_ok_and(|out| out.status.success()) {
        return println!("SKIPPED: no promtool and prometheus on the PATH (cargo xtask setup installs them)");
    }
    for args in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let checked = Command::new("promtool").args(args).current_dir(docs("")).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    let dir = tempfile::tempdir().unwrap();
    let (_nodes, http) = nodes(dir.path(), None);
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nrule_files: ['{}']\nscrape_configs:\n  - job_name: antumbra\n    static_configs:\n      \
         - targets: ['{}', '{}']\n",
        docs("alerts.yml").display(),
        http[0],
        http[1]
    );
    let path = dir.path().join("prometheus.yml");
    std::fs::write(&path, config).unwrap();
    let listen = free_tcp();
    let _running = Running(
        Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("tsdb").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let query = |query: &str| {
        // It may not listen yet.
        match TcpStream::connect(listen) {
            Ok(_) => get(listen, &format!("/api/v1/query?query={query}")),
            Err(_) => String::new(),
        }
    };
    let until = |expression: &str, wanted: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = query(expression);
            if answer.contains(wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "{expression}: {answer}, no {wanted}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    until("sum(up)", "\"2\"]");
    until("count(antumbra_node_info)", "\"2\"]");
    until("sum(antumbra_coordinator_reachable)", "\"2\"]");
    until("count(antumbra_request_duration_seconds_bucket)", "\"192\"]");
    until("count(antumbra_shard_load)", "\"8\"]");
}

#[test]
fn only_the_token_acts_and_bad_requests_harm_nobody() {
    const TOKEN: &str = "0123456789abcdef";
    let dir = tempfile::tempdir().unwrap();
    let (nodes, http) = nodes(dir.path(), Some(TOKEN));
    let wanted = r#"{"partition":1,"destination":2}"#;
    for (token, path, body, status) in [
        (None, "/api/move", wanted, "401"),
        (None, "/api/drain", "{}", "401"),
        (Some("0123456789abcdee"), "/api/move", wanted, "401"),
        (Some(TOKEN), "/api/move", "{", "400"),
        (Some(TOKEN), "/api/move", r#"{"partition":-1,"destination":2}"#, "422"),
        (Some(TOKEN), "/api/abort", r#"{"partition":1}"#, "409"),
        (Some(TOKEN), "/api/switch", r#"{"partition":77}"#, "409"),
        (Some(TOKEN), "/api/nothing", wanted, "404"),
    ] {
        let answer = post(http[0], path, token, body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {body}: {answer}");
    }
    let huge = "x".repeat(1 << 20);
    assert!(post(http[0], "/api/move", Some(TOKEN), &huge).starts_with("HTTP/1.1 413"));
    assert!(get(http[0], "/api/partitions/77/segments").starts_with("HTTP/1.1 404"));
    assert!(get(http[0], "/api/partitions/x/segments").starts_with("HTTP/1.1 400"));
    assert!(send(http[0], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello over TLS").starts_with("HTTP/1.1 400"));
    assert!(send(http[0], format!("GET /{huge} HTTP/1.1\r\n\r\n").as_bytes()).starts_with("HTTP/1.1 4"));
    // Followers beyond the limit are told so, and those who have gone make room.
    let follow = || {
        let mut stream = TcpStream::connect(http[0]).unwrap();
        stream.write_all(b"GET /api/stream HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        (stream, String::from_utf8_lossy(&start).into_owned())
    };
    let followers: Vec<_> = (0..65).map(|_| follow()).collect();
    assert!(followers[..64].iter().all(|(_, start)| start == "HTTP/1.1 200") && followers[64].1 == "HTTP/1.1 503");
    drop(followers);
    let deadline = Instant::now() + Duration::from_secs(20);
    while follow().1 != "HTTP/1.1 200" {
        assert!(Instant::now() < deadline, "no room for a follower");
    }
    assert!(get(http[0], "/healthz").contains("ok"));
    assert!(post(http[0], "/api/move", Some(TOKEN), wanted).starts_with("HTTP/1.1 200"));
    wait_for(nodes[0].resp, "ANTUMBRA REPORT 1", "\"equal\":true");
    assert!(get(http[1], "/api/status").contains("\"owner\":2"));
}

#[test]
fn token_that_others_may_read_or_guess_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let start = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_antumbra"));
        command
            .args(["node", "--host", "1", "--dir"])
            .arg(dir.path().join("node"))
            .arg("--ca")
            .arg(dir.path().join("ca"));
        command.args(["--resp", &free_tcp().to_string(), "--control", "127.0.0.1:0", "--bulk", "127.0.0.1:0"]);
        command.args(["--http", "127.0.0.1:0", "--http-token-file"]).arg(&path);
        let out = command.output().unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(start("0123456789abcdef", 0o644).contains("chmod 600"));
    assert!(start("short", 0o600).contains("guessed"));
    assert!(start("\n", 0o600).contains("empty"));
}
