//! What the host answers: one file per interface of the contract.
//!
//! Each file has a state of its own, and the generated trait implemented on that state: no interface
//! sees the whole attempt, and each is tested by calling it. What a guest chooses (names, sizes,
//! counts) is checked and capped here, where it enters.

pub(crate) mod cards;
pub(crate) mod log;
pub(crate) mod run;
pub(crate) mod secrets;
