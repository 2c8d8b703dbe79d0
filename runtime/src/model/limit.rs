//! Limits: the ceilings of one attempt, and those of a flow and of a run.
//!
//! One table of defaults and highest values, each with its reason. A task may ask for other values
//! ([`TaskLimits`]); what it gets is [`Limits::of`], never above the ceilings that the agent set.

use serde::{Deserialize, Serialize};

/// 1 KiB.
pub const KIB: u64 = 1024;
/// 1 MiB.
pub const MIB: u64 = 1024 * KIB;

/// Most tasks of a flow: a larger graph is data, and belongs into a map.
pub const TASKS_MAX: usize = 5_000;
/// Most edges of a flow.
pub const EDGES_MAX: usize = 20_000;
/// Most bytes of a definition, constants included: it is kept with every version.
pub const DEFINITION_BYTES_MAX: usize = 2 * MIB as usize;
/// Bytes of a component, unless an agent says otherwise; one of Python or JavaScript has some 20 MB.
pub const ARTIFACT_BYTES_MAX: u64 = 256 * MIB;
/// Most elements of one mapped task.
pub const MAP_ELEMENTS_MAX: usize = 100_000;
/// Most task runs of one flow run, elements included: a claim hands back all that are known of it.
pub const TASK_RUNS_MAX: usize = 300_000;
/// Most iterations of one task by the signal `loop`.
pub const LOOPS_MAX: u32 = 10_000;
/// Most retries of one task run.
pub const RETRIES_MAX: u32 = 100;
/// Times an attempt that was lost with its agent is made again.
pub const LOST_MAX: u32 = 2;
/// Longest time of one flow run in milliseconds: 24 hours.
pub const RUN_WALL_MS: u64 = 24 * 60 * 60 * 1000;

/// The ceilings of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of linear memories and tables, summed.
    pub memory_bytes: u64,
    /// Milliseconds of CPU time.
    pub cpu_ms: u64,
    /// Milliseconds from instantiation to the end.
    pub wall_ms: u64,
    /// Bytes of output; also the hostcall fuel, so that no single call carries more.
    pub output_bytes: u64,
    /// Lines of log.
    pub log_lines: u64,
    /// Bytes of log.
    pub log_bytes: u64,
    /// Bytes of one log line; what is beyond is cut off.
    pub log_line_bytes: u64,
    /// Component handles alive at one time.
    pub handles: u64,
    /// Files, streams and requests open at one time.
    pub resources: u64,
    /// Bytes of randomness in one call.
    pub random_bytes: u64,
    /// Cards.
    pub cards: u64,
    /// Bytes of cards.
    pub card_bytes: u64,
    /// Outgoing HTTP requests.
    pub http_requests: u64,
    /// Outgoing HTTP connections at one time.
    pub http_connections: u64,
    /// Bytes sent by HTTP.
    pub http_bytes_out: u64,
    /// Bytes received by HTTP.
    pub http_bytes_in: u64,
    /// Bytes of HTTP header fields of one message.
    pub http_field_bytes: u64,
}

impl Limits {
    /// What holds for a task that asks for nothing.
    pub const DEFAULT: Self = Self {
        memory_bytes: 256 * MIB,
        cpu_ms: 60_000,
        wall_ms: 10 * 60 * 1000,
        output_bytes: 4 * MIB,
        log_lines: 10_000,
        log_bytes: 4 * MIB,
        log_line_bytes: 16 * KIB,
        // Canonical-ABI handles are host memory that a guest makes without a host function in the
        // loop; wasmtime's own default is 100,000.
        handles: 1_024,
        // Every open file is one; 1,024 is a usual limit of descriptors of a whole process.
        resources: 512,
        random_bytes: 64 * KIB,
        cards: 64,
        card_bytes: MIB,
        http_requests: 1_000,
        http_connections: 16,
        http_bytes_out: 64 * MIB,
        http_bytes_in: 64 * MIB,
        http_field_bytes: 64 * KIB,
    };

    /// The most an agent gives unless it is configured to give more.
    pub const CEILING: Self = Self {
        memory_bytes: 1024 * MIB,
        cpu_ms: 10 * 60 * 1000,
        wall_ms: 60 * 60 * 1000,
        output_bytes: 64 * MIB,
        ..Self::DEFAULT
    };

    /// Returns the limits of a task: what it asks for, else the default, never above `ceiling`.
    ///
    /// A task that asks for more than the ceiling is not given to this agent in the first place
    /// ([`TaskLimits::exceeding`]); the cut here is the second lock on the same door.
    #[must_use]
    pub fn of(asked: &TaskLimits, timeout_ms: Option<u64>, ceiling: &Self) -> Self {
        let pick = |asked: Option<u64>, default: u64, most: u64| asked.unwrap_or(default).min(most);
        Self {
            memory_bytes: pick(
                asked.memory_bytes,
                Self::DEFAULT.memory_bytes,
                ceiling.memory_bytes,
            ),
            cpu_ms: pick(asked.cpu_ms, Self::DEFAULT.cpu_ms, ceiling.cpu_ms),
            wall_ms: pick(timeout_ms, Self::DEFAULT.wall_ms, ceiling.wall_ms),
            output_bytes: pick(
                asked.output_bytes,
                Self::DEFAULT.output_bytes,
                ceiling.output_bytes,
            ),
            ..Self::DEFAULT
        }
    }
}

/// What a task asks for beyond or below the default; nothing keeps the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskLimits {
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Milliseconds of CPU time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Milliseconds of wall time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    /// Bytes of output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Task runs of this task at one time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
}

impl TaskLimits {
    /// Tells whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the larger of each, which is what a whole flow needs of its agent.
    #[must_use]
    pub fn max(&self, other: &Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            cpu_ms: self.cpu_ms.max(other.cpu_ms),
            wall_ms: self.wall_ms.max(other.wall_ms),
            output_bytes: self.output_bytes.max(other.output_bytes),
            parallel: None,
        }
    }

    /// Names each limit that is asked for above what is offered, with both values and the flag
    /// that would allow it.
    #[must_use]
    pub fn exceeding(&self, offered: &Self) -> Vec<String> {
        [
            ("memory", self.memory_bytes, offered.memory_bytes, "bytes"),
            ("cpu", self.cpu_ms, offered.cpu_ms, "ms"),
            ("wall", self.wall_ms, offered.wall_ms, "ms"),
            ("output", self.output_bytes, offered.output_bytes, "bytes"),
        ]
        .into_iter()
        .filter_map(|(name, asked, offered, unit)| {
            let (asked, offered) = (asked?, offered?);
            (asked > offered)
                .then(|| format!("{name}: {asked} {unit} asked, at most {offered} allowed"))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_gets_what_it_asks_for_up_to_the_ceiling() {
        let asked = TaskLimits {
            memory_bytes: Some(2048 * MIB),
            cpu_ms: Some(10),
            ..TaskLimits::default()
        };
        let limits = Limits::of(&asked, Some(5), &Limits::CEILING);
        assert_eq!(limits.memory_bytes, Limits::CEILING.memory_bytes);
        assert_eq!(limits.cpu_ms, 10);
        assert_eq!(limits.wall_ms, 5);
        assert_eq!(limits.output_bytes, Limits::DEFAULT.output_bytes);
    }

    #[test]
    fn what_exceeds_the_offer_is_named_with_both_values() {
        let asked = TaskLimits {
            memory_bytes: Some(3),
            cpu_ms: Some(1),
            ..TaskLimits::default()
        };
        let offered = TaskLimits {
            memory_bytes: Some(2),
            cpu_ms: Some(1),
            ..TaskLimits::default()
        };
        assert_eq!(
            asked.exceeding(&offered),
            ["memory: 3 bytes asked, at most 2 allowed"]
        );
    }
}
