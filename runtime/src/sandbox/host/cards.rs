//! `waft:flow/cards`: what a task shows a human, capped in number and bytes.

use std::collections::HashSet;
use std::time::Duration;

use super::log::Log;
use crate::clock::{Clock, Monotonic};
use crate::model::limit::Limits;
use crate::model::run::{CardContent, Level};
use crate::sandbox::attempt::Said;
use crate::sandbox::bindings::waft::flow::cards;

/// Bytes of a title; it stands in lists.
const TITLE_BYTES_MAX: usize = 200;
/// Bytes that each card costs beside what it shows: a card without text is not free, or one that is
/// shown again and again would never end.
const CARD_BYTES: u64 = 256;
/// Columns of a table; more do not fit a page.
const COLUMNS_MAX: usize = 100;
/// Bytes of what a progress bar says.
const PROGRESS_BYTES_MAX: usize = 500;
/// Progress is passed on so often at most; what is between is replaced anyway.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);
/// The title of the one progress card of an attempt.
const PROGRESS_TITLE: &str = "progress";

/// What one attempt has shown so far.
pub(crate) struct Cards {
    log: Log,
    clock: Clock,
    titles: HashSet<String>,
    cards_max: u64,
    bytes_left: u64,
    dropped: u64,
    progress_at: Option<Monotonic>,
    /// The newest progress, not passed on yet.
    progress: Option<CardContent>,
}

impl Cards {
    pub(crate) fn new(log: Log, clock: Clock, limits: &Limits) -> Self {
        Self {
            log,
            clock,
            titles: HashSet::new(),
            cards_max: limits.cards,
            bytes_left: limits.card_bytes,
            dropped: 0,
            progress_at: None,
            progress: None,
        }
    }

    /// Passes on what was held back, and says how many cards were dropped.
    pub(crate) fn finish(&mut self) {
        self.pass_on_progress();
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            let text = format!("{dropped} cards were dropped: the attempt reached its limit");
            self.log.add(Level::Warning, &text);
        }
    }

    fn show(&mut self, title: &str, bytes: usize, content: CardContent) {
        let title = self.log.clean(title, TITLE_BYTES_MAX);
        let bytes = CARD_BYTES + (title.len() + bytes) as u64;
        let is_new = !self.titles.contains(&title);
        if (is_new && self.titles.len() as u64 >= self.cards_max) || bytes > self.bytes_left {
            self.dropped += 1;
            return;
        }
        self.bytes_left -= bytes;
        self.titles.insert(title.clone());
        self.log.say(Said::Card { title, content });
    }

    fn pass_on_progress(&mut self) {
        if let Some(content) = self.progress.take() {
            let title = PROGRESS_TITLE.to_owned();
            self.log.say(Said::Card { title, content });
        }
    }

    /// Text of a card may have several lines; everything else is as in a log line.
    fn text(&self, text: &str) -> String {
        let lines = text
            .split('\n')
            .map(|line| self.log.clean(line, usize::MAX));
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl cards::Host for Cards {
    fn markdown(&mut self, title: String, text: String) -> wasmtime::Result<()> {
        let text = self.text(&text);
        self.show(&title, text.len(), CardContent::Markdown { text });
        Ok(())
    }

    fn table(
        &mut self,
        title: String,
        columns: Vec<String>,
        rows: Vec<Vec<String>>,
    ) -> wasmtime::Result<()> {
        let columns: Vec<_> = columns
            .iter()
            .take(COLUMNS_MAX)
            .map(|column| self.text(column))
            .collect();
        let width = columns.len();
        // Each row is as wide as the head, so a wide head makes every empty row dear.
        let cells = rows.len().saturating_mul(width.max(1));
        let texts = rows.iter().flatten().map(String::len).sum::<usize>();
        if (cells + texts) as u64 > self.bytes_left {
            self.dropped += 1;
            return Ok(());
        }
        let rows: Vec<Vec<_>> = rows
            .iter()
            .map(|row| {
                let cell = |n: usize| row.get(n).map(|cell| self.text(cell)).unwrap_or_default();
                (0..width).map(cell).collect()
            })
            .collect();
        // Escapes make a cell longer than the guest wrote it.
        let shown = rows.iter().chain([&columns]).flatten().map(String::len);
        let bytes = cells + shown.sum::<usize>();
        self.show(&title, bytes, CardContent::Table { columns, rows });
        Ok(())
    }

    fn link(&mut self, title: String, url: String) -> wasmtime::Result<()> {
        let url = self.log.clean(&url, usize::MAX);
        // Anything else, such as `javascript:`, would run where a human clicks.
        let scheme = url.split("://").next().unwrap_or_default();
        let is_web = ["http", "https"]
            .iter()
            .any(|web| scheme.eq_ignore_ascii_case(web));
        if !is_web || !url.contains("://") {
            let text = "a link card was dropped: only `http` and `https` links are shown";
            self.log.add(Level::Warning, text);
            return Ok(());
        }
        self.show(&title, url.len(), CardContent::Link { url });
        Ok(())
    }

    fn progress(&mut self, done: u64, total: u64, message: String) -> wasmtime::Result<()> {
        let message = self.log.clean(&message, PROGRESS_BYTES_MAX);
        self.progress = Some(CardContent::Progress {
            done,
            total,
            message,
        });
        let now = self.clock.monotonic();
        let is_due = self
            .progress_at
            .is_none_or(|last| now.since(last) >= PROGRESS_PAUSE);
        if is_due {
            self.progress_at = Some(now);
            self.pass_on_progress();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::log::tests::heard;
    use super::cards::Host;
    use super::*;

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn cards_are_shown_cleaned_and_in_shape() {
        let (log, mut shown) = heard(&Limits::DEFAULT);
        let mut cards = Cards::new(log, Clock::default(), &Limits::DEFAULT);
        cards
            .markdown(text("a\nb"), text("# one\ntwo\u{1b}"))
            .unwrap();
        let rows = vec![vec![text("1"), text("2"), text("3")], vec![]];
        cards
            .table(text("t"), vec![text("x"), text("y")], rows)
            .unwrap();
        cards.link(text("l"), text("https://example.org/")).unwrap();
        cards.link(text("l"), text("javascript:alert(1)")).unwrap();
        cards.link(text("l"), text("https")).unwrap();
        let refused = "Warning a link card was dropped: only `http` and `https` links are shown";
        assert_eq!(
            shown(),
            [
                "a\\nb: Markdown { text: \"# one\\ntwo\\\\u{1b}\" }",
                "t: Table { columns: [\"x\", \"y\"], rows: [[\"1\", \"2\"], [\"\", \"\"]] }",
                "l: Link { url: \"https://example.org/\" }",
                refused,
                refused,
            ]
        );
    }

    #[test]
    fn cards_beyond_number_or_bytes_are_dropped_and_said() {
        let limits = Limits {
            cards: 2,
            // Three cards of one letter and five, and 14 bytes.
            card_bytes: 3 * (CARD_BYTES + 6) + 14,
            ..Limits::DEFAULT
        };
        let (log, mut shown) = heard(&limits);
        let mut cards = Cards::new(log, Clock::default(), &limits);
        for title in ["a", "b", "c", "a"] {
            cards.markdown(text(title), text("five!")).unwrap();
        }
        cards.markdown(text("a"), text("too many bytes")).unwrap();
        let wide = vec![vec![]; 1_000];
        cards.table(text("b"), vec![text("x")], wide).unwrap();
        let odd = vec![vec![text("\u{1}\u{1}")]];
        cards.table(text("b"), vec![text("x")], odd).unwrap();
        cards.finish();
        let shown = shown();
        assert_eq!(shown.len(), 4);
        assert_eq!(
            shown[3],
            "Warning 4 cards were dropped: the attempt reached its limit"
        );
    }

    #[test]
    fn a_card_without_text_shown_again_and_again_comes_to_an_end() {
        let (log, mut shown) = heard(&Limits::DEFAULT);
        let mut cards = Cards::new(log, Clock::default(), &Limits::DEFAULT);
        for _ in 0..100_000 {
            cards.markdown(text("a"), text("")).unwrap();
            cards.link(text("a"), text("http://")).unwrap();
            cards.table(text("a"), vec![], vec![]).unwrap();
        }
        cards.finish();
        let shown = shown();
        let most = Limits::DEFAULT.card_bytes / CARD_BYTES;
        assert!(shown.len() as u64 <= most + 1, "{}", shown.len());
        let last = shown.last().unwrap();
        assert!(last.contains("cards were dropped"), "{last}");
    }

    #[test]
    fn progress_is_passed_on_in_steps_and_the_last_one_always() {
        let (log, mut shown) = heard(&Limits::DEFAULT);
        let (clock, time) = Clock::test(Timestamp::UNIX_EPOCH);
        let mut cards = Cards::new(log, clock, &Limits::DEFAULT);
        for done in 0..100 {
            cards.progress(done, 100, text("on")).unwrap();
        }
        assert_eq!(shown().len(), 1);
        time.pass(PROGRESS_PAUSE);
        cards.progress(100, 101, text("on")).unwrap();
        cards.progress(101, 101, text("done")).unwrap();
        cards.finish();
        let shown = shown();
        assert_eq!(shown.len(), 2);
        assert!(shown[1].contains("done: 101"), "{}", shown[1]);
    }
}
