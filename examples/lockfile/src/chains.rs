//! Finds the deepest chains of dependencies.

use crate::Fact;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Packages of which each depends on the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Chain {
    pub(crate) depth: usize,
    /// `name version`, the depending one first.
    pub(crate) packages: Vec<String>,
}

/// The deepest chains that begin at a package nobody depends on, deepest first.
pub(crate) fn deepest(facts: &[Fact], most: usize) -> Vec<Chain> {
    let graph = Graph::new(facts);
    let mut walk = Walk {
        graph: &graph,
        most,
        done: vec![None; facts.len()],
        is_open: vec![false; facts.len()],
    };
    let mut paths: Vec<Vec<usize>> = Vec::new();
    for root in graph.roots() {
        paths.extend(walk.from(root));
    }
    let name = |package: &usize| format!("{} {}", facts[*package].name, facts[*package].version);
    let mut chains: Vec<Chain> = paths
        .iter()
        .map(|path| Chain {
            depth: path.len(),
            packages: path.iter().map(name).collect(),
        })
        .collect();
    chains.sort_by(|a, b| {
        b.depth
            .cmp(&a.depth)
            .then_with(|| a.packages.cmp(&b.packages))
    });
    chains.truncate(most);
    chains
}

/// What each package depends on, by position.
struct Graph {
    below: Vec<Vec<usize>>,
}

impl Graph {
    fn new(facts: &[Fact]) -> Self {
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, fact) in facts.iter().enumerate() {
            by_name.entry(&fact.name).or_default().push(at);
        }
        let find = |dependency: &String| {
            let mut words = dependency.split(' ');
            let named = by_name.get(words.next()?)?;
            match words.next() {
                Some(version) => named
                    .iter()
                    .copied()
                    .find(|at| facts[*at].version == version),
                None => named.first().copied(),
            }
        };
        let below = facts
            .iter()
            .map(|fact| fact.dependencies.iter().filter_map(find).collect());
        Self {
            below: below.collect(),
        }
    }

    /// The packages nobody depends on; in a circle, the first.
    fn roots(&self) -> Vec<usize> {
        let mut is_below = vec![false; self.below.len()];
        for package in self.below.iter().flatten() {
            is_below[*package] = true;
        }
        let roots: Vec<usize> = (0..self.below.len()).filter(|at| !is_below[*at]).collect();
        if roots.is_empty() {
            (0..self.below.len().min(1)).collect()
        } else {
            roots
        }
    }
}

/// A walk that keeps, for each package, the longest paths down from it.
struct Walk<'a> {
    graph: &'a Graph,
    most: usize,
    done: Vec<Option<Vec<Vec<usize>>>>,
    is_open: Vec<bool>,
}

impl Walk<'_> {
    fn from(&mut self, package: usize) -> Vec<Vec<usize>> {
        if let Some(paths) = &self.done[package] {
            return paths.clone();
        }
        self.is_open[package] = true;
        let mut paths = Vec::new();
        for &below in &self.graph.below[package] {
            // A development dependency may lead back up.
            if !self.is_open[below] {
                for path in self.from(below) {
                    let mut longer = vec![package];
                    longer.extend(path);
                    paths.push(longer);
                }
            }
        }
        if paths.is_empty() {
            paths.push(vec![package]);
        }
        paths.sort_by_key(|path| std::cmp::Reverse(path.len()));
        paths.truncate(self.most);
        self.is_open[package] = false;
        self.done[package] = Some(paths.clone());
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(name: &str, version: &str, dependencies: &[&str]) -> Fact {
        Fact {
            name: name.to_string(),
            version: version.to_string(),
            registry: "crates.io".to_string(),
            dependencies: dependencies.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_deepest_chains_come_first() {
        let facts = [
            fact("app", "1", &["a", "b 2", "gone"]),
            fact("a", "1", &["b 1"]),
            fact("b", "1", &["c"]),
            fact("b", "2", &[]),
            fact("c", "1", &["a"]),
        ];
        let chains = deepest(&facts, 10);
        assert_eq!(chains[0].packages, ["app 1", "a 1", "b 1", "c 1"]);
        assert_eq!(
            (chains[1].depth, &chains[1].packages[1]),
            (2, &"b 2".to_string())
        );
        assert_eq!(chains.len(), 2);
        assert_eq!(deepest(&facts, 1).len(), 1);
        assert!(deepest(&[], 10).is_empty());
    }
}
