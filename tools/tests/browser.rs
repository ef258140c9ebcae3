//! The status page in a real browser, headless: it follows a real move that is begun on it. Screenshots lie in
//! `target/tmp/screenshots` (CARGO_TARGET_TMPDIR).
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Node, ask, create_partitions, free_tcp, start_each, write_private};
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

const TOKEN: &str = "an operators' token of some length";
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver of Chromium; ended when dropped.
struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    /// `None`, and the reason said, where there is no Chromium.
    fn start() -> Option<Driver> {
        let found =
            |program: &str| Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success());
        if !found("chromium") || !found("chromedriver") {
            println!("SKIPPED: no chromium and chromedriver on the PATH (cargo xtask setup installs them)");
            return None;
        }
        let port = free_tcp().port();
        let mut child =
            Command::new("chromedriver").arg(format!("--port={port}")).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("started successfully")));
        // What it says later goes nowhere, but must be taken.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Driver { child, port })
    }

    /// A page so wide, and so high that it need not scroll.
    async fn open(&self, width: u32, height: u32) -> Client {
        let options = json!({
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            // Not the window's size, which has a lower bound, but the page's.
            "mobileEmulation": { "deviceMetrics": { "width": width, "height": height, "pixelRatio": 1.0, "mobile": false } },
        });
        let mut wanted = Capabilities::new();
        wanted.insert("goog:chromeOptions".into(), options);
        wanted.insert("goog:loggingPrefs".into(), json!({ "browser": "ALL" }));
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(wanted);
        builder.connect(&format!("http://127.0.0.1:{}", self.port)).await.unwrap()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Chromium's own command: what the page has written to the console.
#[derive(Debug)]
struct ConsoleLog;

impl WebDriverCompatibleCommand for ConsoleLog {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}

/// Errors on the console since the last call.
async fn console_errors(page: &Client) -> Vec<String> {
    let log = page.issue_cmd(ConsoleLog).await.unwrap();
    let lines = log.as_array().unwrap().iter().filter(|line| line["level"] != "INFO" && line["level"] != "DEBUG");
    lines.map(|line| line["message"].to_string()).collect()
}

async fn shot(page: &Client, name: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, page.screenshot().await.unwrap()).unwrap();
    println!("wrote {}", path.display());
}

/// Waits until the script, an expression, is true on the page.
async fn until(page: &Client, expression: &str) -> Value {
    let began = std::time::Instant::now();
    loop {
        let value = page.execute(&format!("return ({expression});"), Vec::new()).await.unwrap();
        if value.as_bool() != Some(false) && !value.is_null() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "never: {expression}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn click(page: &Client, selector: &str) {
    page.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
}

fn text(selector: &str) -> String {
    // In brackets: what is asked of it is asked of both sides.
    format!("(document.querySelector('{selector}')?.textContent ?? '')")
}

/// Two nodes with pages, data in two partitions of the first.
fn cluster(dir: &Path) -> (Vec<Node>, Vec<String>) {
    let token = dir.join("token");
    write_private(&token, TOKEN);
    let pages: Vec<String> = (0..2).map(|_| free_tcp().to_string()).collect();
    let file = token.display().to_string();
    let nodes = start_each(dir, 2, |host| {
        ["--http", &pages[host as usize - 1], "--http-token-file", &file].map(String::from).to_vec()
    });
    create_partitions(&nodes);
    let mut command = Command::new("redis-benchmark");
    command.args(["-h", "127.0.0.1", "-p", &nodes[0].resp.port().to_string()]);
    command.args(["-t", "set", "-n", "60000", "-r", "30000", "-d", "500", "-P", "32", "-q"]);
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    for partition in 1..=2 {
        assert!(ask(nodes[0].resp, &format!("ANTUMBRA COMPACT {partition}")).contains("OK"));
    }
    (nodes, pages)
}

#[tokio::test]
async fn page_follows_a_move_that_is_begun_on_it() {
    let Some(driver) = Driver::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (nodes, pages) = cluster(dir.path());
    let page = driver.open(1280, 1300).await;
    page.goto(&format!("http://{}/", pages[0])).await.unwrap();
    until(&page, &format!("{} === 'live'", text("#link"))).await;
    until(&page, "document.querySelectorAll('#hosts li').length === 2").await;
    until(&page, "document.querySelectorAll('#partitions tr').length === 2").await;
    until(&page, "[...document.querySelectorAll('.strip canvas')].every(c => c.getAttribute('aria-label')?.includes('segments'))").await;
    until(&page, &format!("{}.includes('host 1')", text("tr[data-partition=\"1\"]"))).await;
    until(&page, "document.querySelector('#hosts .bar') !== null").await;
    // Plots have a scale, and the way to what can be done does not scroll away.
    until(&page, "document.querySelectorAll('.plot svg polyline').length === 6").await;
    until(&page, &format!("{} === '100 %'", text("#plot-load .scale span"))).await;
    shot(&page, "overview.png").await;
    assert_eq!(console_errors(&page).await, Vec::<String>::new());

    // What one points at is still there when the page has followed the cluster for a while, its numbers are others.
    let button = page.find(Locator::Css("tr[data-partition='1'] button")).await.unwrap();
    let writes = text("tr[data-partition=\"1\"] td:nth-child(9)");
    let before = until(&page, &writes).await;
    let began = std::time::Instant::now();
    while page.execute(&format!("return {writes}"), Vec::new()).await.unwrap() == before {
        assert!(ask(nodes[0].resp, "SET hello there").contains("OK"));
        assert!(began.elapsed() < PATIENCE, "writes stay at {before}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // A wrong token moves nothing, and says so.
    button.click().await.unwrap();
    let input = page.find(Locator::Css("#token")).await.unwrap();
    input.send_keys("guessed by somebody").await.unwrap();
    click(&page, "#confirm-go").await;
    until(&page, &format!("{}.includes('missing or wrong')", text("#confirm-error"))).await;
    assert!(ask(nodes[0].resp, "ANTUMBRA STATE 1").contains("\"Stable\""));
    input.clear().await.unwrap();
    input.send_keys(TOKEN).await.unwrap();
    click(&page, "#confirm-go").await;
    until(&page, "!document.querySelector('#confirm').open").await;
    until(&page, &format!("{}.includes('host 2')", text("tr[data-partition=\"1\"] td:nth-child(3)"))).await;
    until(&page, "document.querySelector('.move[data-move=\"1\"] .steps') !== null").await;
    until(&page, &format!("{}.includes('moved to host 2')", text("#events"))).await;
    let steps =
        page.execute("return [...document.querySelectorAll('.move li')].map(s => s.textContent)", Vec::new()).await;
    let steps = steps.unwrap().to_string().to_lowercase();
    for step in ["freeze", "tail", "commit", "hand"] {
        assert!(steps.contains(step), "no {step} in {steps}");
    }
    assert!(ask(nodes[1].resp, "ANTUMBRA STATE 1").contains("\"owner\":2"));

    // A slow one is watched on its way, by the keyboard alone given up.
    assert!(ask(nodes[0].resp, "ANTUMBRA MOVE 2 2 THROTTLE 0.02").contains("OK"));
    until(&page, "Number(document.querySelector('.move[data-move=\"2\"] [role=progressbar]')?.getAttribute('aria-valuenow')) > 0").await;
    shot(&page, "live-move.png").await;
    page.execute("document.querySelector('tr[data-partition=\"2\"] button').focus()", Vec::new()).await.unwrap();
    page.active_element().await.unwrap().send_keys("\u{e007}").await.unwrap();
    until(&page, "document.querySelector('#confirm').open").await;
    page.find(Locator::Css("#confirm-go")).await.unwrap().send_keys("\u{e007}").await.unwrap();
    until(&page, &format!("{}.includes('given up')", text("#events"))).await;
    assert!(ask(nodes[0].resp, "ANTUMBRA STATE 2").contains("\"owner\":1"));

    // What is left here goes too.
    click(&page, "li[data-host='1'] button").await;
    until(&page, "document.querySelector('#confirm').open").await;
    click(&page, "#confirm-go").await;
    until(&page, &format!("{}.includes('owns nothing any more: 1 partitions')", text("#events"))).await;
    let state = ask(nodes[1].resp, "ANTUMBRA STATE 2");
    assert!(state.contains("\"owner\":2"), "{state}");
    until(&page, "document.querySelector('li[data-host=\"1\"] button') === null").await;
    let mut errors = console_errors(&page).await;
    // That of the wrong token.
    errors.retain(|line| !line.contains("status of 401"));
    assert_eq!(errors, Vec::<String>::new());
    page.close().await.unwrap();
}

#[tokio::test]
async fn page_is_usable_in_the_dark_and_on_a_narrow_screen() {
    let Some(driver) = Driver::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (_nodes, pages) = cluster(dir.path());
    let page = driver.open(360, 2000).await;
    // The second node's page, read only as any without the token's header.
    page.goto(&format!("http://{}/", pages[1])).await.unwrap();
    until(&page, "document.querySelectorAll('#partitions tr').length === 2").await;
    let back = "return getComputedStyle(document.body).backgroundColor";
    let light = page.execute(back, Vec::new()).await.unwrap();
    shot(&page, "narrow.png").await;
    let width = page.execute("return document.documentElement.scrollWidth", Vec::new()).await.unwrap();
    assert!(width.as_u64().unwrap() <= 360, "the page is {width} wide");
    click(&page, "#theme").await;
    assert_ne!(page.execute(back, Vec::new()).await.unwrap(), light);
    assert_eq!(until(&page, "document.querySelector('#theme').getAttribute('aria-pressed')").await, "true");
    shot(&page, "dark.png").await;
    page.refresh().await.unwrap();
    until(&page, "document.documentElement.classList.contains('dark')").await;
    assert_eq!(console_errors(&page).await, Vec::<String>::new());
    page.close().await.unwrap();
}
