//! Nothing: this package is its test, `refused.rs`.
