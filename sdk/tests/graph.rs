//! What a flow function draws: names, edges, branches, parameters, options.

use serde::{Deserialize, Serialize};
use waft_sdk::definition::{
    Amount, Backoff, Body, CatchUp, Filter, Flow, Mapping, OnLost, Overlap, Rule, Source, Task,
    Trigger,
};
use waft_sdk::prelude::*;
use waft_sdk::testing::describe;

#[task]
fn number() -> TaskResult<u64> {
    Ok(1)
}

#[task]
fn is_large(n: u64) -> bool {
    n > 9
}

#[task]
fn add(left: u64, right: u64) -> TaskResult<u64> {
    Ok(left + right)
}

#[task]
fn sum(values: Vec<u64>) -> Result<u64, std::num::TryFromIntError> {
    u64::try_from(values.len())
}

#[task]
fn note() {}

/// Does everything.
///
/// Really.
#[task(
    name = "every-option",
    retries = 3,
    retry_delay = "10s",
    backoff = "exponential",
    retry_delay_max = "5m",
    jitter = 0.2,
    timeout = "1m30s",
    trigger = some_successful(at_least = 2, at_most = "50%"),
    skip_on_upstream_skip = false,
    tags = ["db", "eu"],
    cache_for = "1h",
    cache_key = "v1",
    net = ["api.example.org:443", "127.0.0.1:*"],
    dir = ["/data:ro"],
    env = ["REGION"],
    secrets = ["token"],
    memory = "512MiB",
    cpu = "60s",
    output = "8MiB",
    parallel = 4,
    on_lost = "fail",
)]
fn options(mut text: String) -> TaskResult<String> {
    text.push('!');
    Ok(text)
}

fn task<'a>(flow: &'a Flow, name: &str) -> &'a Task {
    flow.tasks
        .iter()
        .find(|task| task.name == name)
        .unwrap_or_else(|| panic!("no task `{name}`"))
}

/// The edges as `from -> to.input`, `*` for element by element.
fn edges(flow: &Flow) -> Vec<String> {
    let from = |from: &Source| match from {
        Source::Task(name) => name.clone(),
        Source::Parameter(name) => format!("${name}"),
        Source::Constant(value) => String::from_utf8_lossy(&value.bytes).into_owned(),
    };
    let one = |edge: &waft_sdk::definition::Edge| {
        let star = if edge.mapping == Mapping::Each {
            "*"
        } else {
            ""
        };
        let input = edge
            .input
            .as_ref()
            .map(|input| format!(".{input}"))
            .unwrap_or_default();
        format!("{}{star} -> {}{input}", from(&edge.from), edge.to)
    };
    flow.edges.iter().map(one).collect()
}

#[flow]
fn wired(#[default(5)] n: Param<u64>) -> Node<u64> {
    let first = add(number(), 1);
    let second = add(first, n).after(&number());
    add(first, second).reference().reference()
}

#[test]
fn calls_become_tasks_and_arguments_edges() {
    let flow = describe::<wired>().unwrap();
    let names: Vec<&str> = flow.tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["number", "add", "add-2", "number-2", "add-3"]);
    assert_eq!(
        edges(&flow),
        [
            "number -> add.left",
            "1 -> add.right",
            "add -> add-2.left",
            "$n -> add-2.right",
            "number-2 -> add-2",
            "add -> add-3.left",
            "add-2 -> add-3.right",
        ]
    );
    assert_eq!(
        (flow.name.as_str(), flow.output.as_deref()),
        ("wired", Some("add-3"))
    );
    assert_eq!(flow.reference_tasks, ["add-3"]);
    assert_eq!(flow.parameters[0].default.as_deref(), Some("5"));
    assert!(matches!(&flow.tasks[0].body, Body::Function(name) if name.ends_with("::number")));
}

#[test]
fn describing_twice_gives_the_same() {
    assert_eq!(describe::<wired>(), describe::<wired>());
}

#[flow]
fn unmapped_only() {
    add::map(unmapped(1), unmapped(2));
}

#[flow]
fn mapped_well(values: Param<Vec<u64>>) -> Node<u64> {
    let one = add::map(values, vec![1, 2, 3]);
    sum(add::map(one, unmapped(number())))
}

#[test]
fn maps_take_lists_element_by_element() {
    let flow = describe::<mapped_well>().unwrap();
    assert_eq!(
        edges(&flow),
        [
            "$values* -> add.left",
            "[1,2,3]* -> add.right",
            "add* -> add-2.left",
            "number -> add-2.right",
            "add-2 -> sum.values",
        ]
    );
    assert!(task(&flow, "add").mapped && !task(&flow, "sum").mapped);
    let mistake = describe::<unmapped_only>().unwrap_err();
    assert_eq!(
        mistake,
        "`add::map` has no input to map over: every one is `unmapped`"
    );
}

#[test]
fn every_option_arrives() {
    #[flow(name = "options-of-a-task")]
    fn all() {
        options("x");
        note();
    }
    let flow = describe::<all>().unwrap();
    assert_eq!(
        (flow.name.as_str(), &flow.output),
        ("options-of-a-task", &None)
    );
    let task = task(&flow, "every-option");
    assert_eq!(task.description, "Does everything.\n\nReally.");
    let retries = task.retries.unwrap();
    assert_eq!(
        (retries.count, retries.delay_ms, retries.backoff),
        (3, 10_000, Backoff::Exponential)
    );
    assert_eq!(
        (retries.delay_max_ms, retries.jitter_percent),
        (Some(300_000), 20)
    );
    assert_eq!(task.timeout_ms, Some(90_000));
    let Trigger::SomeSuccessful(bounds) = task.trigger else {
        panic!("{:?}", task.trigger)
    };
    assert_eq!(
        (bounds.at_least, bounds.at_most),
        (Some(Amount::Count(2)), Some(Amount::Percent(50)))
    );
    assert!(!task.skip_on_upstream_skip);
    assert_eq!(task.tags, ["db", "eu"]);
    let cache = task.cache.as_ref().unwrap();
    assert_eq!(
        (cache.valid_ms, cache.key.as_deref()),
        (Some(3_600_000), Some("v1"))
    );
    assert_eq!(task.grants.net, ["api.example.org:443", "127.0.0.1:*"]);
    assert_eq!(task.grants.dirs, ["/data:ro"]);
    assert_eq!(
        (&task.grants.env[..], &task.grants.secrets[..]),
        (&["REGION".into()][..], &["token".into()][..])
    );
    let limits = task.limits;
    assert_eq!(
        (limits.memory_bytes, limits.cpu_ms),
        (Some(512 << 20), Some(60_000))
    );
    assert_eq!(
        (limits.output_bytes, limits.parallel),
        (Some(8 << 20), Some(4))
    );
    assert_eq!(task.on_lost, OnLost::Fail);
    assert_eq!(options::run("a".to_string()).unwrap(), "a!");
}

#[flow]
fn branched(n: Param<u64>, unit: Param<String>) -> Node<u64> {
    let outside = number();
    let large = is_large(n);
    let a = ifelse(large, || add(n, 1), || outside);
    let b = switch(unit)
        .case("km", || add(a, 2))
        .case("mi", || ifelse(large, || n.node(), || add(a, 3)))
        .otherwise(|| add(a, 4));
    when(large, note);
    merge([a, b])
}

#[test]
fn tasks_hang_on_the_branches_around_them() {
    let flow = describe::<branched>().unwrap();
    let conditions = |name: &str| -> Vec<String> {
        let one = |condition: &waft_sdk::definition::Condition| {
            let subject = match &condition.subject {
                Source::Task(name) | Source::Parameter(name) => name.clone(),
                Source::Constant(_) => "constant".to_string(),
            };
            let sign = if condition.negated { "!=" } else { "==" };
            format!("{subject} {sign} {}", condition.equals.join("|"))
        };
        task(&flow, name).conditions.iter().map(one).collect()
    };
    assert_eq!(conditions("add"), ["is_large == true"]);
    // `outside` was made before the branch: what passes it on hangs on the branch instead.
    assert_eq!(conditions("number"), [""; 0]);
    assert_eq!(conditions("merge"), ["is_large != true"]);
    assert_eq!(conditions("add-2"), [r#"unit == "km""#]);
    assert_eq!(
        conditions("merge-3"),
        [r#"unit == "mi""#, "is_large == true"]
    );
    assert_eq!(conditions("add-3"), [r#"unit == "mi""#, "is_large != true"]);
    assert_eq!(conditions("merge-4"), [r#"unit == "mi""#]);
    assert_eq!(conditions("add-4"), [r#"unit != "km"|"mi""#]);
    assert_eq!(conditions("note"), ["is_large == true"]);
    let merged: Vec<String> = edges(&flow)
        .into_iter()
        .filter(|edge| edge.contains("-> merge"))
        .collect();
    assert_eq!(
        merged,
        [
            "number -> merge.1",
            "add -> merge-2.1",
            "merge -> merge-2.2",
            "$n -> merge-3.1",
            "merge-3 -> merge-4.1",
            "add-3 -> merge-4.2",
            "add-2 -> merge-5.1",
            "merge-4 -> merge-5.2",
            "add-4 -> merge-5.3",
            "merge-2 -> merge-6.1",
            "merge-5 -> merge-6.2",
        ]
    );
    assert_eq!(task(&flow, "merge-2").trigger, Trigger::NotAllSkipped);
    assert!(
        !task(&flow, "merge-2").skip_on_upstream_skip && task(&flow, "merge").skip_on_upstream_skip
    );
    assert_eq!(flow.output.as_deref(), Some("merge-6"));
}

#[test]
fn mistakes_that_the_compiler_cannot_see_are_told() {
    #[flow]
    fn twice(unit: Param<String>) -> Node<u64> {
        switch(unit).case("km", number).case("km", number).end()
    }
    assert_eq!(
        describe::<twice>().unwrap_err(),
        r#"`switch` has the case `"km"` twice"#
    );

    #[flow]
    fn early(n: Param<u64>) {
        n.node().after(&number());
    }
    assert_eq!(
        describe::<early>().unwrap_err(),
        "`after` orders two tasks; a parameter is there from the start"
    );
}

#[test]
#[should_panic(expected = "in a task body or a test call `number::run`")]
fn a_builder_is_no_use_outside_of_a_flow() {
    number();
}

/// What to send.
#[derive(Serialize, Deserialize, Schema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Parcel {
    /// The "weight".
    weight_kg: f64,
    #[serde(rename = "to")]
    address: Option<String>,
    #[serde(default)]
    speed: Speed,
    any: serde_json::Value,
}

#[derive(Default, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
enum Speed {
    #[default]
    Normal,
    VeryFast,
}

#[task]
fn send(parcel: Parcel, speed: Speed) -> TaskResult<bool> {
    Ok(parcel.address.is_some() && matches!(speed, Speed::VeryFast))
}

/// Sends parcels.
#[flow(schedule = [cron("0 * * * *", tz = "Europe/Berlin"), interval("15m"), interval("1h", name = "slow"),
    interval("2h"), dates("2026-12-01T09:00:00Z")])]
fn parcels(
    /// Each of them.
    #[default(Vec::new())]
    parcels: Param<Vec<Parcel>>,
    #[default(Speed::VeryFast)] speed: Param<Speed>,
    note: Param<Option<String>>,
) -> Node<Vec<bool>> {
    let _ = note;
    switch(speed)
        .case(Speed::VeryFast, || send::map(parcels, unmapped(speed)))
        .case(Speed::Normal, || {
            send::map(parcels, unmapped(Speed::Normal))
        })
        .end()
}

#[test]
fn parameters_carry_their_schema_and_default() {
    let flow = describe::<parcels>().unwrap();
    let schema: serde_json::Value = serde_json::from_str(&flow.parameters[0].schema).unwrap();
    assert_eq!(
        schema,
        serde_json::json!({
            "type": "array",
            "items": {
                "description": "What to send.",
                "type": "object",
                "properties": {
                    "weightKg": {"description": "The \"weight\".", "type": "number"},
                    "to": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "speed": {"type": "string", "enum": ["normal", "very-fast"]},
                    "any": {},
                },
                "required": ["weightKg", "any"],
                "additionalProperties": false,
            }
        })
    );
    let defaults: Vec<_> = flow
        .parameters
        .iter()
        .map(|parameter| parameter.default.as_deref())
        .collect();
    assert_eq!(defaults, [Some("[]"), Some("\"very-fast\""), Some("null")]);
    assert_eq!(flow.parameters[0].description, "Each of them.");
    assert_eq!(flow.description, "Sends parcels.");
}

#[test]
fn a_schedule_is_a_list_of_named_clocks() {
    let clocks = describe::<parcels>().unwrap().schedule.unwrap().clocks;
    let names: Vec<&str> = clocks.iter().map(|clock| clock.name.as_str()).collect();
    assert_eq!(names, ["cron", "interval", "slow", "interval-2", "dates"]);
    assert_eq!(
        clocks[0].rule,
        Rule::Cron(("0 * * * *".into(), "Europe/Berlin".into()))
    );
    assert_eq!(clocks[1].rule, Rule::Interval(900_000));
    assert_eq!(
        clocks[4].rule,
        Rule::Dates(vec!["2026-12-01T09:00:00Z".into()])
    );
}

#[flow(
    schedule = [
        cron(
            "0 2 * * *",
            tz = "Europe/Berlin",
            name = "nightly",
            starts = "2026-12-01T00:00:00Z",
            ends = "2027-12-01T00:00:00+01:00",
            params(r#type = "eu", count = -3, note = Some("\u{fc} \"\n".to_string())),
        ),
        interval("90m", name = "interval-2", params(r#type = { let both = ["a", "b"]; both.join("-") })),
        interval("15m", params(r#type = String::new(), speed = Speed::VeryFast)),
        interval("20m", params(r#type = "")),
    ],
    filters = [
        weekdays("sat", "mon-wed", tz = "America/New_York"),
        between("22:00", "06:00"),
        except("2026-12-25", "2026-12-26", tz = "Asia/Tokyo"),
    ],
    catch_up = "all",
    overlap = "cancel-old",
)]
fn timed(
    r#type: Param<String>,
    #[default(0)] count: Param<i64>,
    note: Param<Option<String>>,
    #[default(Speed::Normal)] speed: Param<Speed>,
) {
    let _ = (r#type, count, note, speed);
}

#[test]
fn all_of_a_schedule_arrives() {
    let schedule = describe::<timed>().unwrap().schedule.unwrap();
    let clocks = &schedule.clocks;
    let names: Vec<&str> = clocks.iter().map(|clock| clock.name.as_str()).collect();
    // What has no name keeps clear of those that have one.
    assert_eq!(names, ["nightly", "interval-2", "interval", "interval-3"]);
    assert_eq!(
        (clocks[0].starts_at.as_deref(), clocks[0].ends_at.as_deref()),
        (
            Some("2026-12-01T00:00:00Z"),
            Some("2027-12-01T00:00:00+01:00")
        )
    );
    assert_eq!((&clocks[1].starts_at, &clocks[1].ends_at), (&None, &None));
    let given = |nth: usize| -> Vec<String> {
        let parameters = clocks[nth].parameters.iter();
        let one = |it: &waft_sdk::bindings::waft::flow::types::NamedValue| {
            assert_eq!(it.value.content_type, "application/json");
            format!("{}={}", it.name, String::from_utf8_lossy(&it.value.bytes))
        };
        parameters.map(one).collect()
    };
    assert_eq!(given(0), [r#"type="eu""#, "count=-3", r#"note="ü \"\n""#]);
    assert_eq!(given(1), [r#"type="a-b""#]);
    assert_eq!(given(2), [r#"type="""#, r#"speed="very-fast""#]);
    assert_eq!(
        schedule.filters,
        [
            Filter::Weekdays((vec![1, 2, 3, 6], "America/New_York".into())),
            Filter::BetweenTimes(("22:00".into(), "06:00".into(), "UTC".into())),
            Filter::SkipDates((
                vec!["2026-12-25".into(), "2026-12-26".into()],
                "Asia/Tokyo".into()
            )),
        ]
    );
    assert_eq!(
        (schedule.catch_up, schedule.overlap),
        (CatchUp::All, Overlap::CancelOld)
    );
    let plain = describe::<parcels>().unwrap().schedule.unwrap();
    assert_eq!(
        (plain.catch_up, plain.overlap, plain.filters.len()),
        (CatchUp::Last, Overlap::Allow, 0)
    );
    assert_eq!(describe::<wired>().unwrap().schedule, None);
}

#[test]
fn a_value_of_a_clock_that_is_no_json_is_told() {
    #[flow(schedule = interval("1h", params(n = Torn)))]
    fn torn(n: Param<Torn>) {
        let _ = n;
    }
    let mistake = describe::<torn>().unwrap_err();
    assert_eq!(
        mistake,
        "a value in the flow cannot be written as JSON: torn apart"
    );
}

/// A value that nothing can be written of.
struct Torn;

impl Serialize for Torn {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("torn apart"))
    }
}

impl Schema for Torn {
    fn schema(text: &mut String) {
        text.push_str("{}");
    }
}
