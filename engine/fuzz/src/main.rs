//! libFuzzer's entry: the target is named by `ANTUMBRA_FUZZ_TARGET`.
#![no_main]

use std::sync::OnceLock;

use antumbra_engine::fuzz::{TARGETS, Target};
use antumbra_net::{resp, shadow};

/// What a client or another host can reach.
const NET_TARGETS: &[Target] = &[
    Target { name: "resp-request", run: resp::fuzz::request },
    Target { name: "resp-reply", run: resp::fuzz::reply },
    Target { name: "shadow-frame", run: shadow::fuzz::frame },
];

fn target() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("ANTUMBRA_FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().chain(NET_TARGETS).find(|target| target.name == name);
        found.unwrap_or_else(|| {
            let names: Vec<&str> = TARGETS.iter().chain(NET_TARGETS).map(|target| target.name).collect();
            eprintln!("ANTUMBRA_FUZZ_TARGET='{name}' is none of {names:?}");
            std::process::exit(2)
        })
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| (target().run)(data));
