//! Tests of the crate as a user sees it.

mod allocation;
mod shipped;
#[cfg(feature = "torch")]
mod torch_agreement;
#[cfg(not(feature = "torch"))]
mod traces;
