//! Functions that no sandbox can call.

use waft_sdk::prelude::*;

#[task]
async fn a() {}

#[task]
fn b(&self) {}

#[task]
fn c<T>(value: T) {}

#[task]
fn d(text: &str) {}

#[task]
fn e((a, b): (u64, u64)) {}

#[task]
unsafe fn f() {}

#[flow]
async fn g() {}

fn main() {}
