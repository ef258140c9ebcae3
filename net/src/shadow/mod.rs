//! The shadow protocol: how a partition moves to another host while it is served.
//!
//! [`source::Source`] and [`target::Target`] are machines without I/O and without a clock; [`drive`] carries their
//! decisions out. What travels:
//!
//! ```text
//!        source (owner)                                    target (destination)
//!  control  Open  ------------------------------------------>  creates the shadow
//!           Plan, Stale, Position  ------------------------->  picks the next segments
//!           <-------------------  Opened, Request, Held, MirrorAck, Foreground
//!           (the link is lost) Resume  --------------------->  goes on where it was
//!           <-----------------------------------------------  Resumed
//!  mirror   every record in LSN order ---------------------->  WAL, then acknowledges
//!  bulk     one stream a segment: image, then its delta  --->  verifies, installs
//!  control  Seal  ------------------------------------------>  compares, makes ready durable
//!           <-----------------------------------------------  SealOk or Failed
//!           (commit at the coordinator)
//!           Promote, Digest  ------------------------------->  serves
//!           <-----------------------------------------------  Promoted, Digests
//! ```
//!
//! **Mirror with coverage.** The mirror streams every LSN from the beginning. While a segment is not held by the target
//! its records are *elided*: only the LSN travels, since the copy to come contains them. When the source has taken a
//! segment's image at LSN v it *covers* the segment at LSN c: from then on its records travel in full, and what changed
//! in (v, c] follows the image in the same stream as a delta. So a segment that is written all the time converges in
//! one pass.

pub mod accounts;
pub mod codec;
pub mod conflict;
pub mod drive;
pub mod frame;
pub mod fuzz;
pub mod message;
pub mod plan;
pub mod recovery;
pub mod segment;
pub mod source;
pub mod target;

pub use accounts::MoveReport;
pub use drive::{MoveHandle, MoveOptions, Policy, SetPoint};
pub use plan::Order;
