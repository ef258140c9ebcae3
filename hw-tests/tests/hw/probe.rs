//! What the machine has.

use antumbra_hw_tests::capability::{OPERATIONS, Ring, strict};
use antumbra_hw_tests::{CAPABILITIES, Kind, here};

#[test]
fn table() {
    println!("{:<16} {:<14} {:<5} found", "capability", "kind", "here");
    for capability in CAPABILITIES {
        let (kind, found) = (format!("{:?}", capability.kind), (capability.probe)());
        let (is_here, text) = match found {
            Ok(text) => ("yes", text),
            Err(reason) => ("no", reason),
        };
        println!("{:<16} {kind:<14} {is_here:<5} {text}", capability.name);
    }
    println!("HW_STRICT=1: {}", if strict() { "what is expected and not here fails" } else { "not set" });
    let names: std::collections::BTreeSet<&str> = CAPABILITIES.iter().map(|capability| capability.name).collect();
    assert_eq!(names.len(), CAPABILITIES.len(), "each name once");
}

#[test]
fn everything_that_is_expected_is_here() {
    for capability in CAPABILITIES.iter().filter(|capability| capability.kind == Kind::Expected) {
        let _ = here(&[capability.name]);
    }
}

#[test]
fn io_uring_has_every_operation_that_the_runtime_submits() {
    if !here(&["io_uring"]) {
        return;
    }
    let ring = Ring::set_up().unwrap();
    let supported = ring.supported().unwrap();
    for (number, name) in OPERATIONS {
        assert!(supported.contains(&number), "IORING_OP_{name} is missing: Linux 5.8 or later is needed");
    }
    // IORING_FEAT_NODROP and IORING_FEAT_SUBMIT_STABLE: no completion is lost, arguments may be reused.
    assert_eq!(ring.features & 0b110, 0b110, "{:#x}", ring.features);
    println!("features {:#x}, {} operations", ring.features, supported.len());
}
