//! What the process writes to its log, which can be changed while it runs.

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

type Level = Box<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

static LEVEL: OnceLock<Level> = OnceLock::new();

/// Begins with what `ANTUMBRA_LOG` says, or with warnings.
pub fn start() {
    let filter = EnvFilter::try_from_env("ANTUMBRA_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_filter_reloading();
    let handle = log.reload_handle();
    log.init();
    let level = move |wanted: Option<&str>| {
        let gone = |cause| format!("the log's level: {cause}");
        if let Some(wanted) = wanted {
            let wrong = |cause| {
                format!(
                    "'{wanted}' is no filter of the log ({cause}): a level such as info, or antumbra_net::shadow=debug,warn"
                )
            };
            handle.reload(EnvFilter::try_new(wanted).map_err(wrong)?).map_err(gone)?;
        }
        handle.with_current(ToString::to_string).map_err(gone)
    };
    let _ = LEVEL.set(Box::new(level));
}

/// The present filter, `wanted` if there is one.
pub fn level(wanted: Option<&str>) -> Result<String, String> {
    LEVEL.get().ok_or("this process has no log")?(wanted)
}
