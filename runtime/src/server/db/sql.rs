//! Statements: one text for both kinds of database, or one for each where they differ.

use std::sync::OnceLock;

use super::tx::Arg;

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, for one server.
    Sqlite,
    /// A service, where many transactions are under way at once.
    Postgres,
}

/// A statement as each kind of database takes it, with `$n` for its arguments.
///
/// A text alone is for both. PostgreSQL is told no types with the arguments, so it takes them from the
/// text: where nothing else in it says one, an argument has a cast there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sql {
    /// For SQLite.
    pub sqlite: &'static str,
    /// For PostgreSQL.
    pub postgres: &'static str,
}

impl Sql {
    /// Makes a statement of one text for both.
    #[must_use]
    pub const fn both(text: &'static str) -> Self {
        Self {
            sqlite: text,
            postgres: text,
        }
    }

    /// Returns the text for a kind of database.
    #[must_use]
    pub const fn of(self, kind: Kind) -> &'static str {
        match kind {
            Kind::Sqlite => self.sqlite,
            Kind::Postgres => self.postgres,
        }
    }
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self::both(text)
    }
}

/// A statement over many rows, written with one row of places and repeated as needed.
///
/// `$` in `row` becomes `$1`, `$2`, … . A cast after it, as in `$::bytea`, is for PostgreSQL and left
/// out for SQLite. The texts for 1, 2, 4 … 64 rows are made once and kept for the life of the program,
/// so that each is prepared once.
pub struct Many {
    head: &'static str,
    row: &'static str,
    tail: Sql,
    sqlite: [OnceLock<&'static str>; POWERS],
    postgres: [OnceLock<&'static str>; POWERS],
}

/// Powers of two up to the most rows of one statement.
const POWERS: usize = 7;

impl Many {
    /// Writes a statement of a head, a row that is repeated with commas, and a tail.
    #[must_use]
    pub const fn new(head: &'static str, row: &'static str, tail: &'static str) -> Self {
        Self::with(head, row, Sql::both(tail))
    }

    /// Writes a statement whose tail differs.
    #[must_use]
    pub const fn with(head: &'static str, row: &'static str, tail: Sql) -> Self {
        Self {
            head,
            row,
            tail,
            sqlite: [const { OnceLock::new() }; POWERS],
            postgres: [const { OnceLock::new() }; POWERS],
        }
    }

    /// Cuts rows into as few statements as there are powers of two in their number.
    pub(super) fn split(&self, kind: Kind, rows: Vec<Vec<Arg>>) -> Vec<(&'static str, Vec<Arg>)> {
        let mut statements = Vec::new();
        let mut left = rows.len();
        let mut rows = rows.into_iter();
        while left > 0 {
            let power = (left.ilog2() as usize).min(POWERS - 1);
            let count = 1 << power;
            let args = rows.by_ref().take(count).flatten().collect();
            statements.push((self.text(kind, power), args));
            left -= count;
        }
        statements
    }

    /// Returns the statement for two to the `power` rows.
    pub(super) fn text(&self, kind: Kind, power: usize) -> &'static str {
        let texts = match kind {
            Kind::Sqlite => &self.sqlite,
            Kind::Postgres => &self.postgres,
        };
        texts[power].get_or_init(|| self.written(kind, 1 << power).leak())
    }

    fn written(&self, kind: Kind, rows: usize) -> String {
        let mut text = self.head.to_owned();
        let mut place = 0;
        for nth in 0..rows {
            text.push_str(if nth == 0 { "" } else { "," });
            let mut parts = self.row.split('$');
            text.push_str(parts.next().unwrap_or_default());
            for part in parts {
                place += 1;
                text.push_str(&format!("${place}"));
                let is_cast = |c: char| c == ':' || c.is_ascii_alphabetic();
                text.push_str(match kind {
                    Kind::Sqlite => part.trim_start_matches(is_cast),
                    Kind::Postgres => part,
                });
            }
        }
        text.push_str(self.tail.of(kind));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::tx::args;
    use super::*;

    #[test]
    fn many_rows_are_few_statements_of_known_texts() {
        static MANY: Many = Many::new("INSERT INTO t VALUES ", "($, $)", " RETURNING a");
        let rows = (0..5).map(|n| args![n, "x"]).collect();
        let statements = MANY.split(Kind::Sqlite, rows);
        let shapes: Vec<_> = statements.iter().map(|(_, args)| args.len()).collect();
        assert_eq!(shapes, [8, 2]);
        assert_eq!(statements[1].0, "INSERT INTO t VALUES ($1, $2) RETURNING a");
        assert!(statements[0].0.contains("($7, $8)"));
        assert!(MANY.split(Kind::Sqlite, Vec::new()).is_empty());
        let hundred = MANY.split(Kind::Postgres, (0..100).map(|n| args![n, n]).collect());
        assert_eq!(hundred.len(), 3, "64 + 32 + 4");
    }

    #[test]
    fn casts_and_tails_are_for_the_database_that_takes_them() {
        static MANY: Many = Many::with(
            "WITH n (a, b) AS (VALUES ",
            "($::bytea, $::bigint)",
            Sql {
                sqlite: ") SELECT a FROM n INDEXED BY i",
                postgres: ") SELECT a FROM n FOR UPDATE",
            },
        );
        assert_eq!(
            MANY.text(Kind::Sqlite, 1),
            "WITH n (a, b) AS (VALUES ($1, $2),($3, $4)) SELECT a FROM n INDEXED BY i"
        );
        assert_eq!(
            MANY.text(Kind::Postgres, 0),
            "WITH n (a, b) AS (VALUES ($1::bytea, $2::bigint)) SELECT a FROM n FOR UPDATE"
        );
    }
}
