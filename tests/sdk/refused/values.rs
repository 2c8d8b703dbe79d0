//! Options with values that mean nothing.

use waft_sdk::prelude::*;

#[task(timeout = "10 seconds")]
fn a() {}

#[task(retries = 3, retry_delay = 10)]
fn b() {}

#[task(retry_delay = "10s")]
fn c() {}

#[task(retries = 101)]
fn d() {}

#[task(retries = 1, retry_delay = "1s", jitter = 1.5)]
fn e() {}

#[task(retries = 1, retry_delay = "1s", backoff = "quadratic")]
fn f() {}

#[task(memory = "512MB")]
fn g() {}

#[task(net = ["https://example.org"])]
fn h() {}

#[task(dir = ["data:ro"])]
fn i() {}

#[task(trigger = sometimes)]
fn j() {}

#[task(trigger = some_failed())]
fn k() {}

#[task(on_lost = "ignore")]
fn l() {}

#[task(name = "a/b")]
fn m() {}

#[task(tags = "db")]
fn n() {}

#[task(parallel = 0)]
fn o() {}

#[task(cache_for)]
fn p() {}

#[task(retries = 3, backoff = "exponential")]
fn q() {}

#[task(dir = ["/:ro"])]
fn r() {}

#[task(net = ["*foo.org:443"])]
fn s() {}

#[task(secrets = ["a b"])]
fn t() {}

#[task(name = "..")]
fn u() {}

#[task(trigger = some_failed(at_least = 1, at_least = 2))]
fn v() {}

fn main() {}
