//! Parameters of every type that has a schema, and a schedule.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use waft_sdk::prelude::*;

/// What is ordered.
#[derive(Serialize, Deserialize, Schema)]
#[serde(rename_all = "camelCase")]
struct Order {
    /// Who ordered it.
    customer_name: String,
    size: Size,
    #[serde(default)]
    notes: Vec<String>,
    weight: Option<f64>,
}

#[derive(Serialize, Deserialize, Schema)]
#[serde(rename_all = "lowercase")]
enum Size {
    Small,
    Large,
}

#[task(tags = ["orders"])]
fn pack(
    order: Order,
    prices: BTreeMap<String, u32>,
    rush: bool,
    note: Option<String>,
) -> TaskResult<String> {
    let size = if matches!(order.size, Size::Small) {
        "small"
    } else {
        "large"
    };
    let price: u32 = prices.values().sum();
    let note = note.unwrap_or_else(|| "no note".to_string());
    let weight = order.weight.unwrap_or_default();
    let notes = order.notes.len();
    Ok(format!(
        "{size} for {}, {price}, {weight}, {notes} notes, rush {rush}, {note}",
        order.customer_name
    ))
}

fn prices() -> BTreeMap<String, u32> {
    BTreeMap::from([("box".to_string(), 3)])
}

fn order() -> Order {
    Order {
        customer_name: "Ada".to_string(),
        size: Size::Small,
        notes: Vec::new(),
        weight: None,
    }
}

/// Packs an order.
#[flow(schedule = [
    cron("0 6 * * 1-5", tz = "Europe/Berlin"),
    interval("90m"),
    dates("2030-01-01T00:00:00Z"),
])]
fn typed(
    /// What to pack.
    #[default(order())]
    order: Param<Order>,
    #[default(prices())] prices: Param<BTreeMap<String, u32>>,
    #[default(false)] rush: Param<bool>,
    note: Param<Option<String>>,
) -> Node<String> {
    pack(order, prices, rush, note)
}
