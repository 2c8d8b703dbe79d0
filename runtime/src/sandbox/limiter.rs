//! The limiter: what one attempt may hold of memory, summed over everything it makes.
//!
//! wasmtime asks before each memory or table is made or grown. Its own `StoreLimits` looks at one
//! memory at a time, so a hundred memories would each get the whole limit; this one adds them up.
//! A refusal is remembered, since a guest that runs out of memory traps with something else.

use wasmtime::ResourceLimiter;

use crate::model::limit::MIB;

/// Most elements of one table. Python's has about ten thousand functions.
const TABLE_ELEMENTS_MAX: usize = 1_000_000;
/// Bytes of the host behind one element of a table.
const ELEMENT_BYTES: u64 = 8;
/// Most core instances, tables and memories of one attempt: a composed Python component has some
/// dozens of instances.
const INSTANCES_MAX: usize = 1_000;
const TABLES_MAX: usize = 256;
const MEMORIES_MAX: usize = 64;

/// Sums what one attempt holds and refuses what is beyond its limit.
pub(crate) struct Limiter {
    bytes_max: u64,
    bytes: u64,
    peak: u64,
    refused: Option<Refused>,
}

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Memory,
    Table { elements: usize },
}

impl Limiter {
    pub(crate) const fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            peak: 0,
            refused: None,
        }
    }

    /// Returns the most bytes held at one time.
    pub(crate) const fn peak(&self) -> u64 {
        self.peak
    }

    /// Returns the limit that was reached, as code and sentence.
    pub(crate) fn breach(&self) -> Option<(&'static str, String)> {
        match self.refused? {
            Refused::Memory => Some((
                "limit.memory",
                format!(
                    "the attempt reached its memory limit of {}",
                    in_mib(self.bytes_max)
                ),
            )),
            Refused::Table { elements } => Some((
                "limit.table",
                format!(
                    "a table of {elements} elements is above the limit of {TABLE_ELEMENTS_MAX}"
                ),
            )),
        }
    }

    fn grow(&mut self, by: u64) -> bool {
        let wanted = self.bytes.saturating_add(by);
        if wanted > self.bytes_max {
            self.refused = Some(Refused::Memory);
            return false;
        }
        self.bytes = wanted;
        self.peak = self.peak.max(wanted);
        true
    }
}

fn in_mib(bytes: u64) -> String {
    match bytes % MIB {
        0 => format!("{} MiB", bytes / MIB),
        _ => format!("{bytes} bytes"),
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // Beyond its own maximum a memory does not grow, whatever we say.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current) as u64))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        if desired > TABLE_ELEMENTS_MAX {
            self.refused = Some(Refused::Table { elements: desired });
            return Ok(false);
        }
        let by = desired.saturating_sub(current) as u64;
        Ok(self.grow(by.saturating_mul(ELEMENT_BYTES)))
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_are_summed() {
        let mut limiter = Limiter::new(3 * MIB);
        let mib = MIB as usize;
        assert!(limiter.memory_growing(0, mib, None).unwrap());
        assert!(limiter.memory_growing(0, mib, None).unwrap());
        assert!(limiter.table_growing(0, 1_000, None).unwrap());
        assert_eq!(limiter.breach(), None);
        assert!(!limiter.memory_growing(mib, 2 * mib, None).unwrap());
        let (code, message) = limiter.breach().unwrap();
        assert_eq!(code, "limit.memory");
        assert_eq!(message, "the attempt reached its memory limit of 3 MiB");
        assert_eq!(limiter.peak(), 2 * MIB + 8_000);
    }

    #[test]
    fn a_memory_that_is_at_its_own_maximum_breaks_no_limit_of_ours() {
        let mut limiter = Limiter::new(MIB);
        assert!(
            !limiter
                .memory_growing(0, 128 << 10, Some(64 << 10))
                .unwrap()
        );
        assert_eq!(limiter.breach(), None);
    }

    #[test]
    fn a_table_has_a_limit_of_its_own() {
        let mut limiter = Limiter::new(1024 * MIB);
        assert!(!limiter.table_growing(0, 10_000_000, None).unwrap());
        assert_eq!(limiter.breach().unwrap().0, "limit.table");
    }
}
